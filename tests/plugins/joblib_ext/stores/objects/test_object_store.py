"""The shared cache in an object store: a real S3 server, and a proxy that spoils what it says."""

import importlib
import linecache
import os
import pickle
import shutil
import sys
import warnings
from datetime import timedelta

import numpy as np
import pytest
from joblib import expires_after
from joblib._store_backends import CacheWarning
from tests.faults.nodes import wait_for
from tests.support.object_servers import VersionsProxy, access, anonymous_access, versions_access

from joblib_ext.entries.entry import build
from mlops_ext.errors import SettingsError


class Counted:
    def __init__(self):
        self.calls = 0


@pytest.fixture
def counted():
    return Counted()


def keys(proxy, location):
    import obstore
    from obstore.store import from_url

    store = from_url(location, **access(proxy.address))
    return sorted(
        row["path"].partition("mlops-shared-1/")[2] for row in obstore.list(store).collect()
    )


def entries(proxy, location):
    return [
        key
        for key in keys(proxy, location)
        if key.startswith("items/") and not key.endswith("code.json")
    ]


def test_a_result_is_computed_once_and_read_by_another_memory(make, counted):
    def f(x):
        counted.calls += 1
        return {"x": x, "array": np.arange(5)}

    first = make().cache(f)(3)
    again = make().cache(f)(3)
    assert counted.calls == 1
    assert (again["x"], list(again["array"])) == (first["x"], [0, 1, 2, 3, 4])


@pytest.mark.parametrize("size", [10, 20_000, 9_000_000])
def test_arrays_of_any_size_are_verified_and_writable(make, counted, size):
    def f(n):
        counted.calls += 1
        return np.arange(n), "and", [np.ones(n, "uint8")]

    make().cache(f)(size)
    array, _, (ones,) = make().cache(f)(size)
    assert counted.calls == 1
    array[0] = 7
    assert array.sum() == sum(range(size)) + 7
    assert ones.sum() == size


def test_a_hit_is_one_request_and_a_miss_three(make, proxy):
    cached = make().cache(abs_of)
    cached(1)  # the first call also sees whether the store keeps conditions
    proxy.requests.clear()
    cached(2)
    assert [method for method, _ in proxy.requests] == ["GET", "PUT", "PUT"]
    proxy.requests.clear()
    cached(2)
    assert [method for method, _ in proxy.requests] == ["GET"]


def abs_of(x):
    return abs(x)


def test_clear_evict_list_and_shelve(make, proxy, location):
    memory = make()
    cached = memory.cache(abs_of)
    for number in range(5):
        cached(number)
    shelved = cached.call_and_shelve(9)
    assert pickle.loads(pickle.dumps(shelved)).get() == 9
    assert cached.check_call_in_cache(3)
    assert not cached.check_call_in_cache(77)
    assert len(memory.store_backend.get_items()) == 6
    memory.reduce_size(items_limit=2)
    assert len(entries(proxy, location)) == 2
    cached.clear(warn=False)
    assert entries(proxy, location) == []
    cached(1)
    memory.clear(warn=False)
    assert entries(proxy, location) == []
    assert not cached.check_call_in_cache(1)


def test_expired_results_are_computed_again(make, counted):
    def f(x):
        counted.calls += 1
        return x

    cached = make().cache(f, cache_validation_callback=expires_after(seconds=-1))
    assert [cached(1), cached(1)] == [1, 1]
    assert counted.calls == 2


def test_an_exception_releases_the_lease(make, proxy, location):
    def f(x):
        raise ValueError(x)

    cached = make().cache(f)
    for _ in range(2):
        with pytest.raises(ValueError, match="1"):
            cached(1)
    wait_for(lambda: not entries(proxy, location))  # what was raised keeps the call's frame


@pytest.mark.parametrize("bit", [3, 100, 500, 700])
def test_a_damaged_entry_is_computed_again_and_kept_for_a_look(make, proxy, location, counted, bit):
    import obstore
    from obstore.store import from_url

    def f(x):
        counted.calls += 1
        return x + 1

    make().cache(f)(1)
    store = from_url(location, **access(proxy.address))
    (key,) = [
        r["path"]
        for r in obstore.list(store).collect()
        if "items" in r["path"] and r["size"] > 64 and "json" not in r["path"]
    ]
    data = bytearray(obstore.get(store, key).bytes())
    data[bit // 8] ^= 1 << bit % 8
    obstore.put(store, key, bytes(data))
    with pytest.warns(Warning, match="failed its check"):
        assert make().cache(f)(1) == 2
    assert counted.calls == 2
    assert any(key.startswith("corrupt/") for key in keys(proxy, location))
    assert make().cache(f)(1) == 2
    assert counted.calls == 2


def test_an_entry_without_the_signature_is_not_unpickled(make, proxy, location, counted):
    import obstore
    from obstore.store import from_url

    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('the code of somebody else ran')",)

    def f(x):
        counted.calls += 1
        return x + 1

    signed = make(sign_key="team")
    signed.cache(f)(1)
    other = make(sign_key="not the team")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = from_url(location, **access(proxy.address))
        (key,) = [
            r["path"]
            for r in obstore.list(store).collect()
            if "items" in r["path"] and r["size"] > 64 and "json" not in r["path"]
        ]
        for size in (1, 100_000):
            runtime = other.store_backend._runtime
            body = [pickle.dumps(Bomb()) + b"." * size]
            pieces, _ = build(body, 0, {}, b"anything", **runtime.store.options.building)
            obstore.put(store, key, b"".join(pieces))
            assert make(sign_key="team").cache(f)(1) == 2
    assert counted.calls == 3


@pytest.mark.parametrize("fate", ["lost", "reset", 500, 503, 429])
def test_no_trouble_of_the_store_reaches_the_call(make, proxy, counted, fate):
    state = {"n": 0}

    def spoil(method, path):
        state["n"] += 1
        return fate if state["n"] % 3 == 0 else None

    def f(x):
        counted.calls += 1
        return x * 2

    proxy.spoil = spoil
    patient = {"lease_s": 30.0, "retry_s": 60.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            assert [make(**patient).cache(f)(x) for x in range(6)] == [0, 2, 4, 6, 8, 10]
    assert counted.calls == 6


def test_a_body_that_is_cut_off_is_never_a_value(make, proxy, counted):
    def f(x):
        counted.calls += 1
        return b"x" * 100_000

    cached = make().cache(f)
    cached(1)
    proxy.spoil = lambda method, path: "cut" if method == "GET" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert make().cache(f)(1) == b"x" * 100_000


def test_a_store_that_is_down_costs_one_warning(make, counted):
    def f(x):
        counted.calls += 1
        return x

    cached = make(retry_s=0.2, storage_options=access("127.0.0.1:9")).cache(f)
    with pytest.warns(CacheWarning) as told:
        assert [cached(x) for x in (1, 1, 2)] == [1, 1, 2]
    assert counted.calls == 3
    assert len(told) <= 2  # one of reading, one of writing
    assert "SECRETKEY" not in "".join(str(one.message) for one in told)


def test_without_the_right_to_write_results_are_computed(make, proxy):
    options = access(proxy.address) | {"secret_access_key": "not the key"}
    with pytest.warns(Warning, match="storage_options") as told:
        assert make(storage_options=options).cache(abs_of)(-4) == 4
    assert "not the key" not in "".join(str(one.message) for one in told)


def test_a_store_that_ignores_conditions_is_found_out(make, proxy, counted):
    def f(x):
        counted.calls += 1
        return x

    proxy.spoil = lambda method, path: "unconditional"
    with pytest.warns(Warning, match="ignores conditions"):
        assert make(storage_options=anonymous_access(proxy.address)).cache(f)(1) == 1
    assert make().cache(f)(1) == 1
    assert counted.calls == 1


def test_a_store_that_fails_while_it_is_tried_is_tried_again(make, proxy):
    """It is not one that ignores conditions, which would end single flight for good."""
    probes = []

    def spoil(_method, path):
        probes.extend([path] * ("probes" in path))
        return 503 if "probes" in path and len(probes) > 1 else None

    memory = make(retry_s=0.2)
    store = memory.store_backend._runtime.store
    proxy.spoil = spoil
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not store.keeps_conditions()
    proxy.spoil = lambda method, path: None
    store.client._silent_until = 0.0
    assert store.keeps_conditions()


def test_where_a_write_names_a_version_one_computes(server, make, location, counted):
    """As in Google's store, by obstore's own client for it."""
    proxy = VersionsProxy(server)
    options = {"storage_options": versions_access(proxy.address), "lease_s": 30.0}
    where = location.replace("s3://", "gs://")

    def f(x):
        counted.calls += 1
        if x < 0:
            raise ValueError(x)
        return x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory = make(where, **options)
        cached = memory.cache(f)
        assert cached(1) == cached(1) == make(where, **options).cache(f)(1) == 1
        assert memory.store_backend._runtime.store.keeps_conditions()
        with pytest.raises(ValueError, match="-1"):
            cached(-1)
        memory.clear(warn=False)
        assert not cached.check_call_in_cache(1)
    assert counted.calls == 2
    proxy.close()


def test_two_versions_of_a_function_do_not_meet(make, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for number in (1, 2, 1):
        (tmp_path / "deployed.py").write_text(f"def f(x):\n    return {number}, x\n")
        sys.modules.pop("deployed", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        assert make().cache(importlib.import_module("deployed").f)(7) == (number, 7)


def test_the_local_tier_saves_the_transfer_and_serves_nothing_that_was_cleared(
    make, proxy, counted, tmp_path
):
    def f(x):
        counted.calls += 1
        return np.ones(50_000)

    memory = make(local_tier=str(tmp_path))
    cached = memory.cache(f)
    cached(1)
    cached(1)
    proxy.requests.clear()
    assert cached(1).sum() == 50_000
    assert [method for method, _ in proxy.requests] == ["GET"]
    make().clear(warn=False)
    cached(1)
    assert counted.calls == 2


def test_within_revalidate_s_nothing_is_asked(make, proxy, tmp_path):
    cached = make(local_tier=str(tmp_path), revalidate_s=60.0).cache(abs_of)
    for _ in range(3):
        cached(-8)
    proxy.requests.clear()
    assert cached(-8) == 8
    assert proxy.requests == []


def test_arrays_are_mapped_from_the_local_copy(make, tmp_path):
    def f(x):
        return np.arange(x)

    make(mmap_mode="r", local_tier=str(tmp_path)).cache(f)(300)
    found = make(mmap_mode="r", local_tier=str(tmp_path)).cache(f)(300)
    assert isinstance(found, np.memmap)
    assert found.sum() == sum(range(300))


def test_maps_without_a_local_tier_are_refused(make):
    with pytest.raises(SettingsError, match="local_tier"):
        make(mmap_mode="r")


@pytest.mark.parametrize("where", ["s4://bucket/cache", "http://host/cache", "s3:/bucket/cache"])
def test_a_location_that_is_not_understood_is_refused(make, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="location"):
        make(where)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_storage_option_is_refused_without_its_value(make):
    with pytest.raises(SettingsError, match="storage_options") as refused:
        make(storage_options={"secret_acess_key": "hidden-value"})
    assert "hidden-value" not in str(refused.value)


def test_age_limits(make, proxy, location):
    memory = make()
    memory.cache(abs_of)(1)
    memory.reduce_size(age_limit=timedelta(hours=1))
    assert len(entries(proxy, location)) == 1
    with pytest.raises(ValueError, match="positive"):
        memory.reduce_size(age_limit=timedelta(seconds=-1))


def test_a_forked_child_computes_and_says_why_it_neither_reads_nor_stores(make):
    cached = make().cache(abs)
    assert cached(-1) == 1
    child = os.fork()
    if child == 0:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            values = [cached(-1), cached(-2), cached(-1)]
        texts = [str(each.message) for each in told if "was forked" in str(each.message)]
        os._exit(0 if values == [1, 2, 1] and 1 <= len(texts) <= 2 else 1)  # read, stored
    assert os.waitpid(child, 0)[1] == 0

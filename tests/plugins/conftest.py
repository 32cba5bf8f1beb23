"""Fixtures that several tests of one framework share; each imports what only its own rows have."""

import pytest


@pytest.fixture
def memory(tmp_path):
    """A joblib Memory that is shared, with a short lease."""
    from joblib import Memory

    import joblib_ext  # noqa: F401  # registers the backend

    options = {"lease_s": 0.5}
    return Memory(str(tmp_path / "cache"), backend="shared", verbose=0, backend_options=options)


@pytest.fixture
def no_leases_left():
    """Fails the test that leaves a lease of the shared cache behind."""
    from tests.faults.nodes import wait_for

    from joblib_ext.stores import leases

    yield
    wait_for(lambda: not leases._held)  # a file that has gone is forgotten a moment later


@pytest.fixture
def double():
    """A double of the ClearML API with three queues."""
    from tests.doubles.clearml.server import ApiDouble

    with ApiDouble(["default", "services", "gpu"]) as double:
        yield double


@pytest.fixture
def cluster():
    """A double of the Kubernetes API with one node, whose pods end as told, without a process."""
    from kubernetes import config
    from tests.doubles.kubernetes import Cluster

    with Cluster({"node-a": "4Gi"}, real=False, tls=False) as double:
        config.load_kube_config(str(double.kubeconfig()))
        yield double

"""One client of the ZenML server for all tests on a cluster; no test finds rights of another."""

import pytest
from tests.cluster.project import Project, kubectl


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    kubectl("create", "namespace", "zenml")
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def no_right_to_resize():
    """A step that shall be killed must not grow in time, however slow the machine is."""
    kubectl("delete", "rolebinding", "mlops-ext-resize", "--ignore-not-found")

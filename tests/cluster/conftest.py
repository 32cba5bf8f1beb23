"""One client of the ZenML server for all tests on a cluster."""

import pytest
from tests.cluster.project import Project, kubectl


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    kubectl("create", "namespace", "zenml")
    return Project(tmp_path_factory.mktemp("project"))

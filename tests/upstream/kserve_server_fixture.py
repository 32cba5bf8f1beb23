"""The fixture `server` of KServe's test-suite, whose conftest.py its sdist does not ship."""

import pytest
from kserve import ModelServer
from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING
from kserve.protocol.rest.server import RESTServer


@pytest.fixture(scope="session")
def server():
    made = ModelServer()
    rest = RESTServer(
        FASTAPI_APP_IMPORT_STRING, made.dataplane, made.model_repository_extension, 8080
    )
    rest.create_application()
    return made

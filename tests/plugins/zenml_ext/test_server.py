"""ZenML's server away for a while: waited for, where asking again does no harm."""

import http.server
import socket
import threading
from types import SimpleNamespace

import pytest
import requests

pytest.importorskip("zenml")

from zenml.exceptions import (
    CredentialsNotValid,
    IllegalOperationError,
    MaxConcurrentTasksError,
    ZenKeyError,
)
from zenml.zen_stores.rest_zen_store import RestZenStore

from mlops_ext import apply
from zenml_ext import server
from zenml_ext.kubernetes.supervisor import step_runs
from zenml_ext.processes import ORCHESTRATOR_POD, STEP_POD


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between the tries; nobody waits."""
    found = []
    monkeypatch.setattr(server, "time", SimpleNamespace(sleep=found.append))
    return found


@pytest.mark.parametrize("process", [ORCHESTRATOR_POD, STEP_POD])
def test_a_server_that_comes_back_is_waited_for(monkeypatch, process):
    port, pauses, started = closed_port(), [], []

    def sleep(pause_s):
        """The server starts while we wait for the third time."""
        pauses.append(pause_s)
        if len(pauses) == 3:
            listening = http.server.HTTPServer(("127.0.0.1", port), Handler)
            threading.Thread(target=listening.serve_forever, daemon=True).start()
            started.append(listening)

    # Not time.sleep itself: threads that other tests left may be in it.
    monkeypatch.setattr(server, "time", SimpleNamespace(sleep=sleep))

    class Store:
        url, _last_authenticated = f"http://127.0.0.1:{port}", None
        session = requests.Session()
        config = SimpleNamespace(verify_ssl=False, http_timeout=5)

        def _handle_response(self, response):
            return response.json()

    call = (Store(), "POST", Store.url)
    try:
        with pytest.raises(requests.exceptions.ConnectionError):
            RestZenStore._request(*call)  # as upstream has it
        with apply("zenml", process=process):
            assert RestZenStore._request(*call) == {}
    finally:
        for one in started:
            one.shutdown()
            one.server_close()
    assert len(pauses) == 3


def test_what_may_have_been_sent_is_not_sent_again(pauses):
    error = requests.exceptions.ConnectionError("connection reset while waiting for the answer")
    tries = []

    def call():
        tries.append(1)
        raise error

    with pytest.raises(requests.exceptions.ConnectionError):
        server.when_there(call, "POST")
    assert (len(tries), pauses) == (1, [])
    assert server.is_away(error, "GET")
    assert not server.is_away(RuntimeError("500 Internal Server Error"), "GET")


def store_error(name):
    """An error as SQLAlchemy's, which is not installed everywhere."""
    return type(name, (type("DBAPIError", (Exception,), {}),), {})("database is locked")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (requests.exceptions.ConnectTimeout("no route"), True),
        (requests.exceptions.RetryError("too many 503 error responses"), True),
        (RuntimeError("500 Internal Server Error"), True),  # as ZenML's client raises it
        (MaxConcurrentTasksError("429"), True),
        (store_error("OperationalError"), True),
        (store_error("IntegrityError"), False),
        (KeyError("no step run with this id"), False),
        (ZenKeyError("404"), False),
        (CredentialsNotValid("401"), False),
        (IllegalOperationError("403"), False),
        (ValueError("422"), False),
        (NotImplementedError("501"), False),
        (TypeError("a mistake of ours"), False),
    ],
    ids=repr,
)
def test_only_what_may_pass_is_waited_for(error, passes):
    assert server.may_pass(error) is passes
    expected = step_runs.ServerAwayError if passes else step_runs.ServerRefusesError
    with pytest.raises(expected), step_runs.asking():
        raise error

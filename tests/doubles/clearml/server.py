"""The double's HTTP side: the envelope of the real API, a token, and faults on request."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.doubles.clearml.documents import ApiError, new_id
from tests.doubles.clearml.store import Store

API_VERSION, SERVER_VERSION = "2.34", "2.3.0"
ACCESS_KEY, SECRET_KEY = "double-access-key", "double-secret-key-never-to-be-shown"


def _segment(document):
    raw = json.dumps(document).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def make_token():
    claims = {
        "iat": int(time.time()),
        "exp": int(time.time()) + 3600 * 24,
        "api_version": API_VERSION,
        "server_version": SERVER_VERSION,
        "server_build": "1",
        "feature_set": "basic",
        "identity": {"user": "__tests__", "company": "c", "role": "user"},
        "auth_type": "Bearer",
    }
    return f"{_segment({'alg': 'HS256', 'typ': 'JWT'})}.{_segment(claims)}.c2lnbmF0dXJl"


class ApiDouble:
    """A running server. ``faults`` maps an endpoint (or "*") to what to do instead of answering.

    A fault is ``("status", code, text)``, ``("slow", seconds)``, ``("cut",)`` or ``("raw", bytes)``.
    """

    def __init__(self, queues=("default",)):
        self.store = Store(queues)
        self.calls: list[tuple[str, dict]] = []
        self.faults: dict[str, tuple] = {}
        self.unknown: set[str] = set()
        self.released = threading.Event()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                double.handle(self)

            do_POST = do_PUT = do_GET  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request, client_address):
                pass

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def wait_until(self, condition, timeout_s=60.0):
        """Wait for a change of the store after which ``condition(store)`` holds."""
        with self.store.changed:
            return self.store.changed.wait_for(lambda: condition(self.store), timeout_s)

    def count(self, *endpoints):
        return sum(1 for name, _ in self.calls if not endpoints or name in endpoints)

    def handle(self, handler):
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length) if length else b""
        path = handler.path.partition("?")[0].strip("/")
        endpoint = path.rpartition("/")[2]
        if endpoint in ("debug.ping", ""):
            self.answer(handler, endpoint, 200, 0, "OK", {})
            return
        request = self.parse(endpoint, handler, body)
        self.calls.append((endpoint, request))
        self.store.notify()
        if self.misbehave(handler, endpoint):
            return
        if endpoint == "auth.login":
            self.login(handler, endpoint)
            return
        action = getattr(self.store, endpoint.replace(".", "_"), None)
        if action is None or "." not in endpoint:
            self.unknown.add(endpoint)
            text = f"Unable to find endpoint for name {endpoint} and version {API_VERSION}"
            self.answer(handler, endpoint, 404, 0, text, {})
            return
        try:
            with self.store.lock:
                data = action(request)
        except ApiError as error:
            self.answer(handler, endpoint, error.code, error.subcode, error.text, {})
        else:
            self.answer(handler, endpoint, 200, 0, "OK", data)

    def parse(self, endpoint, handler, body):
        if not body:
            return {}
        if endpoint.endswith("_batch") or "json-lines" in handler.headers.get("Content-Type", ""):
            return [json.loads(line) for line in body.splitlines() if line.strip()]
        try:
            request = json.loads(body)
        except ValueError:
            return {}
        if isinstance(request, dict):
            request.pop("method", None)
        return request

    def misbehave(self, handler, endpoint):
        fault = self.faults.get(endpoint) or self.faults.get("*")
        if fault is None:
            return False
        if fault[0] == "status":
            self.answer(handler, endpoint, fault[1], 0, fault[2], {})
            return True
        if fault[0] == "slow":
            self.released.wait(fault[1])
            return False
        if fault[0] == "raw":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(fault[1])))
            handler.end_headers()
            handler.wfile.write(fault[1])
            return True
        handler.close_connection = True
        return True

    def login(self, handler, endpoint):
        expected = base64.b64encode(f"{ACCESS_KEY}:{SECRET_KEY}".encode()).decode()
        given = handler.headers.get("Authorization", "")
        if given != f"Basic {expected}" and not given.startswith("Bearer "):
            self.answer(handler, endpoint, 401, 20, "Unauthorized (invalid credentials)", {})
            return
        self.answer(handler, endpoint, 200, 0, "OK", {"token": make_token()})

    def answer(self, handler, endpoint, code, subcode, text, data):
        document = {
            "meta": {
                "id": new_id(),
                "trx": new_id(),
                "endpoint": {
                    "name": endpoint,
                    "requested_version": API_VERSION,
                    "actual_version": "1.0",
                },
                "result_code": code,
                "result_subcode": subcode,
                "result_msg": text,
                "error_stack": "",
                "error_data": {},
            },
            "data": data,
        }
        raw = json.dumps(document).encode()
        # As gunicorn's plain workers do. The SDK forks a process that reports, and the two share
        # their connections: over one that is kept, each may take the other's answer and wait.
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.send_response(code)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(raw)))
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(raw)

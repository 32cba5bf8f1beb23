"""The API server's HTTP side: who asks, what is refused, what goes wrong on purpose."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.doubles.kubernetes.calls import Call, Fault
from tests.doubles.kubernetes.certificates import make_certificates
from tests.doubles.kubernetes.resources import Resources
from tests.doubles.kubernetes.store import ApiError, Object

PATH = re.compile(
    r"/(?:api/v1|apis/[^/]+/v1)(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)


class ApiServer:
    """Listens, knows who may what, and keeps a record of every call."""

    def __init__(self, resources: Resources, pki: Path, *, tls: bool) -> None:
        self.resources = resources
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.denied: Callable[[str, str, str], bool] = lambda user, verb, resource: False
        self.tokens: dict[str, str] = {"admin": "admin"}
        self.on_call: Callable[[Call], None] = lambda call: None
        self.stopping = resources.stopping
        self.tls = tls
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        if tls:
            self.ca, certificate, key = make_certificates(pki)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def _handler(api) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has its own self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length) if length else b""
                body = json.loads(raw) if raw else None
                try:
                    found = api.answer(self, url.path, query, body)
                except ApiError as error:
                    found = (error.code, error.status())
                if found is None:
                    return
                code, payload = found
                data = (
                    payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
                )
                kind = "text/plain" if isinstance(payload, str) else "application/json"
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _answer  # noqa: N815

        return Handler

    def answer(
        self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: Object | None
    ) -> tuple[int, Object | str] | None:
        if path == "/version":
            return 200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2"}
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            asked = (body or {})["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            who = request.headers.get("Impersonate-User", "admin").rpartition(":")[2]
            allowed = not self.denied(who, asked["verb"], resource)
            return 201, {**(body or {}), "status": {"allowed": allowed}}
        parsed = PATH.fullmatch(path)
        if not parsed:
            raise ApiError(404, "NotFound", f"no such path: {path}")
        plural, name, sub = parsed["plural"], parsed["name"] or "", parsed["sub"] or ""
        place = parsed["ns"] or ""
        if plural == "namespaces" and not name and place:
            name, place = place, ""
        token = (request.headers.get("Authorization") or "").partition(" ")[2]
        user = self.tokens.get(token, "")
        call = Call(
            method=request.command,
            plural=plural,
            name=name,
            sub=sub,
            user=user,
            at=time.monotonic(),
        )
        self.calls.append(call)
        self.on_call(call)
        fault = self._fault(call)
        if fault and not fault.after:
            self.stopping.wait(fault.hang_s)
            call.code = fault.code
            raise ApiError(fault.code, fault.reason, fault.message)
        if not user:
            call.code = 401
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if self.denied(user, call.verb, call.resource):
            call.code = 403
            raise ApiError(
                403,
                "Forbidden",
                f'{plural} "{name}" is forbidden: User "system:serviceaccount:{place}:{user}"'
                f' cannot {call.verb} resource "{call.resource}" in API group ""',
            )
        try:
            found = self.resources.serve(request, call, place, query, body or {})
        except ApiError as error:
            call.code = error.code
            raise
        call.code = found[0] if found else 200
        if fault:
            self.stopping.wait(fault.hang_s)
            raise ApiError(fault.code, fault.reason, fault.message)
        return found

    def _fault(self, call: Call) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.applies(call):
                fault.times -= 1
                return fault
        return None

"""A real object store for the tests: SeaweedFS, which speaks S3, and a proxy that spoils answers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WEED = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
_IDENTITY = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": "AK", "secretKey": "SECRETKEY"}],
            "actions": ["Admin", "Read", "Write", "List"],
        },
        {"name": "anonymous", "actions": ["Admin", "Read", "Write", "List"]},
    ]
}


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def seaweedfs(folder):
    """The address of an S3 server that keeps its data in *folder*."""
    for attempt in range(3):  # somebody else may take a port that was free
        server, address = _start(folder / str(attempt))
        try:
            if _writes(address):
                yield address
                return
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    raise TimeoutError((folder / "2" / "log").read_text()[-2000:])


def _start(folder):
    folder.mkdir(parents=True)
    config = folder / "s3.json"
    config.write_text(json.dumps(_IDENTITY))
    names = [
        f"{name}.port{kind}"
        for name in ("master", "volume", "filer", "s3")
        for kind in ("", ".grpc")
    ]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        WEED,
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
    ]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += [
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
        "-volume.max=20",
        "-master.volumeSizeLimitMB=64",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    return server, f"127.0.0.1:{ports['s3.port']}"


def _writes(address):
    """Whether the server takes an object within half a minute; it starts in ten seconds."""
    import obstore
    from obstore.store import from_url

    store = from_url("s3://ready", retry_config={"max_retries": 0}, **access(address))
    for _ in range(150):
        try:
            obstore.put(store, "ready", b"yes")
        except Exception:
            time.sleep(0.2)
        else:
            return True
    return False


def access(address):
    """The options that reach the server."""
    return {
        "endpoint": f"http://{address}",
        "access_key_id": "AK",
        "secret_access_key": "SECRETKEY",
        "region": "us-east-1",
        "client_options": {"allow_http": True},
    }


def anonymous_access(address):
    """As `access`, without a signature, which would cover the conditions too."""
    given = access(address)
    return {name: given[name] for name in ("endpoint", "region", "client_options")} | {
        "skip_signature": True
    }


def new_location():
    return f"s3://tests/{uuid.uuid4().hex}"


class Proxy:
    """Stands before the server. *spoil* is asked of each request and says what becomes of it.

    Its answers: None, "reset" (nothing is forwarded), "lost" (the server does it, the reply is
    dropped), "cut" (half of the body), "unconditional" (conditions are dropped), or a status.
    """

    def __init__(self, address, spoil=lambda method, path: None):
        self.spoil, self.requests = spoil, []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except (ConnectionError, ValueError):
                    self.close_connection = True

            def do(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests.append((self.command, self.path))
                fate = proxy.spoil(self.command, self.path)
                if fate == "reset":
                    self.close_connection = True
                    return
                if isinstance(fate, int):
                    self.send_response(fate)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                headers = dict(self.headers)
                if fate == "unconditional":
                    headers = {k: v for k, v in headers.items() if not k.lower().startswith("if-")}
                headers = proxy.to_server(self.command, headers)
                upstream = HTTPConnection(address, timeout=30)
                upstream.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in headers.items():
                    upstream.putheader(name, value)
                upstream.endheaders(body)
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                if fate == "lost":
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in proxy.to_client(self.path, answer.getheaders()):
                    if name.lower() not in (
                        "content-length",
                        "transfer-encoding",
                        "connection",
                        "date",
                        "server",
                    ):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if fate == "cut" else data)
                self.close_connection = self.close_connection or fate == "cut"

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815  # http.server's names

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def to_server(self, method, headers):
        """The headers of a request as the server gets them."""
        del method
        return headers

    def to_client(self, path, headers):
        """The headers of an answer as the client gets them."""
        del path
        return headers

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class VersionsProxy(Proxy):
    """Speaks to its client as Google's XML interface does: a write names an object's version.

    https://cloud.google.com/storage/docs/xml-api/reference-headers has the two headers. No server
    that can be installed speaks it whole; what stands behind is an S3 server.
    """

    def __init__(self, address):
        self._versions = {}
        super().__init__(address)

    def to_server(self, method, headers):
        kept = {k: v for k, v in headers.items() if k.lower() != "authorization"}
        if method == "PUT":  # e_tags are no condition of a write there
            kept = {k: v for k, v in kept.items() if not k.lower().startswith("if-")}
        wanted = kept.pop("x-goog-if-generation-match", None)
        if wanted == "0":
            kept["If-None-Match"] = "*"
        elif wanted is not None:
            tags = {number: tag for (_, tag), number in list(self._versions.items())}
            kept["If-Match"] = tags.get(wanted, '"none"')
        return kept

    def to_client(self, path, headers):
        tag = dict(headers).get("ETag")
        if tag is None:
            return headers
        number = self._versions.setdefault((path, tag), f"{1000 + len(self._versions)}")
        return [*headers, ("x-goog-generation", number)]


def versions_access(address):
    """The options that reach a `VersionsProxy` without an account."""
    names = ("client_email", "private_key", "private_key_id")
    account = dict.fromkeys(names, "") | {
        "gcs_base_url": f"http://{address}",
        "disable_oauth": True,
    }
    return {"service_account_key": json.dumps(account), "client_options": {"allow_http": True}}

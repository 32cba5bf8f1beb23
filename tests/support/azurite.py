"""A real Azure Blob service for the tests: Microsoft's Azurite, which is a program for Node."""

import base64
import hashlib
import hmac
import re
import shutil
import subprocess
from contextlib import contextmanager
from email.utils import formatdate
from http.client import HTTPConnection

AZURITE = shutil.which("azurite-blob")
ACCOUNT = "devstoreaccount1"
# The account of every Azurite; Microsoft's documentation has it.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def azurite(folder):
    """The port of a service with a container named ``tests``."""
    command = [AZURITE, "--blobPort", "0", "--blobHost", "127.0.0.1", "--location", str(folder)]
    with subprocess.Popen(
        [*command, "--skipApiVersionCheck", "--disableTelemetry"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            port = None
            while port is None:
                line = server.stdout.readline()
                if not line:  # it ended
                    raise RuntimeError("azurite ended at once")
                found = re.search(r"listen\w+ (?:at|on) http://127\.0\.0\.1:(\d+)", line)
                port = int(found[1]) if found else None
            _make_container(port)
            yield port
        finally:
            server.kill()


def azure_access(port):
    """The options that reach the service."""
    return {
        "endpoint": f"http://127.0.0.1:{port}/{ACCOUNT}",
        "account_name": ACCOUNT,
        "account_key": KEY,
        "client_options": {"allow_http": True},
    }


def _make_container(port):
    """Azure has no anonymous way to make one, and obstore none at all."""
    now, version, path = formatdate(usegmt=True), "2021-12-02", f"/{ACCOUNT}/tests"
    headers = {"x-ms-date": now, "x-ms-version": version}
    signed = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{now}\nx-ms-version:{version}\n"
    signed += f"/{ACCOUNT}{path}\nrestype:container"
    digest = hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(
        "PUT", f"{path}?restype=container", headers=headers | {"Content-Length": "0"}
    )
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    connection.close()

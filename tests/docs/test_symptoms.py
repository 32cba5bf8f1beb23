"""The messages on the page of symptoms are the ones that people see, word for word.

They are looked for in the sources of the frameworks that are installed, in what was recorded on a
Kubernetes cluster, and in what Python and the operating system say here.
"""

import ast
import asyncio
import errno
import json
import os
import re
import signal
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "symptoms.md"
SOURCES = [
    "zenml.integrations.kubernetes.kube_utils",
    "zenml.integrations.kubernetes.orchestrators.kubernetes_orchestrator_entrypoint",
    "zenml.zen_stores.sql_zen_store",
    "clearml.task",
    "clearml.automation.job",
    "kserve.errors",
    "anyio._core._sockets",
    "joblib.memory",
    "joblib._store_backends",
    "tempfile",
]
WINDOWS = (
    "[WinError 32] The process cannot access the file because it is being used by another process"
)
"""What Windows says for ERROR_SHARING_VIOLATION; nothing here can say it."""
LEAST = 20
"""Letters that a message has at least, on the page and in a source: "… …" is in everything."""
ERRNO = re.compile(r"^\[Errno \d+\] ")


def messages():
    """The quoted texts of the first column that read like messages, without the class."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            for text in re.findall(r"`([^`]+)`", line.split("|")[1]):
                bare = re.sub(r"^\w+(Error|Warning): ", "", text)
                if " " in bare and len(bare) >= LEAST:
                    yield bare


def source_of(module):
    """The file of *module*, which is not imported."""
    package, *rest = module.split(".")
    origin = Path(find_spec(package).origin)
    return origin.parent.joinpath(*rest).with_suffix(".py") if rest else origin


def texts_of(path):
    """The texts in a Python file; what is formatted into them is ``…``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%\w|\{\w*\}", "…", node.value)


def recorded(value):
    """Every text in JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from recorded(inner)


def said_by_python():
    """What Python and the system say to what the page is about."""
    found = [f"[Errno {number}] {os.strerror(number)}" for number in errno.errorcode]

    def off_the_main_thread():
        loop = asyncio.new_event_loop()
        for call in (signal.signal, loop.add_signal_handler):
            with pytest.raises((ValueError, RuntimeError)) as raised:
                call(signal.SIGTERM, signal.SIG_DFL)
            found.append(str(raised.value))
        loop.close()

    async def in_a_loop():
        inner = asyncio.sleep(0)
        with pytest.raises(RuntimeError) as raised:
            asyncio.run(inner)
        inner.close()
        found.append(str(raised.value))

    thread = threading.Thread(target=off_the_main_thread)
    thread.start()
    thread.join()
    asyncio.run(in_a_loop())
    with pytest.raises(AttributeError) as raised:
        None.tzinfo  # noqa: B018  # the message is what is wanted
    return [*found, str(raised.value)]


def plain(text):
    """*text* without marks around what varies, which Markdown cannot show within code."""
    return re.sub(r"\s+", " ", re.sub(r"[`'\"]?…[`'\"]?", "…", text)).strip()


def pattern_of(text):
    return re.compile(".*".join(re.escape(part) for part in plain(text).split("…")))


def test_every_message_is_one_that_somebody_writes():
    known = [WINDOWS, *said_by_python()]
    for module in SOURCES:
        known += texts_of(source_of(module))
    known += texts_of(ROOT / "tests/doubles/kubernetes/admission.py")
    for path in sorted((ROOT / "tests/data/kubernetes").glob("*.json")):
        known += recorded(json.loads(path.read_text(encoding="utf-8")))
    known = {text for text in map(plain, known) if len(text.replace("…", "")) >= LEAST}
    formats = [pattern_of(text) for text in known if "…" in text]
    quoted = list(messages())
    assert len(quoted) > LEAST
    unknown = [
        text
        for text in quoted
        if not any(pattern_of(text).search(found) for found in known)
        and not any(found.fullmatch(ERRNO.sub("", text)) for found in formats)
    ]
    assert unknown == []


WORDS = (
    *("OOMKilled", "137", "WinError 32", "No space left", "backoff limit", "Pending"),
    *("deadlock", "nobody listens to `services`", "queued", "status is `created`", "aborted"),
    *("502", "rolling update", "preStop", "Knative", "NotImplementedError", "SIGTERM", "notebook"),
    *("NFS", "Stale file handle", "wrong", "`import joblib_ext`", "inspect.signature", "grows"),
)
"""What people type into a search box when they meet one of the faults."""


@pytest.mark.parametrize("word", WORDS)
def test_words_that_people_search_for_are_in_a_row_that_links_to_a_page(word):
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if word in line]
    assert any(row.startswith("|") and re.search(r"\]\([\w/-]+\.md", row) for row in rows)

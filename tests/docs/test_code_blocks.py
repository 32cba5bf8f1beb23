"""Every code block of the documentation runs.

The ``python`` blocks of a page run in order, in one process, in an empty folder. In ``console``
blocks every line that starts with ``$ `` runs in a shell and must exit with 0, or with the
status that a comment at its end names: ``$ mlops-ext clearml check bad.yaml  # exits with 1``.
Lines below it are in its output.
A block of any kind with a title (``title="plan.yaml"``) is a file of that name.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w+)(?P<attributes>[^\n]*)\n(?P<body>.*?)^ *```",
    re.MULTILINE | re.DOTALL,
)
TITLE = re.compile(r'title="([\w.-]+)"')
EXITS = re.compile(r"#\s*exits with (\d+)\s*$")


def blocks(page):
    """The blocks of *page* in order: what to do with each ("file", "python", "console")."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        indent = match["indent"]
        lines = [line.removeprefix(indent) for line in match["body"].splitlines()]
        body = "\n".join(lines) + "\n"
        title = TITLE.search(match["attributes"])
        if title:
            yield "file", title[1], body
        elif match["kind"] in ("python", "console"):
            yield match["kind"], "", body


def grouped(page):
    """The blocks of *page*, files first where all others are Python, which share one process."""
    found = list(blocks(page))
    script = "".join(body for kind, _, body in found if kind == "python")
    if not script or any(kind == "console" for kind, *_ in found):
        return found
    return [*(each for each in found if each[0] == "file"), ("python", "", script)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page, tmp_path):
    found = grouped(page)
    if all(kind == "file" for kind, *_ in found):
        pytest.skip("no block to run on this page")
    bin_folder = Path(sys.executable).parent
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MLOPS_EXT")},
        "PATH": os.pathsep.join([str(bin_folder), os.environ["PATH"]]),
        "HOME": str(tmp_path),
        "ZENML_CONFIG_PATH": str(tmp_path / "zenml"),
        "ZENML_ANALYTICS_OPT_IN": "false",
    }
    (tmp_path / "work").mkdir()
    for kind, name, body in found:
        if kind == "file":
            (tmp_path / "work" / name).write_text(body, encoding="utf-8")
        elif kind == "python":
            script = tmp_path / "block.py"
            script.write_text(body, encoding="utf-8")
            _run([sys.executable, str(script)], environ, tmp_path, 0, body)
        else:
            output = ""
            for line in body.splitlines():
                if line.startswith("$ "):
                    status = EXITS.search(line)
                    command = EXITS.sub("", line[2:])
                    expected = int(status[1]) if status else 0
                    output = _run(["sh", "-c", command], environ, tmp_path, expected, line)
                else:
                    assert line in output.splitlines(), output


def _run(command, environ, folder, status, shown):
    done = subprocess.run(
        command,
        env={**environ, "PYTHONPATH": str(folder / "work")},
        cwd=folder / "work",
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == status, f"{shown}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout

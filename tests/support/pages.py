"""The code blocks of a Markdown page, and how they are run; needs nothing but the standard library.

The ``python`` blocks of a page run in order, in one process, in an empty folder. In ``console``
blocks every line that starts with ``$ `` runs in a shell and must exit with 0, or with the
status that a comment at its end names: ``$ mlops-ext clearml check bad.yaml  # exits with 1``.
Lines below it are in its output; ``…`` stands for anything.
A block of any kind with a title (``title="plan.yaml"``) is a file of that name.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
EXTRAS = ("zenml", "clearml", "kserve", "joblib")
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w+)(?P<attributes>[^\n]*)\n(?P<body>.*?)^ *```",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([\w.-]+)"')
_EXITS = re.compile(r"#\s*exits with (\d+)\s*$")


def blocks(text):
    """The blocks of *text* in order: what to do with each ("file", "python", "console").

    Files come first where all others are Python, which share one process.
    """
    found = []
    for match in _BLOCK.finditer(text):
        lines = [line.removeprefix(match["indent"]) for line in match["body"].splitlines()]
        body = "\n".join(lines) + "\n"
        title = _TITLE.search(match["attributes"])
        if title:
            found.append(("file", title[1], body))
        elif match["kind"] in ("python", "console"):
            found.append((match["kind"], "", body))
    script = "".join(body for kind, _, body in found if kind == "python")
    if not script or any(kind == "console" for kind, *_ in found):
        return found
    return [*(each for each in found if each[0] == "file"), ("python", "", script)]


def parts(extra):
    """The texts that must work with *extra* alone ("": with none), by a name to tell them by.

    Pages at the top, and that of the command line, use several extras.
    """

    def owner(name):
        return next((each for each in EXTRAS if each in name.lower()), "")

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name == "README.md":
            for section in re.split(r"^(?=##+ )", text, flags=re.MULTILINE):
                title = section.partition("\n")[0].strip("# ")
                if owner(title.partition(":")[0]) == extra:
                    yield f"README.md, {title}", section
        elif page.parent.name != "docs" and page.name != "cli.md" and owner(page.name) == extra:
            yield str(page.relative_to(ROOT)), text


def run(text, folder):
    """Run the blocks of *text* with this interpreter's commands; files are in *folder*.

    Raises:
        AssertionError: a block ends with another status, or prints something else, than it says.
    """
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MLOPS_EXT")},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(folder),
        "ZENML_CONFIG_PATH": str(folder / "zenml"),
        "ZENML_ANALYTICS_OPT_IN": "false",
    }
    work = folder / "work"
    work.mkdir()

    def execute(command, status, shown):
        done = subprocess.run(
            command,
            env={**environ, "PYTHONPATH": str(work)},
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        tail = f"{shown}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == status, tail
        return done.stdout + done.stderr

    for kind, name, body in blocks(text):
        if kind == "file":
            (work / name).write_text(body, encoding="utf-8")
        elif kind == "python":
            script = folder / "block.py"
            script.write_text(body, encoding="utf-8")
            execute([sys.executable, str(script)], 0, body)
        else:
            output = ""
            for line in body.splitlines():
                if line.startswith("$ "):
                    status = _EXITS.search(line)
                    command = _EXITS.sub("", line[2:])
                    output = execute(["sh", "-c", command], int(status[1]) if status else 0, line)
                else:
                    pattern = ".*".join(map(re.escape, line.split("…")))
                    shown = [re.sub(r"\x1b\[\d*m", "", told) for told in output.splitlines()]
                    assert any(re.fullmatch(pattern, told) for told in shown), f"{line}\n{output}"

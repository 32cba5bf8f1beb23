"""Run by an environment that has the wheel, alone or with one extra: what is promised is there.

What the README and the pages of the documentation say of that extra is typed and must work.

``python installed.py [EXTRA]``
"""

import importlib
import importlib.resources
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("mlops_ext", "zenml_ext", "clearml_ext", "kserve_ext", "joblib_ext")
FRAMEWORKS = {"zenml", "clearml", "kserve", "joblib"}
COMMAND = Path(sys.executable).with_name("mlops-ext")


def say(*arguments: str) -> str:
    done = subprocess.run(
        [COMMAND, *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"mlops-ext {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def main(extra: str = "") -> None:
    for name in PACKAGES:
        module = importlib.import_module(name)
        assert "site-packages" in str(module.__file__), module.__file__
        assert importlib.resources.files(module).joinpath("py.typed").is_file(), name
    imported = {*FRAMEWORKS, "numpy"} & set(sys.modules)
    assert not imported, f"importing the packages imported {imported}"
    if extra:
        package = importlib.import_module(f"{extra}_ext")
        for name in getattr(package, "__all__", ()):
            getattr(package, name)
        importlib.import_module(extra)
    if extra == "zenml":  # README: the first request is learnt from earlier runs
        from zenml_ext.memory.policy import policy_for
        from zenml_ext.settings import OomSettings

        policy = type(policy_for(OomSettings())).__name__
        assert policy == "HistoryPolicy", policy
    for arguments in (("--version",), ("list",), ("doctor", "--json")):
        say(*arguments)
    if extra != "zenml":  # whose demo, the longest, is that of `make demo`
        say("demo")
    pages = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tests/support/pages.py"))
    for name, text in pages["parts"](extra):
        if any(kind != "file" for kind, *_ in pages["blocks"](text)):
            print(f"  {name}")
            with tempfile.TemporaryDirectory() as folder:
                pages["run"](text, Path(folder))
    print(f"the wheel works with {f'the extra {extra}' if extra else 'no extra'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

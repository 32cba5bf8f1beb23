"""The reference names every option, every setting with its default, and every public name."""

import dataclasses
import importlib
import re
from pathlib import Path

import click
import pytest

from mlops_ext.cli.root import root

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"

SETTINGS = {
    "cli.md": "mlops_ext.settings:CoreSettings",
    "memory_policy.md": "mlops_ext.memory:MemorySettings",
    "clearml.md": "clearml_ext.settings:ClearmlSettings",
    "kserve.md": "kserve_ext.settings:KServeSettings",
    "joblib.md": "joblib_ext:SharedOptions",
}
ARGUMENTS_OF_MEMORY = {"compress", "mmap_mode", "secrets_id"}
"""Fields of joblib's options that users give as arguments of ``Memory``, and one they do not."""

PUBLIC = [
    *(f"mlops_ext.{name}" for name in ("errors", "patching", "memory", "memory.history")),
    *(
        f"mlops_ext.{name}"
        for name in ("queues.check", "shutdown", "files", "tempdirs", "settings")
    ),
    *(f"mlops_ext.{name}" for name in ("hookspecs", "extensions.activation", "doctor", "demo")),
    *("mlops_ext.extensions.discovery", "clearml_ext", "kserve_ext", "joblib_ext"),
]


def commands(command, names=("mlops-ext",)):
    """Every command without commands of its own, with its whole name."""
    if not isinstance(command, click.Group):
        yield " ".join(names), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        yield from commands(command.get_command(context, name), (*names, name))


def section(title):
    """The text of the command line's page below *title*, up to the next heading."""
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    parts = re.split(r"^#{2,3} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(title, "")


def test_the_command_line_page_has_every_command_and_every_option():
    for name, command in commands(root):
        text = section(name)
        assert text, f"docs/reference/cli.md has no section for {name}"
        told = set(re.findall(r"^\| `(--[\w-]+)", text, re.MULTILINE))
        has = {param.opts[0] for param in command.params if isinstance(param, click.Option)}
        assert told == has, name


def test_the_command_line_page_tells_defaults():
    for name, command in commands(root):
        rows = re.findall(
            r"^\| `(--[\w-]+)[^|]*\| ([^|]+) \| [^|]+ \|$", section(name), re.MULTILINE
        )
        told = {option: default.strip("`") for option, default in rows}
        for param in command.params:
            if isinstance(param, click.Option) and param.show_default:
                default = param.default
                text = f"{default:g}" if isinstance(default, float) else str(default)
                assert told.get(param.opts[0]) == text, f"{name} {param.opts[0]}"


def as_told(default):
    """A default as the tables tell it."""
    if default is None or default in ("", ()):
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return default
    human = getattr(default, "human", None)
    return human or (f"{default:g}" if isinstance(default, float) else str(default))


@pytest.mark.parametrize("page", SETTINGS)
def test_every_setting_and_its_default_is_told(page):
    module, _, name = SETTINGS[page].partition(":")
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    text = (REFERENCE / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)
    told = {name: default.strip("`") for name, default in rows}
    expected = {f.name: as_told(f.default) for f in fields if f.name not in ARGUMENTS_OF_MEMORY}
    assert {name: told.get(name) for name in expected} == expected


def test_every_public_name_is_in_a_reference_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.rglob("*.md")))
    directive = re.compile(r"^::: ([\w.]+)\n((?:    .*\n)*)", re.MULTILINE)
    shown = {}
    for module, options in directive.findall(pages):
        members = re.search(r"members: \[(.*)\]", options)
        shown[module] = {part.strip() for part in members[1].split(",")} if members else None
    missing = []
    for module in PUBLIC:
        if module not in shown:
            missing.append(module)
        elif shown[module] is not None:
            names = set(importlib.import_module(module).__all__)
            missing += sorted(f"{module}.{name}" for name in names - shown[module])
    assert missing == []


def test_the_core_page_names_what_the_package_itself_offers():
    import mlops_ext

    page = (REFERENCE / "core" / "index.md").read_text(encoding="utf-8")
    assert [name for name in mlops_ext.__all__ if f"`mlops_ext.{name}" not in page] == []

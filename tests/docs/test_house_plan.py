"""The page for contributors draws the house as it is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
WAYS = re.findall(r"\*\*[^*]+\*\* \(`(plugins/\w+/)`\)[^`]*```text\n(.*?)```", PAGE, re.DOTALL)
LONGEST_WAY = 10


def places(package, way):
    """Every file or folder that a way names, as it may be read: from the package or from core."""
    folder = ROOT / package
    for line in way.splitlines():
        for part in re.split(r"[→,;:()]", line):
            for core, name in re.findall(
                r"(core )?\b([a-z_]+(?:/[a-z_]+)*(?:\.py|/))(?=\s|$)", part
            ):
                yield name, (ROOT / "core/mlops_ext") if core else folder


def test_the_page_shows_four_ways():
    assert len(WAYS) == 4


@pytest.mark.parametrize(("package", "way"), WAYS, ids=[package for package, _ in WAYS])
def test_every_place_on_a_way_exists(package, way):
    assert way.count("\n") <= LONGEST_WAY
    found = list(places(package, way))
    assert found
    for name, home in found:
        below = [p for p in home.rglob("*") if p.as_posix().endswith("/" + name.rstrip("/"))]
        assert below, f"{package}: {name}"

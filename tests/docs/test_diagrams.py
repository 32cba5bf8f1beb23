"""The documentation's pictures are what the code draws today."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_pictures_are_up_to_date(tmp_path):
    drawn = runpy.run_path(str(DOCS / "draw.py"))
    drawn["main"](tmp_path)
    here = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "images").iterdir()}
    assert here == kept, "run: python docs/draw.py"


def test_every_picture_is_shown_somewhere():
    pages = "".join(
        page.read_text(encoding="utf-8")
        for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
    )
    assert [p.name for p in (DOCS / "images").iterdir() if f"images/{p.name})" not in pages] == []

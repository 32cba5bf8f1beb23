"""Tables of the README that are made from data. Run this file to write them anew.

The supported ranges come from the extensions' own `Framework`, the versions that the tests were
run with from ``tests/versions.toml``: a row counts where ``seen`` says when it passed.
"""

import re
import sys
from pathlib import Path

from mlops_ext.discovery import extensions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- versions: begin -->", "<!-- versions: end -->"


def versions_table():
    """The table of supported ranges and tested versions, as Markdown."""
    rows = tomllib.loads((ROOT / "tests/versions.toml").read_text(encoding="utf-8"))["row"]
    lines = ["| framework | supported | tests passed with (Python) |", "|---|---|---|"]
    for support in extensions().frameworks():
        framework = support.framework
        seen = [
            f"{row['pins'][0].partition('==')[2]} ({row['python']})"
            for row in rows
            if row["framework"] == framework.name and row.get("seen")
        ]
        lines.append(f"| {framework.name} | `{framework.supported}` | {', '.join(seen) or '-'} |")
    return "\n".join(lines)


def in_readme(text):
    """The table that stands in *text*."""
    return re.search(f"{BEGIN}\n(.*?)\n{END}", text, re.DOTALL)[1]


if __name__ == "__main__":
    readme = README.read_text(encoding="utf-8")
    README.write_text(readme.replace(in_readme(readme), versions_table()), encoding="utf-8")

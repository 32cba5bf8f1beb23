"""Tables of the README that are made from data. Write them anew with
``python -m tests.support.tables``.

The supported ranges come from the extensions' own `Framework`, the versions that the tests were
run with from ``tests/versions.toml``: a row counts where ``seen`` says when it passed.
"""

import sys
from pathlib import Path

from mlops_ext.extensions.discovery import extensions

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
    return text.partition(f"{BEGIN}\n")[2].partition(f"{END}")[0].rstrip("\n")


if __name__ == "__main__":
    readme = README.read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n{versions_table()}\n{END}{after}", encoding="utf-8")

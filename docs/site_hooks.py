"""What mkdocs does for this site beside rendering Markdown: a hook named in mkdocs.yml.

The repository's address comes from ``[project.urls]``, where it stands once. ``CHANGELOG.md`` and
``SECURITY.md``, which stand beside the code, become pages. Cells of tables carry the name of their
column, for narrow windows; pictures are links to themselves.
"""

import html
import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"changelog.md": "CHANGELOG.md", "security-policy.md": "SECURITY.md"}
"""Pages of the site that stand at the root of the repository."""

TABLE = re.compile(r"<table(?: class=\"\")?>.*?</table>", re.DOTALL)
PICTURE = re.compile(r'<img alt="[^"]*" src="([^"]+\.svg)"[^>]*>')


def on_config(config: Any) -> Any:
    """Take the repository's address from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    config.repo_url = tomllib.loads(text)["project"]["urls"]["Repository"]
    config.repo_name = config.repo_url.rpartition("/")[2]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Make pages of the documents that stand beside the code."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=of_the_site(text)))
    return files


def of_the_site(text: str) -> str:
    """*text* of a document at the root, with its links as they are from a page."""
    return text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")


def on_pre_page(page: Any, config: Any, **_: Any) -> Any:
    """Let "edit this page" of such a page lead to its document."""
    if page.file.src_uri in PAGES:
        page.edit_url = f"{config.repo_url}/edit/main/{PAGES[page.file.src_uri]}"
    return page


def on_page_content(content: str, **_: Any) -> str:
    """Name the column in each cell, and make each picture a link to itself."""
    content = TABLE.sub(lambda found: labelled(found[0]), content)
    return PICTURE.sub(lambda found: f'<a href="{found[1]}">{found[0]}</a>', content)


def labelled(table: str) -> str:
    """*table* with the text of its column's heading in each cell, as ``data-label``."""
    headings = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table, re.DOTALL)
    names = [re.sub(r"<[^>]+>", "", heading).strip() for heading in headings]

    def row(found: re.Match[str]) -> str:
        left = iter(names)

        def cell(_: re.Match[str]) -> str:
            name = html.escape(html.unescape(next(left, "")))
            return f'<td data-label="{name}"' if name else "<td"

        return re.sub(r"<td(?=[ >])", cell, found[0])

    return re.sub(r"<tr>.*?</tr>|<tr [^>]*>.*?</tr>", row, table, flags=re.DOTALL)

"""The documentation's site: one address of the repository, tables that can be read on a telephone."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WIDEST = 108
"""Letters of a ```text block in one line: so many fit into 1024 pixels."""
HOOKS = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]


def test_the_repositorys_address_stands_once_and_the_site_takes_it_from_there():
    config = HOOKS["on_config"](SimpleNamespace())
    assert config.repo_url == URLS["Repository"]
    assert config.repo_name == "mlops-ext"
    assert all(url.startswith(URLS["Repository"]) for url in URLS.values())
    for name in ("mkdocs.yml", "docs/site_hooks.py", "SECURITY.md"):
        assert URLS["Repository"] not in (ROOT / name).read_text(encoding="utf-8"), name


def test_each_cell_of_a_table_names_its_column():
    table = (
        "<table><thead><tr><th>you <em>see</em></th><th></th><th>a &lt; b</th></tr></thead>"
        '<tbody><tr><td>x</td><td>y</td><td style="text-align: right;">z</td></tr></tbody></table>'
    )
    shown = HOOKS["on_page_content"](f"<p>before</p>{table}<td>alone</td>")
    assert '<td data-label="you see">x</td><td>y</td>' in shown
    assert '<td data-label="a &lt; b" style="text-align: right;">z</td>' in shown
    assert shown.endswith("<td>alone</td>")


def test_a_table_of_highlighted_code_is_left_alone():
    code = '<table class="highlighttable"><tr><th>f</th></tr><tr><td>1</td></tr></table>'
    assert HOOKS["on_page_content"](code) == code


def test_a_picture_leads_to_itself_in_full_size():
    shown = HOOKS["on_page_content"]('<p><img alt="why" src="../../images/a.svg" /></p>')
    assert shown.startswith('<p><a href="../../images/a.svg"><img alt="why"')


@pytest.mark.parametrize(("page", "source"), HOOKS["PAGES"].items())
def test_links_of_documents_at_the_root_lead_to_pages_of_the_site(page, source):
    text = (ROOT / source).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:\s]+)\)", HOOKS["of_the_site"](text)):
        assert target in HOOKS["PAGES"] or (ROOT / "docs" / target).exists(), f"{page}: {target}"
    for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
        assert (ROOT / target).exists(), f"{source}: {target}"


def test_the_reader_chooses_light_or_dark():
    class Loader(yaml.SafeLoader):
        pass

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    palettes = yaml.load(text, Loader)["theme"]["palette"]
    assert [each.get("scheme") for each in palettes] == [None, "default", "slate"]
    assert all(each["toggle"]["name"] for each in palettes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_drawn_fits_a_tablet(page):
    """A browser measures it, in test_pages_in_a_browser.py; this says it sooner."""
    drawn = re.findall(
        r"^```text\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert [line for block in drawn for line in block.splitlines() if len(line) > WIDEST] == []

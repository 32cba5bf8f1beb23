"""Every page in headless Chromium, on a desk, a tablet and a telephone: nothing is cut or covered.

``nox -s site`` runs this in an environment with mkdocs and playwright; Chromium is the system's. With
the variable ``SCREENSHOTS``, a picture of each page and width is kept in that folder, to look at.
"""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {1400: 900, 1024: 768, 390: 844}
"""Widths in CSS pixels that are looked at, with the height of such a window."""
TALLEST = 15_000
"""Pixels: what is below this on a page is not asked whether something covers it."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

pytestmark = [pytest.mark.needs_chromium, pytest.mark.slow, pytest.mark.timeout(1800)]

CUT = """() => {
  const found = [], wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > wide) found.push("the page itself scrolls sideways");
  for (const each of document.querySelectorAll(".md-content *")) {
    if (!each.getClientRects().length || each.closest("svg") || !each.textContent.trim()) continue;
    const drawn = each.closest(".language-text") !== null;
    const style = getComputedStyle(each), box = each.getBoundingClientRect();
    if (style.position === "absolute") continue;  // anchors and buttons that float beside
    const inner = each.scrollWidth > each.clientWidth + 1 && style.overflowX !== "visible";
    const outer = box.right > wide + 1 || box.left < -1;
    const said = `${each.tagName} ${each.className}: ${each.textContent.trim().slice(0, 60)}`;
    if (!drawn && (inner || outer)) found.push(said);
    if (wide < 700 && each.tagName === "TABLE" && box.width + 2 < each.parentElement.clientWidth)
      found.push("not as wide as the text: " + said);
    if (drawn && wide > 1000 && inner) found.push("drawn: " + said);
  }
  return found;
}"""
"""What is wider than its place. What is drawn with spaces may scroll, but only on a telephone."""

COVERED = """() => {
  const found = [];
  for (const each of document.querySelectorAll(
      ".md-content :is(p, li, td, th, h1, h2, h3, h4, pre > code)")) {
    const box = each.getClientRects()[0];
    if (!box || box.width < 2 || box.height < 2 || box.bottom > innerHeight) continue;
    const x = box.left + Math.min(4, box.width / 2), y = box.top + Math.min(8, box.height / 2);
    const top = document.elementFromPoint(x, y);
    if (top && !each.contains(top) && !top.contains(each))
      found.push(`${each.tagName} "${each.textContent.trim().slice(0, 40)}" is below ${top.className}`);
  }
  for (const button of document.querySelectorAll(".md-content pre button, .md-code__button")) {
    const place = button.getBoundingClientRect(), text = document.createRange();
    if (!place.width) continue;
    const code = button.closest("pre, .highlight").querySelector("code");
    const parts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
    while (parts.nextNode()) {
      const words = parts.currentNode.data;
      if (!words.trim()) continue;
      text.setStart(parts.currentNode, words.length - words.trimStart().length);
      text.setEnd(parts.currentNode, words.trimEnd().length);
      for (const box of text.getClientRects())
        if (Math.min(box.right, place.right) - Math.max(box.left, place.left) > 2 &&
            Math.min(box.bottom, place.bottom) - Math.max(box.top, place.top) > 2)
          found.push(`a button is above "${words.trim().slice(-40)}"`);
    }
  }
  return found;
}"""

OVERLAP = """() => {
  const found = [], texts = [...document.querySelectorAll("svg text")];
  const frame = document.documentElement.getBoundingClientRect();
  const boxes = texts.map((each) => each.getBoundingClientRect());
  boxes.forEach((box, at) => {
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
      found.push(`"${texts[at].textContent}" leaves the picture`);
    boxes.slice(at + 1).forEach((other, by) => {
      const wide = Math.min(box.right, other.right) - Math.max(box.left, other.left);
      const high = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
      if (wide > 1 && high > 4)
        found.push(`"${texts[at].textContent}" and "${texts[at + 1 + by].textContent}"`);
    });
  });
  return found;
}"""


def pages():
    """The pages of the site by their address, those that the site's hook makes among them."""
    written = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    names = [path.with_suffix("").as_posix() for path in written]
    names = [name.removesuffix("index").rstrip("/") for name in names]
    return sorted([*names, "changelog", "security-policy"])


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that logs nothing."""

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs mkdocs: nox -s site")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: nox -s site")
    command = next(filter(None, map(shutil.which, NAMES)), None)
    if not command:
        pytest.skip("no Chromium on PATH; on Debian: apt-get install chromium")
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=command, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=WIDTHS, ids=lambda width: f"{width}px")
def window(request, browser):
    width = request.param
    window = browser.new_page(viewport={"width": width, "height": WIDTHS[width]})
    yield window
    window.close()


@pytest.mark.parametrize("page", pages())
def test_nothing_on_the_page_is_cut_or_covered(page, window, site):
    elsewhere = []
    window.on("request", lambda request: elsewhere.append(request.url))
    width = window.viewport_size["width"]
    window.set_viewport_size({"width": width, "height": WIDTHS[width]})
    window.goto(f"{site}/{page}/" if page else f"{site}/")
    if os.environ.get("SCREENSHOTS"):
        name = f"{page.replace('/', '-') or 'home'}-{width}.png"
        window.screenshot(path=Path(os.environ["SCREENSHOTS"], name), full_page=True)
    assert window.evaluate(CUT) == []
    height = window.evaluate("document.documentElement.scrollHeight")
    window.set_viewport_size({"width": width, "height": min(height, TALLEST)})
    assert window.evaluate(COVERED) == []
    assert [url for url in elsewhere if not url.startswith((site, "data:", "blob:"))] == []


def test_the_switch_turns_the_page_dark(browser, site):
    window = browser.new_page(color_scheme="light")
    window.goto(f"{site}/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = window.evaluate(ground)
    for _ in range(2):  # from "as the system" to light, and to dark
        window.locator("form[data-md-component=palette] label:visible").click()
    window.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
    assert window.evaluate(ground) != light
    window.close()


def test_each_page_leads_to_its_source(browser, site):
    window = browser.new_page()
    for page, source in {
        "symptoms": "docs/symptoms.md",
        "changelog": "CHANGELOG.md",
        "reference/core": "docs/reference/core/index.md",
    }.items():
        window.goto(f"{site}/{page}/" if page else f"{site}/")
        link = window.locator("a.md-content__button[rel=edit]").get_attribute("href")
        assert link.endswith(f"/edit/main/{source}")
        repository = window.locator(".md-header a.md-source").get_attribute("href")
        assert link.startswith(f"{repository}/edit/")
    window.close()


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "docs/images").iterdir()))
def test_texts_of_a_picture_do_not_overlap_or_leave_it(name, browser):
    window = browser.new_page()
    window.goto((ROOT / "docs" / "images" / name).as_uri())
    assert window.evaluate(OVERLAP) == []
    window.close()

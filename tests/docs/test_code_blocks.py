"""Every code block of the documentation runs; `tests.support.pages` says how."""

import pytest
from tests.support.pages import PAGES, ROOT, blocks, run

LONG = {"tutorial.md", "zenml-local-oom.md"}
"""Pages that start ZenML six times and more; README.md shows in `make test` that it starts."""


def _page(path):
    marks = [pytest.mark.integration] if path.name in LONG else []
    return pytest.param(path, id=str(path.relative_to(ROOT)), marks=marks)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [_page(path) for path in PAGES])
def test_code_blocks_run(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    if all(kind == "file" for kind, *_ in blocks(text)):
        pytest.skip("no block to run on this page")
    run(text, tmp_path)

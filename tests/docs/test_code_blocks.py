"""Every code block of the documentation runs; `tests.support.pages` says how."""

import pytest
from tests.support.pages import PAGES, ROOT, blocks, run


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    if all(kind == "file" for kind, *_ in blocks(text)):
        pytest.skip("no block to run on this page")
    run(text, tmp_path)

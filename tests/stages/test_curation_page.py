"""The page of a corpus on a telephone, in a real browser: nothing is wider than the screen, no table is cut."""

import re

import pytest

from puna.data.curate import CurateConfig, curate
from puna.stages.page import curation
from puna.stages.page.html import table
from tests.post.preferences.browser import chromium, need_chromium
from tests.stages.texts import LONG_LICENCE, write_pages

OVER = """
const width = document.documentElement.clientWidth;
for (const part of document.querySelectorAll('details')) part.open = true;
return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width + 1)
  .map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40));
"""
CUT = """
return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => e.textContent.slice(0, 60));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    write_pages(root / "pages.jsonl")
    source = {"kind": "jsonl", "name": "a-source-with-quite-a-long-name", "path": root / "pages.jsonl"}
    steps = [{"kind": "pii"}, {"kind": "length"}, {"kind": "gopher_repetition"}, {"kind": "exact"}, {"kind": "minhash"}]
    corpus = curate(CurateConfig.model_validate({"sources": [source], "steps": steps}), root / "c", workers=1)
    (root / "report.html").write_text(curation.page(corpus, title="pages"))
    return root / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_a_telephone(page, dark):
    need_chromium()
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium(width=420, dark=dark) as driver:
        for width in (420, 390, 320):
            look = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", look)
            driver.get(page.as_uri())
            WebDriverWait(driver, 30).until(lambda d: LONG_LICENCE in d.page_source)
            assert driver.execute_script(OVER) == []
            assert driver.execute_script(CUT) == []


def test_a_table_of_many_columns_names_its_cells_and_stays_a_table_for_screen_readers():
    wide = table(["step", 'a "b"', "out", "text"], [["x", 1, 2, "<y>"]], numeric=[1])
    assert re.findall(r' data-column="([^"]*)"', wide) == ["step", "a &quot;b&quot;", "out", "text"]
    for role in ("table", "rowgroup", "row", "columnheader", "cell"):
        assert f'role="{role}"' in wide
    assert "&lt;y&gt;" in wide
    narrow = table(["step", "out"], [["x", 1]])
    assert "role=" not in narrow and "data-column" not in narrow

import time

import pytest

from puna.data.extract import html
from puna.data.extract.guard import ExtractionError, Guard
from puna.data.extract.html import ExtractionConfig, declared_rights, extract, licence_name

PAGE = """<html><head><title>T</title><meta name="robots" content="NoIndex, noai">
<meta name="tdm-reservation" content="1"><link rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/">
</head><body><nav><a href="/">Home</a></nav><main><article><h1>Caf\u00e9 de Paris</h1>
<p>The first paragraph of the article says something long enough to be the main content of this page.</p>
<pre><code>def f(x):
    return x + 1
</code></pre>
<p>Euler: <script type="math/tex">e^{i\\pi} + 1 = 0</script> and <math><semantics><mrow><mi>a</mi></mrow>
<annotation encoding="application/x-tex">\\frac{a}{b}</annotation></semantics></math> in the text of the page.</p>
<img src="x.png" alt="A plot of the loss"></article></main></body></html>"""


@pytest.mark.parametrize("charset", ["utf-8", "", "utf-8, text/html", "no such charset"])
def test_code_math_and_alternative_texts_stay_and_markup_goes(charset):
    text = extract(PAGE.encode(), charset, "resiliparse")["text"]
    assert "Caf\u00e9 de Paris" in text
    assert "    return x + 1" in text
    assert "$e^{i\\pi} + 1 = 0$" in text
    assert "$\\frac{a}{b}$" in text
    assert "A plot of the loss" in text
    assert "Home" not in text
    assert "<" not in text


def test_what_a_page_says_of_its_use_is_kept():
    rights = declared_rights(PAGE.encode(), PAGE.encode())
    assert rights == {"robots": "noindex, noai", "tdm_reservation": "1", "licence": "CC-BY-SA-4.0"}
    assert licence_name("https://creativecommons.org/publicdomain/zero/1.0/") == "CC0-1.0"


def test_trafilatura_is_an_option():
    pytest.importorskip("trafilatura")
    assert "first paragraph" in extract(PAGE.encode(), "", "trafilatura")["text"]


def test_a_page_that_takes_too_long_costs_itself_only():
    with Guard(ExtractionConfig(timeout_seconds=20)) as guard:
        assert "Euler" in guard.extract(PAGE.encode())["text"]
    with Guard(ExtractionConfig(timeout_seconds=1e-4)) as guard:
        start = time.monotonic()
        with pytest.raises(ExtractionError, match="took longer"):
            guard.extract(PAGE.encode())
        assert time.monotonic() - start < 10


def test_a_page_that_needs_too_much_memory_is_reported_and_the_next_one_is_read():
    huge = b"<html><body>" + b"<p>" * (8 << 20)
    with Guard(ExtractionConfig(memory_mib=400, timeout_seconds=60)) as guard:
        with pytest.raises(ExtractionError, match=r"memory|Failed to parse"):
            guard.extract(huge)
        assert "Euler" in guard.extract(PAGE.encode())["text"]


def test_no_extractor_is_imported_before_it_is_asked_for():
    assert not hasattr(html, "trafilatura")

import pytest

from puna.data.dedup.url import URL, UrlConfig, normal_url
from puna.data.document import Document
from tests.data.steps.barrier_bench import decide_on, kept


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTP://www.Example.com:80/a/?utm_source=x&b=2&a=1#part", "example.com/a?a=1&b=2"),
        ("https://example.com:443", "example.com/"),
        ("https://user@example.com/A", "example.com/A"),
        ("https://example.com:8080/", "example.com:8080/"),
        ("notes/a.txt", ""),
        ("", ""),
    ],
)
def test_addresses_that_lead_to_one_page_have_one_form(url, normal):
    assert normal_url(url) == normal


CORPUS = [
    Document("one", "s", "http://a.com/x", date="2020-01-01T00:00:00Z"),
    Document("two", "s", "https://www.a.com/x/", date="2021-01-01"),
    Document("three", "s", "path/x"),
    Document("four", "s", "path/x"),
    Document("five, longer", "s", "http://a.com/x"),
]


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_newest_capture_stays_and_paths_are_not_looked_at(parts):
    assert kept(decide_on(CORPUS, URL, UrlConfig(), parts=parts)) == [False, True, True, True, False]
    assert kept(decide_on(CORPUS, URL, UrlConfig(keep="first"), parts=parts)) == [True, False, True, True, False]
    assert kept(decide_on(CORPUS, URL, UrlConfig(keep="longest"), parts=parts)) == [False, False, True, True, True]


def test_an_address_of_earlier_data_is_not_taken_again(tmp_path):
    decide_on(CORPUS[:1], URL, UrlConfig(save_index=True), parts=1, report=tmp_path / "reports/url")
    decisions = decide_on(CORPUS, URL, UrlConfig(against=tmp_path), parts=2)
    assert kept(decisions) == [False, False, True, True, False]
    assert {r for d in decisions for r in d.reasons} == {"kept", "url: seen before"}

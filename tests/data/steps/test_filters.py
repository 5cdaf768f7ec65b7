import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from puna.data.document import Document
from puna.data.steps import gopher
from puna.data.steps.registry import STEPS, StepEntry
from puna.data.steps.step import KEPT
from tests.reference import repetition as naive

GOOD = (
    "The valley lies to the north of the town, and those who have walked there with a map know that the river bends "
    "twice before it meets the road. In spring the water is high. Farmers bring their animals up in June and leave in "
    "September, when the first snow can be seen on the peaks that stand behind the lake. Few houses have been built."
)


def _verdict(text, *filters, domain="prose", language="en"):
    document = Document(text, "source", "url", language=language, domain=domain)
    for values in filters:
        config = TypeAdapter(StepEntry).validate_python(values)
        if config.applies(document):
            config, step = config.for_language(language), STEPS[values["kind"]]
            verdict = step.judge(step.measure([document], config)[0], config)
            if not verdict.keep:
                return verdict
    return KEPT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, "kept"),
        ("", "gopher_quality: too few words"),
        ("one two three", "gopher_quality: too few words"),
        ("a b c d " * 20, "gopher_quality: short words"),
        ("abcdefghijklm " * 60, "gopher_quality: long words"),
        (GOOD + " ###" * 20, "gopher_quality: hash signs"),
        (GOOD + " and so on..." * 20, "gopher_quality: ellipses"),
        ("\n".join("- " + line for line in GOOD.split(". ")), "gopher_quality: bullet lines"),
        ("\n".join(line + "..." for line in GOOD.split(". ")), "gopher_quality: ellipsis lines"),
        (GOOD + " 1234 5678" * 20, "gopher_quality: words without letters"),
        ("casa perro gato mesa libro " * 20, "gopher_quality: few stop words"),
    ],
)
def test_gopher_quality_names_the_rule_that_dropped(text, reason):
    assert _verdict(text, {"kind": "gopher_quality"}).reason == reason


def test_words_are_what_white_space_separates():
    # with punctuation counted as words, fewer than 0.8 of this text's words would have a letter
    assert _verdict('"Well," the man said; "to be, to have: that is it!" ' * 10, {"kind": "gopher_quality"}).keep


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, "kept"),
        ("", "kept"),
        ("Six words that occur only once.", "kept"),
        ("same line\n" * 3 + "another", "gopher_repetition: duplicate lines"),
        ("same words here " * 30, "gopher_repetition: top 2-gram"),
        (GOOD + "\n" + GOOD, "gopher_repetition: duplicate lines"),
        (GOOD + "\n" + "Before it: " + GOOD, "gopher_repetition: duplicate 5-grams"),
    ],
)
def test_gopher_repetition_names_the_rule_that_dropped(text, reason):
    assert _verdict(text, {"kind": "gopher_repetition"}).reason == reason


_words = st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), max_size=40)


@given(_words, st.integers(2, 6))
def test_ngram_measures_equal_their_naive_twins(words, n):
    lengths = [len(w) for w in words]
    top = gopher.top_ngram_characters(gopher.count_ngrams(words, n), words, lengths)
    assert top == naive.top_ngram_characters(words, n)
    covered = gopher.duplicate_ngram_characters(words, lengths, range(n, n + 4))
    assert covered == {k: naive.duplicate_ngram_characters(words, k) for k in range(n, n + 4)}
    assert gopher.duplicate_ngram_characters(words, lengths, [n]) == {n: covered[n]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(x):\n    return x + 1\n", "kept"),
        ("", "code_shape: empty"),
        ("x = '" + "a" * 1000 + "'\n" + "y = 1\n" * 30, "code_shape: long line"),
        ("\n".join(["x = " + "1 + " * 40 + "1"] * 5), "code_shape: mean line length"),
        ("{}[]();,.<>\n" * 10 + "ab", "code_shape: few letters and digits"),
        ("# This file is auto-generated. Do not edit.\nx = 1\n", "code_shape: generated"),
    ],
)
def test_code_shape_names_the_rule_that_dropped(text, reason):
    assert _verdict(text, {"kind": "code_shape"}, domain="code").reason == reason


def test_binary_data_is_not_text():
    assert _verdict("\x00\x01\x02 text", {"kind": "non_text"}).reason == "non_text: control characters"
    assert (
        _verdict("Tab\tand\nline ends\r\nare text, so is é, and one \ufffd in many" * 4, {"kind": "non_text"}).keep
        is False
    )
    assert _verdict("Tab\tand\nline ends\r\nare text, and so is é", {"kind": "non_text"}).keep


def test_length_measures_what_is_left_without_outer_white_space():
    assert _verdict("  ab \n", {"kind": "length", "min_characters": 3}).value == 2
    assert _verdict("abcd", {"kind": "length", "max_characters": 3}).reason == "length: too long"


def test_the_first_no_decides_and_filters_keep_to_their_domains_and_languages():
    short = {"kind": "length", "min_characters": 100}
    assert _verdict("x", short, {"kind": "gopher_quality"}).reason == "length: too short"
    assert _verdict("x", short | {"domains": ["code"]}).keep
    assert _verdict("x", short | {"languages": ["de"]}).keep
    assert not _verdict("x", short | {"domains": ["prose"], "languages": ["en"]}).keep


def test_a_language_can_have_its_own_thresholds():
    german = {"kind": "gopher_quality", "by_language": {"de": {"stop_words": ["und", "die", "der"], "min_words": 5}}}
    text = "Die Ziege und der Wolf gingen gemeinsam zum Brunnen im Tal."
    assert _verdict(text, german, language="de").keep
    assert _verdict(text, german, language="en").reason == "gopher_quality: too few words"

"""Stop texts over every way to cut a text into pieces."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.infer.stop_text import StopText


def run(stops, pieces):
    watch = StopText(stops)
    shown = []
    for piece in pieces:
        shown.append(watch.push(piece))
        if watch.found:
            break
    if not watch.found:
        shown.append(watch.finish())
    return shown, watch.found


def naive(stops, text):
    places = [m.start() for s in stops if (m := re.search(re.escape(s), text))]
    return text[: min(places)] if places else text


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.text("abc", max_size=4), max_size=8))
def test_any_cutting_gives_the_text_before_the_first_stop(stops, pieces):
    shown, found = run(stops, pieces)
    whole = "".join(pieces)
    seen = next(
        (i for i in range(len(pieces) + 1) if any(s in "".join(pieces[:i]) for s in stops)), len(pieces)
    )  # text after the piece that completes a stop is never looked at
    assert "".join(shown) == naive(stops, "".join(pieces[:seen]))
    assert found == any(s in whole for s in stops)


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.text("abc", max_size=20))
def test_what_was_shown_is_never_taken_back(stops, text):
    shown, _ = run(stops, text)
    assert not any(s in "".join(shown) for s in stops)


def test_text_that_cannot_begin_a_stop_is_shown_at_once():
    watch = StopText(["END"])
    assert watch.push("hello E") == "hello "
    assert watch.push("N") == ""
    assert watch.push("x") == "ENx"
    assert watch.push("EN") == ""
    assert watch.finish() == "EN"


def test_without_stops_nothing_is_held_back():
    watch = StopText([])
    assert watch.push("anything") == "anything" and watch.finish() == ""


def test_nothing_is_shown_after_a_stop():
    watch = StopText(["."])
    assert watch.push("a.b") == "a"
    assert watch.push("c") == "" and watch.finish() == ""


def test_an_empty_stop_is_our_own_fault():
    with pytest.raises(AssertionError):
        StopText([""])

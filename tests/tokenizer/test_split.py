import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from puna.tokenizer.split import MAX_CHARACTERS, MAX_RUN, PATTERN, chunks, official_pieces
from tests.reference import bpe_naive

CLASSES = st.sampled_from(
    ["a", "é", "1", "1234", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "!", "...", "'s", "中", "\x1c"]
)


def test_pattern_is_the_one_of_the_naive_twin():
    assert bpe_naive.PATTERN.pattern == PATTERN


@given(st.lists(CLASSES, max_size=40).map("".join), st.integers(1, 10))
def test_chunks_split_into_the_same_pretokens_as_the_whole(text, characters):
    parts = list(chunks(text, characters=characters))
    assert "".join(parts) == text
    assert [word for part in parts for word in regex.findall(PATTERN, part)] == regex.findall(PATTERN, text)


def test_chunks_are_short_where_there_is_space_to_cut():
    assert max(map(len, chunks("word " * 1000, characters=50))) <= 60


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short",
        "a" * MAX_RUN,
        "a" * (MAX_RUN + 1),
        "b " + "a" * (2 * MAX_RUN + 7) + " tail",
        " " * (MAX_RUN + 1) + "x",
        "\n\t" * MAX_RUN,
        "x" * (MAX_RUN - 1) + " " + "y" * (MAX_RUN + 3),
        "word " * 100_000,
        "z" * (MAX_CHARACTERS - 5) + " " + "q" * 30_000,
        "w " * (MAX_CHARACTERS // 2) + "v" * (MAX_RUN + 1),
        "ab\x1c" * 9000 + "\u3000" * 26_000,
    ],
    ids=range(12),
)
def test_long_runs_are_cut_where_the_official_tokenizer_cuts(text):
    assert official_pieces(text) == bpe_naive.official_pieces(text)

"""Words as numbers: many texts at once, no regular expression, no Python loop over words.

The near-copy search, the substring search, decontamination, TF-IDF and the linear classifier all begin here. A batch of
texts becomes one array of code points; two tables say which of them make words and what their lower case is. A word's
hash is a difference of prefix sums of `code * B^place` modulo 2^64, divided by `B^start`, and mixed, so that equal
words have equal hashes wherever they stand.

A word is a run of letters, digits and marks. In scripts that do not put spaces between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese, Tibetan) every character is a word of its own: split on white space, a page of Japanese would be
one.
"""

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_LAST_CODE = 0x323B0  # end of the assigned ideographs (Unicode 15.1); above it nothing makes words
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9D),
    (0x20000, 0x323AF),
)
_BATCH_CHARACTERS = 1 << 16  # the arrays of a batch fit the second-level cache


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a batch of texts.

    Attributes:
        hashes: `[words]` uint64; equal for words that are equal but for case.
        starts: `[words]` first character of each word, counted in its own text.
        stops: `[words]` one past the last character.
        first: `[texts + 1]` number of each text's first word.
        gaps: `[words]` a hash of what stands between each word and the next (punctuation, white space); empty unless
            asked for.
    """

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    first: NDArray[np.int64]
    gaps: NDArray[np.uint64]

    def __len__(self) -> int:
        """How many words."""
        return len(self.hashes)


def words_of(texts: Sequence[str], *, gaps: bool = False) -> Words:
    """The words of some texts. Hand in a few at a time (`batches`), so that the arrays stay in the cache.

    Args:
        texts: The texts.
        gaps: Hash what stands between the words, too.
    """
    raw = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    codes = np.minimum(raw, _LAST_CODE).astype(np.intp)
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    begins = np.cumsum(lengths + 1) - lengths - 1
    kinds, folded = _tables()
    kind = kinds.take(codes)
    part, own = kind == 1, kind == 2
    edges = np.zeros(len(codes) + 1, dtype=bool)  # a word begins or ends before this character
    edges[0], edges[-1] = part[:1].any(), part[-1:].any()
    edges[1:-1] = part[1:] != part[:-1]
    places = np.flatnonzero(edges)
    starts, stops = places[::2], places[1::2]
    if own.any():
        single = np.flatnonzero(own)
        starts, stops = (np.sort(np.concatenate(pair)) for pair in ((starts, single), (stops, single + 1)))
    powers, inverses = _powers(len(codes))
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(folded.take(codes) * powers[: len(codes)], out=sums[1:])
    hashes = mix((sums[stops] - sums[starts]) * inverses[starts])
    first = np.concatenate([np.searchsorted(starts, begins), [len(starts)]])
    shift = np.repeat(begins, np.diff(first))
    between = np.empty(0, dtype=np.uint64)
    if gaps:
        ends = np.append(starts[1:], len(codes))
        between = (sums[ends] - sums[stops]) * inverses[stops]
    return Words(hashes, starts - shift, stops - shift, first, between)


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Neighbouring texts, in batches of a good size for `words_of`."""
    begin = size = 0
    for index, text in enumerate(texts):
        if size and size + len(text) > _BATCH_CHARACTERS:
            yield texts[begin:index]
            begin, size = index, 0
        size += len(text)
    if begin < len(texts):
        yield texts[begin:]


def compose(text: str) -> str:
    """The text in Unicode NFC, so that a letter has one form."""
    return text if text.isascii() or unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def ngrams(words: Words, n: int, *, short: bool = True) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of runs of `n` words; no run crosses from one text into the next.

    Args:
        words: A batch.
        n: Words of a run.
        short: A text of fewer than `n` words gives one run of all that it has. (Without it, all short texts would look
            the same: empty.) A text without words gives none.

    Returns:
        `[runs]` uint64, and `[texts + 1]` the number of each text's first run.
    """
    counts = np.diff(words.first)
    runs = np.maximum(counts - n + 1, (counts > 0).astype(np.int64) if short else 0)
    first = np.concatenate([[0], np.cumsum(runs)])
    at = np.arange(first[-1]) + np.repeat(words.first[:-1] - first[:-1], runs)
    factors, padded = odd_constants(n), np.concatenate([words.hashes, np.zeros(n, dtype=np.uint64)])
    everywhere = padded[: len(words)] * factors[0]
    for place in range(1, n):
        everywhere += padded[place : place + len(words)] * factors[place]
    total = everywhere.take(at)
    if short and (few := np.flatnonzero((counts > 0) & (counts < n))).size:
        places = np.arange(n)
        inside = places < counts[few][:, None]
        terms = padded[words.first[few][:, None] + places] * factors
        total[first[few]] = np.where(inside, terms, np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return mix(total), first


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread 64 bits over 64 bits, one to one (the end of SplitMix64; Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def odd_constants(count: int, seed: int = 0) -> NDArray[np.uint64]:
    """`count` odd 64-bit numbers, the same on every machine."""
    return mix(np.arange(1, count + 1, dtype=np.uint64) * _BASE + np.uint64(seed)) | np.uint64(1)


@functools.cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """For every code point: 0 separates, 1 makes words, 2 is a word; and its lower case."""
    kinds = np.zeros(_LAST_CODE + 1, dtype=np.uint8)
    folded = np.arange(1, _LAST_CODE + 2, dtype=np.uint64)
    for code in range(_LAST_CODE):
        character = chr(code)
        if unicodedata.category(character)[0] in "LNM":
            kinds[code] = 1
            lower = character.lower()
            if lower != character and len(lower) == 1:
                folded[code] = ord(lower) + 1
    for low, high in _UNSPACED:
        span = kinds[low : high + 1]
        span[span == 1] = 2
    return kinds, folded


_POWERS: list[NDArray[np.uint64]] = []


def _powers(n: int) -> list[NDArray[np.uint64]]:
    """Powers of the base and of its inverse modulo 2^64, at least `n` of them."""
    if not _POWERS or len(_POWERS[0]) < n + 1:
        size = 1 << max(17, n.bit_length())
        inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
        for index, base in enumerate((_BASE, inverse)):
            factors = np.full(size, base, dtype=np.uint64)
            factors[0] = 1
            _POWERS[index : index + 1] = [np.cumprod(factors)]
    return _POWERS

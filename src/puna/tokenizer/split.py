r"""Where text is cut before BPE: Llama 3's pattern, and the cuts that keep every engine fast and every id official.

Byte-level BPE never merges across *pre-tokens*. `PATTERN` finds them: contractions, a word with at most one leading
symbol, one to three digits, punctuation with its line ends, line ends with the space before them, space. It is the
pattern of Llama 3 (and, for all practical text, of cl100k).

Two kinds of cuts are made before the pattern sees the text:

- `official_pieces`: Meta's tokenizer feeds at most 400,000 characters at a time and at most 25,000 consecutive
  characters that are all space or all non-space, because its regex engine panics or turns quadratic beyond. These cuts
  can change ids, so the same ids need the same cuts. Ordinary text never meets them, and finding that out costs two
  look-ups for each 12,500 characters.
- `chunks`: cuts that change no id, because the pattern always ends a pre-token there: between a character that is not
  space and a blank. Training uses them to handle long documents in small portions.

Source: the `Tokenizer` of the official Llama 3 reference code (constants and behaviour; this code is our own).
"""

import re
from collections.abc import Iterator
from itertools import pairwise

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_CHARACTERS = 400_000  # Meta's TIKTOKEN_MAX_ENCODE_CHARS
MAX_RUN = 25_000  # Meta's MAX_NO_WHITESPACES_CHARS

_SPACE = re.compile(r"\s")  # on str this is str.isspace, the test that Meta's code uses
_RUN = re.compile(r"\s+|\S+")
_SURE_CUT = re.compile(r"(?<=\S)(?=[ \t\u00a0\u3000])")  # space to the pattern too, unlike \x1c
_PROBE = MAX_RUN // 2


def official_pieces(text: str) -> list[str]:
    """Cut text where Meta's tokenizer cuts it before encoding.

    Args:
        text: Any string.

    Returns:
        The pieces in order; joined they are `text`. Nearly always one piece.
    """
    if len(text) <= MAX_RUN:
        return [text]
    pieces: list[str] = []
    for start in range(0, len(text), MAX_CHARACTERS):
        window = text[start : start + MAX_CHARACTERS]
        pieces.extend(_cut_runs(window) if _may_have_long_run(window) else [window])
    return pieces


def chunks(text: str, *, characters: int) -> Iterator[str]:
    """Cut text into portions whose pre-tokens are together exactly the pre-tokens of the whole.

    Args:
        text: Any string.
        characters: A portion ends at the first sure cut after this many characters.

    Yields:
        The portions in order; joined they are `text`.
    """
    start = 0
    while len(text) - start > characters:
        found = _SURE_CUT.search(text, start + characters)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _may_have_long_run(window: str) -> bool:
    # A run of more than MAX_RUN characters covers at least one aligned block of half that length.
    for start in range(0, len(window) - _PROBE + 1, _PROBE):
        block = window[start : start + _PROBE]
        if block.isspace() or _SPACE.search(block) is None:
            return True
    return False


def _cut_runs(window: str) -> list[str]:
    cuts = [0]
    for run in _RUN.finditer(window):
        cuts.extend(range(run.start() + MAX_RUN, run.end(), MAX_RUN))
    cuts.append(len(window))
    return [window[a:b] for a, b in pairwise(cuts)]

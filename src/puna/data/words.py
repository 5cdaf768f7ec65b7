"""What counts as a word, in scripts with spaces and in scripts without.

Where white space separates words, a word is what stands between white space: the published thresholds were made for
such words. Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan text has no such spaces; there every letter is a
word of its own, and runs of other letters and digits are one word.
"""

import re
import unicodedata
from functools import lru_cache

UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz", "yue", "wuu", "nan", "shn", "jv-Java"})
"""BCP 47 languages (without script or region) that are written without spaces between words."""

_UNSPACED_LETTERS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_LETTER = re.compile(
    rf"[{_UNSPACED_LETTERS}][\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*|[^\s{_UNSPACED_LETTERS}]+"
)


def is_unspaced(language: str) -> bool:
    """Whether a language is written without spaces between words."""
    return language in UNSPACED or language.partition("-")[0] in UNSPACED


def words(text: str, language: str = "") -> list[str]:
    """The words of a text, punctuation left on them."""
    return _LETTER.findall(text) if language and is_unspaced(language) else text.split()


@lru_cache(maxsize=1 << 16)
def plain_word(word: str) -> str:
    """Lower case, no accents, no punctuation around: for looking a word up in a list."""
    decomposed = unicodedata.normalize("NFD", word.lower())
    return "".join(c for c in decomposed if not unicodedata.combining(c)).strip("\"'.,;:!?()[]{}<>«»„“”‘’…–—-*_/\\|")

"""Which words can be a document's language: BCP 47 tags, and names of programming languages.

Two letters must be a code of ISO 639-1. Three letters (ISO 639-2 and 639-3 have some 8,000) and what follows a dash
(script, region) are checked by form alone. Source: https://www.loc.gov/standards/iso639-2/php/code_list.php
"""

import difflib
import re

from puna.data.sources.code_tree import known_languages

_TWO_LETTERS = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn
so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
ISO_639_1 = frozenset(_TWO_LETTERS.split())
_TAG = re.compile(r"([a-z]{2,3})(-[A-Za-z0-9]{2,8})*")


def may_be(language: str, *, any_words: bool = False) -> bool:
    """Whether some document can have this language.

    Args:
        language: A tag or a name.
        any_words: Records of a source say their languages themselves, in whatever words: only what has the form of a
            tag is checked.
    """
    if language in known_languages():
        return True
    match = _TAG.fullmatch(language)
    if match is None:
        return any_words
    return len(match[1]) == 3 or match[1] in ISO_639_1


def hint(language: str) -> str:
    """What is allowed instead."""
    near = difflib.get_close_matches(language.lower(), sorted(known_languages()), n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"Languages are codes (en, de, zh, eng-Latn) or programming languages (python, c++).{guess}"

"""The name that a user may have meant: the hint "did you mean" of all messages.

A beginning counts first (`min` is `min_characters`), then likeness: 0.7 of `difflib`'s ratio, where its usual 0.6 takes
`min` for `domains`. Names of files are compared without their ends, which would make all of them alike.
"""

import difflib
from collections.abc import Iterable
from pathlib import PurePath

LIKENESS = 0.7
_SHORTEST_BEGINNING = 2
_MOST_NAMES = 24  # more are no hint


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that is nearest to the one given; None where none is near.

    Args:
        given: What the user wrote.
        allowed: What could have been meant.
    """
    names = list(allowed)
    if len(given) >= _SHORTEST_BEGINNING and (longer := [name for name in names if name.startswith(given)]):
        return min(longer, key=len)
    near = difflib.get_close_matches(given, names, n=1, cutoff=LIKENESS)
    return near[0] if near else None


def nearest_file(given: str, names: Iterable[str]) -> str | None:
    """The file or recipe whose name without `.toml` is nearest to the one given; None where none is near."""
    stems = {_stem(name): name for name in names}
    near = nearest(_stem(given), stems)
    return stems[near] if near else None


def hint(given: str, allowed: Iterable[str], *, prefix: str = "", otherwise: str = "") -> str:
    """`Did you mean 'train.steps'?`, or the list of what is allowed, or (where that is long) other words.

    Args:
        given: What the user wrote, without the prefix.
        allowed: What could have been meant.
        prefix: What stands before the name in full: `train.`.
        otherwise: What to say where nothing is near and the list is long.
    """
    names = sorted(allowed)
    if near := nearest(given, names):
        return f"Did you mean {prefix + near!r}?"
    return f"Allowed are: {', '.join(names)}." if 0 < len(names) <= _MOST_NAMES else otherwise


def _stem(name: str) -> str:
    return str(PurePath(name).with_suffix("")) if name.endswith(".toml") else name

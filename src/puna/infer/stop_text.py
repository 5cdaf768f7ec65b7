"""Finding stop texts in text that arrives in pieces, and never showing half of one.

Text is passed on as soon as it cannot be the beginning of a stop text any more. When several stop texts are found, the
one that starts first wins; what follows it is dropped with it.
"""

from collections.abc import Sequence


class StopText:
    """Watches one stream of text.

    Args:
        stops: The texts to stop at, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop text would stop before anything is said"
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take new text; return what may be shown."""
        if self.found:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = self._tail()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """The text ends: return what was held back."""
        shown, self._held = self._held, ""
        return shown

    def _tail(self) -> int:
        """How many characters at the end could begin a stop text."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[len(self._held) - size :]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0

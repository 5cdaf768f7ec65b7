"""Decoding while tokens arrive: text is shown as soon as it is whole, and half a character never.

A token holds bytes, and a character may need up to four bytes from two or three tokens. The decoder holds back the
bytes of an unfinished character. All pushes and the finish joined are exactly `Tokenizer.decode` of all ids.
"""

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Turns ids into text one at a time; make one with `Tokenizer.stream_decoder()`.

    Args:
        token_bytes: Bytes of an id; empty for what is not to be shown.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Take one id; return the text that is whole now, perhaps none."""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """Return what is left: U+FFFD when the last character never became whole. The decoder starts anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest

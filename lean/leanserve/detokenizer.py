"""Token ids to text, one at a time, for byte-level vocabularies."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Turns the tokens of one stream into text and never cuts a UTF-8 character.

    Bytes of an unfinished character wait for the next token. Bytes that cannot become a character, and what
    is unfinished when the stream ends, become U+FFFD. `token_bytes` gives a token's bytes, none for special
    tokens.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        """U+FFFD for an unfinished character, at the end of the stream."""
        return self._decoder.decode(b"", True)

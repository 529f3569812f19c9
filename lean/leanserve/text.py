"""The text of one stream: token ids to characters, for byte-level vocabularies, and where it stops."""

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


class StopFilter:
    """Passes pieces of text on and ends them at the first stop string, wherever they are cut.

    Text that could still become a stop string is held back. Of several stop strings the one that is complete
    first wins, and of those complete at the same place the longest, so the result does not depend on how the
    text was cut.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        if "" in stops:
            raise ValueError("stop: expected non-empty strings")
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def feed(self, text: str, *, may_stop: bool = True) -> tuple[str, bool]:
        """The text that is now certain, and whether a stop string ended it.

        `may_stop=False` lets matches pass.
        """
        pending = self._held + text
        if may_stop:
            found = [(at + len(stop), at) for stop in self._stops if (at := pending.find(stop)) >= 0]
            if found:
                self._held = ""
                return pending[: min(found)[1]], True
        keep = len(pending) - self._undecided(pending)
        self._held = pending[keep:]
        return pending[:keep], False

    def flush(self) -> str:
        """The text still held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that is a proper beginning of a stop string."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(len(stop) > length and stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

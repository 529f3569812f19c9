"""The pack's tokenizer: a byte-level BPE in Hugging Face's tokenizer.json, and ChatML as Qwen uses it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lean.errors import PackError

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message."""

    role: str
    content: str


class PackTokenizer:
    """Text to token ids and token ids to bytes.

    `eos` are the tokens that end a completion; a chat also ends at `<|im_end|>`. Errors: `PackError` when the
    files are missing, malformed, or not byte-level.
    """

    def __init__(self, folder: Path, *, vocab: int) -> None:
        """`vocab`: rows of the model's embedding; a tokenizer may know fewer tokens, never more."""
        self._tokenizer = _load(folder / "tokenizer.json")
        if (known := self._tokenizer.get_vocab_size()) > vocab:
            raise PackError(f"{folder / 'tokenizer.json'}: {known} tokens, but the model has {vocab}")
        self._special_as_text = threading.Lock()
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._byte_of = _byte_alphabet()
        self.eos = frozenset(self._eos(folder))
        start, end = self._tokenizer.token_to_id(IM_START), self._tokenizer.token_to_id(IM_END)
        self.chat_tokens = None if start is None or end is None else (start, end)

    def encode(self, text: str) -> tuple[int, ...]:
        """A completion's prompt.

        Special tokens written in the text count as such, as in Hugging Face's tokenizers.
        """
        with self._special_as_text:
            return tuple(self._tokenizer.encode(text).ids)

    def encode_chat(self, messages: Iterable[Message]) -> tuple[int, ...]:
        """ChatML, open for the assistant's answer.

        A special token written in a message stays text, so that a message cannot end itself and speak for
        somebody else. Needs `chat_tokens`.
        """
        assert self.chat_tokens is not None
        start, end = self.chat_tokens
        newline = self._plain("\n")
        tokens: list[int] = []
        for message in messages:
            tokens += [start, *self._plain(f"{message.role}\n{message.content}"), end, *newline]
        return (*tokens, start, *self._plain("assistant\n"))

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes a token adds to the text: none for special tokens and unknown ids."""
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else added.content.encode()
        text = self._tokenizer.id_to_token(token)
        return b"" if text is None else bytes(map(self._byte_of.__getitem__, text))

    def token_name(self, token: int) -> bytes:
        """A token's bytes as log probabilities show them: special tokens by their name."""
        added = self._added.get(token)
        return self.token_bytes(token) if added is None else added.content.encode()

    def _plain(self, text: str) -> list[int]:
        with self._special_as_text:
            self._tokenizer.encode_special_tokens = True
            try:
                return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
            finally:
                self._tokenizer.encode_special_tokens = False

    def _eos(self, folder: Path) -> list[int]:
        name = _read_json(folder / "tokenizer_config.json").get("eos_token")
        name = name.get("content") if isinstance(name, dict) else name
        token = self._tokenizer.token_to_id(name) if isinstance(name, str) else None
        return [] if token is None else [token]


def _load(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every cause
        raise PackError(f"{path}: not a tokenizer: {error}") from error
    kind = type(tokenizer.decoder).__name__
    if kind != "ByteLevel":
        raise PackError(f"{path}: decoder: expected ByteLevel, got {kind}")
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise PackError(f"{path}: expected an object, got {type(document).__name__}")
    return document


def _byte_alphabet() -> dict[str, int]:
    """Character to byte of the byte-level alphabet (GPT-2).

    Printable Latin-1 stands for itself, the other bytes are numbered from U+0100 in ascending order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

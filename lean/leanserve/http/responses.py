"""OpenAI's answer documents, whole and in server-sent events, from the tokens of one stream.

Beyond OpenAI's fields, which its clients tolerate: `timings` in the last document of an answer (seconds in
the queue, to the first token, and decoding), and under `return_token_ids` vLLM's `token_ids` and
`prompt_token_ids`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from lean.leanserve.http.logprobs import chat_logprobs, completion_logprobs
from lean.leanserve.http.schema import Call, ChatCall
from lean.leanserve.request import FinishReason, Generated, GenerationRequest
from lean.leanserve.runner import Choice
from lean.leanserve.tokenizer import PackTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one document of an answer covers: some tokens in order, their text, and how it ended if it did."""

    choices: Sequence[Choice]
    text: str
    finish: FinishReason | None


class Answer:
    """Writes the documents of one answer. Subclasses say how the two APIs differ."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(
        self,
        call: Call,
        request: GenerationRequest,
        *,
        model: str,
        fingerprint: str,
        tokenizer: PackTokenizer,
    ) -> None:
        self.options = call.options
        self.tokenizer = tokenizer
        self.characters = 0
        self._request = request
        self._completion_tokens = 0
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, events: Sequence[Generated]) -> dict[str, Any]:
        """The answer in one document."""
        piece = Piece(
            choices=[event.choice for event in events],
            text="".join(event.text for event in events),
            finish=events[-1].finish,
        )
        self._completion_tokens = len(events)
        body = self._document(
            self.whole_object, [self.whole_choice(piece) | self._token_ids(piece, first=True)]
        )
        if self.options.return_token_ids:
            body |= self.prompt_token_ids_of_document()
        return body | {"usage": self._usage()} | _timings(events[-1])

    def chunk(self, event: Generated) -> dict[str, Any] | None:
        """The document for one token, or None where it has nothing to tell yet."""
        first = self._completion_tokens == 0
        self._completion_tokens += 1
        wanted = self.options.return_token_ids or self.options.top_logprobs is not None
        if not (event.text or event.finish or wanted):
            return None
        piece = Piece(choices=[event.choice], text=event.text, finish=event.finish)
        body = self._document(
            self.chunk_object, [self.chunk_choice(piece) | self._token_ids(piece, first=first)]
        )
        if self.options.return_token_ids and first:
            body |= self.prompt_token_ids_of_document()
        if self.options.include_usage:
            body["usage"] = None
        return body | _timings(event)

    def usage_chunk(self) -> dict[str, Any]:
        """The last document under `stream_options.include_usage`."""
        return self._document(self.chunk_object, []) | {"usage": self._usage()}

    def whole_choice(self, piece: Piece) -> dict[str, Any]:
        """The one entry of `choices` of a whole answer."""
        raise NotImplementedError

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        """The one entry of `choices` of a chunk."""
        raise NotImplementedError

    def prompt_token_ids_of_choice(self) -> dict[str, Any]:
        """Where vLLM puts the prompt's ids: in the choice for completions."""
        return {}

    def prompt_token_ids_of_document(self) -> dict[str, Any]:
        """Where vLLM puts the prompt's ids: beside the choices for chat."""
        return {}

    def prompt_ids(self) -> dict[str, Any]:
        """The prompt's token ids under vLLM's name."""
        return {"prompt_token_ids": list(self._request.prompt)}

    def _document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices}

    def _token_ids(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        if not self.options.return_token_ids:
            return {}
        prompt = self.prompt_token_ids_of_choice() if first else {}
        return {"token_ids": [choice.token for choice in piece.choices]} | prompt

    def _usage(self) -> dict[str, int]:
        prompt, completion = len(self._request.prompt), self._completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class CompletionAnswer(Answer):
    """`text_completion` documents."""

    whole_object = chunk_object = "text_completion"
    prefix = "cmpl"

    def whole_choice(self, piece: Piece) -> dict[str, Any]:
        """`{"index", "text", "logprobs", "finish_reason"}`."""
        logprobs = None
        if self.options.top_logprobs is not None:
            logprobs, self.characters = completion_logprobs(
                piece.choices, self.tokenizer.token_name, self.characters
            )
        return {"index": 0, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        """The same as in a whole answer."""
        return self.whole_choice(piece)

    def prompt_token_ids_of_choice(self) -> dict[str, Any]:
        """In the choice."""
        return self.prompt_ids()


class ChatAnswer(Answer):
    """`chat.completion` and `chat.completion.chunk` documents."""

    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"
    _role_sent = False

    def whole_choice(self, piece: Piece) -> dict[str, Any]:
        """`{"index", "message", "logprobs", "finish_reason"}`."""
        return self._choice("message", {"role": "assistant", "content": piece.text}, piece)

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        """`{"index", "delta", "logprobs", "finish_reason"}`, the role in the first one."""
        role = {} if self._role_sent else {"role": "assistant"}
        self._role_sent = True
        return self._choice("delta", role | {"content": piece.text}, piece)

    def prompt_token_ids_of_document(self) -> dict[str, Any]:
        """Beside the choices."""
        return self.prompt_ids()

    def _choice(self, field: str, content: dict[str, str], piece: Piece) -> dict[str, Any]:
        wanted = self.options.top_logprobs is not None
        logprobs = chat_logprobs(piece.choices, self.tokenizer.token_name) if wanted else None
        return {"index": 0, field: content, "logprobs": logprobs, "finish_reason": piece.finish}


def answer_for(
    call: Call, request: GenerationRequest, *, model: str, fingerprint: str, tokenizer: PackTokenizer
) -> Answer:
    """The writer for a call."""
    kind = ChatAnswer if isinstance(call, ChatCall) else CompletionAnswer
    return kind(call, request, model=model, fingerprint=fingerprint, tokenizer=tokenizer)


def server_sent_event(document: dict[str, Any]) -> bytes:
    """One `data:` event. JSON escapes keep it on one line and in ASCII."""
    return b"data: " + json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def _timings(event: Generated) -> dict[str, Any]:
    return {} if event.timings is None else {"timings": asdict(event.timings)}

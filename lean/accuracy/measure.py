"""Measuring an encoded pack against the bf16 pack of the same weights, one after the other."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lean.accuracy.compare import compare, summarize
from lean.accuracy.follow import Answers, forced, greedy, mean_loss
from lean.accuracy.record import AccuracyRecord, Loss, Side, Text
from lean.bench.record import Release, run_id
from lean.contracts import encoded_contract, to_data
from lean.errors import UsageError
from lean.leanpack import Pack, open_pack
from lean.leanserve.plan import available_memory, require_memory, resident_plan
from lean.leanserve.runner import Runner
from lean.leanserve.service import make_runner
from lean.leanserve.tokenizer import PackTokenizer

HELDOUT = Path(__file__).resolve().parent / "heldout.txt"
WINDOW = 512  # tokens that a loss is measured over at once
PROMPT_TOKENS = 32

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure. `text`: a file no model was trained on, whose loss is wanted; by default our own.

    The loss over our own text is measured for the demo's weights alone: only of them it is known that they
    never saw it. `threads`: of the torch runner.
    """

    pack: Path
    against: Path
    runner: str = "torch"
    prompts: int = 16
    tokens: int = 64
    text: Path | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """What the bf16 pack said."""

    side: Side
    answers: tuple[Answers, ...]
    loss: float | None


def measure(options: Options, *, release: Release, host: str, host_facts: dict[str, Any]) -> AccuracyRecord:
    """The record of one comparison.

    Errors: `UsageError` for packs that are not one model's in two encodings, or a text that is too short;
    those of opening packs and of the runner.
    """
    started = _now()
    path = options.text or HELDOUT
    text = _read(path)
    reference_pack, pack = open_pack(options.against), open_pack(options.pack)
    check_pair(reference_pack, pack)
    contract = pack.manifest.contract
    tokens = PackTokenizer(pack.tokenizer_dir, vocab=contract.model.geometry.vocab).encode(text)
    prompts = passages(tokens, options.prompts)
    wants_loss = options.text is not None or pack.manifest.weights == "demo"
    window = min(WINDOW, contract.max_length - 1)

    def loss_of(runner: Runner) -> float | None:
        return mean_loss(runner, tokens, window) if wants_loss else None

    def ask_reference(runner: Runner) -> _Reference:
        said = tuple(greedy(runner, prompt, options.tokens) for prompt in prompts)
        return _Reference(side=_side(reference_pack, runner), answers=said, loss=loss_of(runner))

    reference = _with_runner(reference_pack, options, ask_reference)

    def ask(runner: Runner) -> tuple[Side, tuple[Answers, ...], float | None]:
        along = zip(prompts, reference.answers, strict=True)
        said = tuple(forced(runner, prompt, theirs.tokens) for prompt, theirs in along)
        return _side(pack, runner), said, loss_of(runner)

    side, answers, nats = _with_runner(pack, options, ask)
    compared = tuple(
        compare(len(prompt), theirs, ours)
        for prompt, theirs, ours in zip(prompts, reference.answers, answers, strict=True)
    )
    loss = None
    if nats is not None and reference.loss is not None:
        loss = Loss(
            tokens=len(tokens) - 1,
            window=window,
            reference_nats=reference.loss,
            nats=nats,
            ratio=nats / reference.loss,
        )
    return AccuracyRecord(
        id=run_id(started, release),
        host=host,
        label_reasons=(
            f"encoding {contract.encoding} changes the checkpoint's weights",
            *((f"pack weights are {side.weights}",) if side.weights != "checkpoint" else ()),
        ),
        started_utc=started,
        finished_utc=_now(),
        release=release,
        pack=side,
        reference=reference.side,
        text=Text(name=path.name, sha256=hashlib.sha256(text.encode()).hexdigest(), tokens=len(tokens)),
        summary=summarize(compared),
        loss=loss,
        prompts=compared,
        host_facts=host_facts,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--text: {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--text: {path}: not UTF-8 at byte {error.start}") from None


def check_pair(reference: Pack, pack: Pack) -> None:
    """Raise `UsageError` unless the packs hold the same weights, in bf16 and in another encoding."""
    first, second = reference.manifest, pack.manifest
    if first.contract.encoding != "bf16" or second.contract.encoding == "bf16":
        raise UsageError(
            f"--against names a bf16 pack and --pack an encoded one, not {first.contract.encoding} and "
            f"{second.contract.encoding}"
        )
    if encoded_contract(first.contract, second.contract.encoding) != second.contract:
        raise UsageError(f"{pack.path}: not of contract {first.contract.id}; build both from one contract")
    if first.source != second.source:
        raise UsageError(
            f"{pack.path}: made of other weights than {reference.path}; build both from one model"
        )


def passages(tokens: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """`count` evenly spaced passages of a text. Errors: `UsageError` for a text that is too short."""
    if len(tokens) < PROMPT_TOKENS:
        raise UsageError(f"--text: {len(tokens)} tokens; a prompt alone takes {PROMPT_TOKENS}")
    starts = np.linspace(0, len(tokens) - PROMPT_TOKENS, count).astype(int)
    return tuple(tuple(tokens[start : start + PROMPT_TOKENS]) for start in starts)


def _with_runner(pack: Pack, options: Options, ask: Callable[[Runner], T]) -> T:
    """What a runner of the pack says; it is gone again when this returns."""
    manifest = pack.manifest
    length = manifest.contract.max_length
    if PROMPT_TOKENS + options.tokens > length:
        raise UsageError(f"--tokens: {options.tokens} behind {PROMPT_TOKENS} do not fit a slot of {length}")
    plan = resident_plan(
        manifest.contract, slots=1, runner=options.runner, weight_bytes=manifest.weight_bytes
    )
    if options.runner != "cuda":
        require_memory(plan, available_memory())
    print(f"asking {pack.path.name} by the {options.runner} runner", file=sys.stderr, flush=True)
    runner = make_runner(options.runner, pack, plan, options.threads)
    try:
        return ask(runner)
    finally:
        close = getattr(runner, "close", None)  # of a device; the torch runner has nothing to give back
        if close is not None:
            close()


def _side(pack: Pack, runner: Runner) -> Side:
    manifest = pack.manifest
    return Side(
        contract=manifest.contract.id,
        encoding=manifest.contract.encoding,
        lock=pack.lock,
        weights=manifest.weights,
        weight_bytes=manifest.weight_bytes,
        runner=to_data(runner.facts),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

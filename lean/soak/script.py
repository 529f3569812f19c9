"""The plan's questions made ready: data read, checked against its hash, cut into prompts of known length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from lean.bench.prompt import Prompt, exact_prompt
from lean.contracts import to_data
from lean.contracts.soak import PhaseName, SoakPlan
from lean.errors import ContractError
from lean.soak.conversations import read_turns
from lean.soak.data import find_data
from lean.soak.phases import Asked, Script
from lean.soak.tasks import grade, read_tasks

Replays = tuple[tuple[tuple[Asked, ...], ...], ...]


def make_script(plan: SoakPlan, tokenizer: Tokenizer, folders: Sequence[Path]) -> Script:
    """Every request of the plan. Errors: those of the data, which name the file and the fix."""
    makers: dict[PhaseName, Callable[[], Replays]] = {
        "quality": lambda: _quality(plan, tokenizer, folders),
        "conversations": lambda: _conversations(plan, tokenizer, folders),
        "long_decode": lambda: _long_decode(plan, tokenizer),
        "concurrent": lambda: _concurrent(plan, tokenizer),
    }
    return Script(
        groups={name: makers[name]() for name in plan.phases},
        configs={name: {"phase": to_data(getattr(plan, name)), "seed": plan.seed} for name in plan.phases},
    )


def _prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    return Prompt(ids=tuple(tokenizer.encode(text, add_special_tokens=False).ids), text=text)


def _quality(plan: SoakPlan, tokenizer: Tokenizer, folders: Sequence[Path]) -> Replays:
    phase = plan.quality
    assert phase is not None
    file = find_data(phase.data, folders)
    tasks = read_tasks(file, phase.format)[: phase.tasks]
    if len(tasks) < phase.tasks:
        raise ContractError(f"{file}: {len(tasks)} tasks, and the plan asks for {phase.tasks}")
    return (
        tuple(
            (
                Asked(
                    conversation=task.id,
                    turn=0,
                    stream=0,
                    prompt=_prompt(tokenizer, task.prompt),
                    new_tokens=phase.new_tokens,
                    correct=partial(grade, task, format=phase.format),
                ),
            )
            for task in tasks
        ),
    )


def _conversations(plan: SoakPlan, tokenizer: Tokenizer, folders: Sequence[Path]) -> Replays:
    phase = plan.conversations
    turns = read_turns(
        find_data(phase.data, folders),
        phase.format,
        count_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
        conversations=phase.conversations,
        prompt_tokens=phase.prompt_tokens,
    )
    replay = tuple(
        (
            Asked(
                conversation=turn.conversation,
                turn=turn.turn,
                stream=0,
                prompt=_prompt(tokenizer, turn.prompt),
                new_tokens=phase.new_tokens,
            ),
        )
        for turn in turns
    )
    return (replay,) * phase.replays


def _long_decode(plan: SoakPlan, tokenizer: Tokenizer) -> Replays:
    phase = plan.long_decode
    assert phase is not None
    return tuple(
        ((_made(tokenizer, phase.prompt_tokens, phase.new_tokens, f"{plan.seed}/long/{replay}", 0),),)
        for replay in range(phase.replays)
    )


def _concurrent(plan: SoakPlan, tokenizer: Tokenizer) -> Replays:
    phase = plan.concurrent
    assert phase is not None
    return tuple(
        (
            tuple(
                _made(
                    tokenizer,
                    phase.prompt_tokens,
                    phase.new_tokens,
                    f"{plan.seed}/both/{replay}/{stream}",
                    stream,
                )
                for stream in range(phase.streams)
            ),
        )
        for replay in range(phase.replays)
    )


def _made(tokenizer: Tokenizer, tokens: int, new: int, seed: str, stream: int) -> Asked:
    prompt = exact_prompt(tokenizer, tokens, seed)
    return Asked(conversation=f"stream {stream}", turn=0, stream=stream, prompt=prompt, new_tokens=new)

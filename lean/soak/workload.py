"""The plan's questions made ready: data read, checked against its hash, cut into prompts of known length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from lean.bench.prompt import Prompt, exact_prompt
from lean.contracts import to_data
from lean.contracts.soak import PhaseName, SoakPlan
from lean.errors import ContractError
from lean.soak.conversations import read_turns
from lean.soak.data import find_data
from lean.soak.tasks import grade, read_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of a replay. `correct` grades the text of its answer, None where nothing is graded."""

    conversation: str
    turn: int
    stream: int
    prompt: Prompt
    new_tokens: int
    correct: Callable[[str], bool] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What each phase asks, by phase and replay from 0; every arm is asked the very same.

    A group is sent at once, and the next one when all of it was answered.
    """

    groups: Mapping[PhaseName, tuple[tuple[tuple[Request, ...], ...], ...]]
    configs: Mapping[PhaseName, Mapping[str, object]]

    @property
    def longest(self) -> int:
        """Positions that the longest request takes."""
        every = (
            asked for replays in self.groups.values() for groups in replays for g in groups for asked in g
        )
        return max(len(asked.prompt.ids) + asked.new_tokens for asked in every)

    def replay(self, phase: PhaseName, number: int) -> tuple[tuple[Request, ...], ...]:
        """What replay `number`, from 1, of a phase asks."""
        return self.groups[phase][number - 1]

    def tokens(self, phase: PhaseName) -> int:
        """Tokens that one replay makes."""
        return sum(asked.new_tokens for group in self.groups[phase][0] for asked in group)


Replays = tuple[tuple[tuple[Request, ...], ...], ...]


def make_workload(plan: SoakPlan, tokenizer: Tokenizer, folders: Sequence[Path]) -> Workload:
    """Every request of the plan. Errors: those of the data, which name the file and the fix."""
    makers: dict[PhaseName, Callable[[], Replays]] = {
        "quality": lambda: _quality(plan, tokenizer, folders),
        "conversations": lambda: _conversations(plan, tokenizer, folders),
        "long_decode": lambda: _long_decode(plan, tokenizer),
        "concurrent": lambda: _concurrent(plan, tokenizer),
    }
    return Workload(
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
                Request(
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
            Request(
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


def _made(tokenizer: Tokenizer, tokens: int, new: int, seed: str, stream: int) -> Request:
    prompt = exact_prompt(tokenizer, tokens, seed)
    return Request(conversation=f"stream {stream}", turn=0, stream=stream, prompt=prompt, new_tokens=new)

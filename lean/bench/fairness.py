"""The hard gate: numbers count only when every request did exactly the work of the profile, and proves it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lean.bench.sample import Sample, measured
from lean.contracts import BenchProfile, Contract

_SHOWN = 3  # offenders named per rule; the samples hold them all


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessCheck:
    """One rule and whether every measured request kept it. `detail` names the first that did not."""

    rule: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessVerdict:
    """Fair only when every check passed. Missing data fails."""

    fair: bool
    checks: tuple[FairnessCheck, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a run is unfair; empty for a fair one."""
        return tuple(f"{check.rule}: {check.detail}" for check in self.checks if not check.passed)


def judge_fairness(contract: Contract, profile: BenchProfile, samples: Sequence[Sample]) -> FairnessVerdict:
    """Judge the measured samples of a run against its profile and the contract's decode policy."""
    sent = measured(samples)
    # A load beyond a contract's rounds may be too much for the service, and to say so is no unfairness.
    judged = [s for s in sent if profile.in_rounds_of_batch or not s.refused]
    rules: tuple[tuple[str, Callable[[Sample], str | None]], ...] = (
        ("every request answered to its end", _answered),
        (f"prompt is exactly {profile.prompt_tokens} tokens", lambda s: _prompt(s, profile.prompt_tokens)),
        (f"exactly {profile.decode_tokens} generated tokens", lambda s: _generated(s, profile.decode_tokens)),
        ("greedy decoding", lambda s: None if s.temperature == 0 else f"temperature {s.temperature}"),
        ("end-of-sequence ignored", _ignored_eos),
    )
    checks = [_policy(contract), _complete(profile, sent)]
    checks += [_rule(name, judged, rule) for name, rule in rules]
    checks.append(_distinct(samples))
    return FairnessVerdict(fair=all(check.passed for check in checks), checks=tuple(checks))


def _policy(contract: Contract) -> FairnessCheck:
    decode = contract.decode
    return FairnessCheck(
        rule="the contract decodes greedily and ignores end-of-sequence",
        passed=decode.greedy and decode.ignore_eos,
        detail=f"greedy {decode.greedy}, ignore_eos {decode.ignore_eos}",
    )


def _complete(profile: BenchProfile, measured: Sequence[Sample]) -> FairnessCheck:
    wanted = {(stream, turn) for stream in range(profile.clients) for turn in range(profile.requests)}
    seen = Counter((sample.stream, sample.round) for sample in measured)
    return FairnessCheck(
        rule=f"{profile.clients} × {profile.requests} measured requests, each once",
        passed=seen == Counter(wanted),
        detail=f"{sum(seen.values())} of {len(wanted)} recorded",
    )


def _rule(name: str, samples: Sequence[Sample], broken: Callable[[Sample], str | None]) -> FairnessCheck:
    wrong = [f"{sample.name}: {why}" for sample in samples if (why := broken(sample)) is not None]
    if not samples:
        return FairnessCheck(rule=name, passed=False, detail="no measured requests")
    return FairnessCheck(rule=name, passed=not wrong, detail=_shown(wrong) or f"all {len(samples)} requests")


def _shown(wrong: Sequence[str]) -> str:
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return "; ".join(wrong[:_SHOWN]) + more


def _answered(sample: Sample) -> str | None:
    if sample.error is not None:
        return sample.error
    return None if sample.finished else "the stream ended before its last event"


def _prompt(sample: Sample, tokens: int) -> str | None:
    if sample.prompt_tokens != tokens:
        return f"{sample.prompt_tokens} tokens sent"
    if sample.usage_prompt_tokens is None:
        return "the server reported no prompt_tokens"
    return (
        None if sample.usage_prompt_tokens == tokens else f"the server counted {sample.usage_prompt_tokens}"
    )


def _generated(sample: Sample, tokens: int) -> str | None:
    if sample.max_new_tokens != tokens:
        return f"{sample.max_new_tokens} tokens asked for"
    if sample.usage_completion_tokens is None:
        return "the server reported no completion_tokens"
    if sample.usage_completion_tokens != tokens:
        return f"the server counted {sample.usage_completion_tokens}"
    if sample.counted_tokens is not None and sample.counted_tokens != tokens:
        return f"usage says {tokens}, the chunks carried {sample.counted_tokens}"
    return None


def _ignored_eos(sample: Sample) -> str | None:
    if not sample.ignore_eos:
        return "ignore_eos was not sent"
    return (
        None if sample.finish_reason == "length" else f"finish reason {sample.finish_reason!r}, not 'length'"
    )


def _distinct(samples: Iterable[Sample]) -> FairnessCheck:
    seen = Counter(sample.prompt_sha256 for sample in samples)
    repeated = sum(count - 1 for count in seen.values())
    return FairnessCheck(
        rule="no prompt sent twice, so no cache answers",
        passed=repeated == 0,
        detail=f"{repeated} repeated" if repeated else f"{len(seen)} distinct prompts",
    )

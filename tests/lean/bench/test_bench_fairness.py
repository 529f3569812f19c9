"""The fairness gate: one row per way to break it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from lean.bench.fairness import judge_fairness
from lean.bench.sample import Sample
from lean.contracts import BenchProfile, Contract, DecodePolicy, load_contract

MakeSample = Callable[..., Sample]
PROFILE = BenchProfile(
    id="decode_8_16", prompt_tokens=8, decode_tokens=16, batch=2, warmup_requests=1, requests=3, seed=7
)
CONTRACT: Contract = load_contract("tiny-cpu")


def test_a_run_that_keeps_every_rule_is_fair(fair_samples: tuple[Sample, ...]) -> None:
    verdict = judge_fairness(CONTRACT, PROFILE, fair_samples)
    assert verdict.fair
    assert verdict.reasons == ()
    assert all(check.passed for check in verdict.checks)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"error": "HTTP 500: fell over"}, "HTTP 500: fell over"),
        ({"finished": False}, "before its last event"),
        ({"prompt_tokens": 9}, "9 tokens sent"),
        ({"usage_prompt_tokens": 7}, "the server counted 7"),
        ({"usage_prompt_tokens": None}, "reported no prompt_tokens"),
        ({"max_new_tokens": 15}, "15 tokens asked for"),
        ({"usage_completion_tokens": 15}, "the server counted 15"),
        ({"usage_completion_tokens": None}, "reported no completion_tokens"),
        ({"event_tokens": (1,) * 15 + (2,)}, "usage says 16, the chunks carried 17"),
        ({"temperature": 0.7}, "temperature 0.7"),
        ({"ignore_eos": False}, "ignore_eos was not sent"),
        ({"finish_reason": "stop"}, "'stop', not 'length'"),
        ({"finish_reason": None}, "None, not 'length'"),
    ],
)
def test_one_request_that_breaks_a_rule_makes_the_run_unfair(
    fair_samples: tuple[Sample, ...], changes: dict[str, Any], reason: str
) -> None:
    broken = (*fair_samples[:-1], dataclasses.replace(fair_samples[-1], **changes))
    verdict = judge_fairness(CONTRACT, PROFILE, broken)
    assert not verdict.fair
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]
    assert "stream 1, round 2" in verdict.reasons[0]


def test_a_missing_request_is_unfair(fair_samples: tuple[Sample, ...]) -> None:
    verdict = judge_fairness(CONTRACT, PROFILE, fair_samples[:-1])
    assert [reason for reason in verdict.reasons if "5 of 6 recorded" in reason]


def test_a_request_counted_twice_is_unfair(fair_samples: tuple[Sample, ...]) -> None:
    doubled = (*fair_samples[:-1], dataclasses.replace(fair_samples[-2], prompt_sha256="another"))
    verdict = judge_fairness(CONTRACT, PROFILE, doubled)
    assert not verdict.fair


def test_no_requests_at_all_are_unfair() -> None:
    verdict = judge_fairness(CONTRACT, PROFILE, ())
    assert not verdict.fair
    assert any("no measured requests" in reason for reason in verdict.reasons)


def test_a_prompt_sent_twice_is_unfair_even_when_once_in_the_warm_up(
    fair_samples: tuple[Sample, ...],
) -> None:
    repeated = dataclasses.replace(fair_samples[-1], prompt_sha256=fair_samples[0].prompt_sha256)
    verdict = judge_fairness(CONTRACT, PROFILE, (*fair_samples[:-1], repeated))
    assert verdict.reasons == ("no prompt sent twice, so no cache answers: 1 repeated",)


def test_a_warm_up_that_broke_rules_does_not_count(fair_samples: tuple[Sample, ...]) -> None:
    cold = dataclasses.replace(fair_samples[0], usage_completion_tokens=3, finish_reason="stop")
    assert judge_fairness(CONTRACT, PROFILE, (cold, *fair_samples[1:])).fair


@pytest.mark.parametrize("policy", [(False, True), (True, False)])
def test_a_contract_that_does_not_decode_greedily_to_the_end_cannot_be_fair(
    fair_samples: tuple[Sample, ...], policy: tuple[bool, bool]
) -> None:
    loose = dataclasses.replace(CONTRACT, decode=DecodePolicy(greedy=policy[0], ignore_eos=policy[1]))
    assert not judge_fairness(loose, PROFILE, fair_samples).fair


def test_many_offenders_are_counted_and_the_first_named(fair_samples: tuple[Sample, ...]) -> None:
    broken = tuple(dataclasses.replace(sample, finish_reason="stop") for sample in fair_samples)
    reason = judge_fairness(CONTRACT, PROFILE, broken).reasons[0]
    assert "stream 0, round 0" in reason
    assert reason.endswith("and 3 more")

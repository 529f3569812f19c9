"""Other systems' ways of streaming a completion, as their servers really write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lean.bench.client import CompletionRequest
from lean.bench.dialect import DIALECTS, VLLM
from lean.bench.fairness import judge_fairness
from lean.bench.metrics import request_metrics
from lean.bench.prompt import Prompt
from lean.bench.sample import Sample
from lean.bench.stream import read_answer
from lean.contracts import BenchProfile, load_contract


def stream(*events: dict[str, Any], done: bool) -> list[tuple[int, bytes]]:
    """Each event a millisecond after the last."""
    texts = [json.dumps(event) for event in events] + (["[DONE]"] if done else [])
    return [(1_000_000 * i, f"data: {text}\n\n".encode()) for i, text in enumerate(texts)]


def piece(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, **more}]}


def test_every_dialect_asks_for_the_same_greedy_tokens_in_its_own_words() -> None:
    prompt = Prompt(ids=(1, 2, 3), text="the lake")
    base = CompletionRequest(
        model="m", prompt=prompt, prompt_form="text", max_new_tokens=9, phase="measured", stream=0, round=0
    )
    bodies = {name: replace(base, dialect=dialect).body() for name, dialect in DIALECTS.items()}
    for body in bodies.values():
        assert (body["max_tokens"], body["temperature"], body["stream"]) == (9, 0.0, True)
        assert body["prompt"] == "the lake"
    assert bodies["vllm"]["ignore_eos"] and bodies["vllm"]["min_tokens"] == 9
    assert bodies["llama.cpp"]["ignore_eos"] and bodies["llama.cpp"]["cache_prompt"] is False
    generation = json.loads(bodies["transformers"]["generation_config"])
    assert generation == {"do_sample": False, "min_new_tokens": 9, "max_new_tokens": 9}
    assert replace(base, prompt_form="ids").body()["prompt"] == [1, 2, 3] and base.dialect is VLLM


def test_a_stream_of_transformers_ends_with_usage_and_its_last_event_brings_no_token() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    last = piece("", finish_reason="length") | {"usage": usage}
    answer = read_answer(stream(piece(" the"), piece(" la"), piece("ke"), last, done=False))
    assert not answer.finished and answer.told_its_end
    assert answer.event_tokens == (None, None, None, 0) and answer.completion_tokens == 3


def test_a_stream_that_broke_off_before_its_counts_did_not_end() -> None:
    assert not read_answer(stream(piece(" the"), piece(" la"), done=False)).told_its_end
    cut = piece("", finish_reason="length")
    assert not read_answer(stream(piece(" the"), cut, done=False)).told_its_end


def test_times_of_a_baseline_s_run_to_its_last_token_not_to_the_event_with_the_counts(
    make_sample: Callable[..., Sample],
) -> None:
    events = tuple(10_000_000 + 2_000_000 * i for i in range(16))
    sample = make_sample(event_ns=(*events, 99_000_000), event_tokens=(None,) * 16 + (0,))
    found = request_metrics(sample)
    assert found is not None
    assert found.ttft_s == pytest.approx(0.010) and found.e2e_s == pytest.approx(0.040)
    assert found.tpot_s == pytest.approx(0.002) and found.itl_s == ()


def test_the_fairness_gate_holds_for_a_baseline_s_samples_too(
    make_sample: Callable[..., Sample],
) -> None:
    profile = BenchProfile(
        id="decode_8_16", prompt_tokens=8, decode_tokens=16, batch=2, warmup_requests=1, requests=3, seed=7
    )
    samples = [
        make_sample(stream=stream_, round=turn, event_tokens=(None,) * 16, token_ids_sha256=None)
        for turn in range(3)
        for stream_ in range(2)
    ]
    assert judge_fairness(load_contract("tiny-cpu"), profile, samples).fair
    short = [replace(samples[0], usage_completion_tokens=15), *samples[1:]]
    assert not judge_fairness(load_contract("tiny-cpu"), profile, short).fair

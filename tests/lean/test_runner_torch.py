"""The torch runner on a random in-memory model: what a stream may and may not depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from one_prompt import prefill_one

from lean.contracts import Bucket, Geometry, load_contract
from lean.errors import CapacityError, UsageError
from lean.leanpack.layout import plan_tensors
from lean.leanserve.plan import resident_plan
from lean.leanserve.region_times import RegionLog
from lean.leanserve.runner import Choice, Piece, Runner, Sampling
from lean.leanserve.torch_runner import TorchRunner
from lean.regions.summary import read_regions

GEOMETRY = Geometry(layers=2, hidden=96, intermediate=160, query_heads=6, kv_heads=2, head_dim=32, vocab=515)
LENGTH = 300  # no multiple of a tile
FULL = Sampling(top_logprobs=GEOMETRY.vocab)  # greedy, and every log probability: a stream's exact bits
LIVELY = Sampling(temperature=0.9, top_p=0.95, seed=3)

MakeRunner = Callable[..., TorchRunner]


class ArrayPack:
    """A pack in memory: random BF16 weights as bit patterns, read-only as a mapping's are."""

    def __init__(self) -> None:
        tiny = load_contract("tiny-cpu")
        model = replace(tiny.model, geometry=GEOMETRY, tied_head=False)
        buckets = (Bucket(prompt=LENGTH - 100, generate=100, batch=(1, 8)),)
        self.manifest = SimpleNamespace(contract=replace(tiny, model=model, buckets=buckets))
        generator = np.random.default_rng(1)
        self._arrays = {}
        for planned in plan_tensors(model):
            values = generator.standard_normal(planned.shape, dtype=np.float32)
            values = 1 + values / 5 if len(planned.shape) == 1 else values / 6
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
            bits.flags.writeable = False
            self._arrays[planned.name] = bits

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        return self._arrays[name]


@pytest.fixture(scope="module")
def pack() -> ArrayPack:
    return ArrayPack()


@pytest.fixture
def make_runner(pack: ArrayPack) -> Iterator[MakeRunner]:
    threads = torch.get_num_threads()

    def make(
        slots: int = 8, threads: int = 1, dtype: str = "float32", split_k: int | None = None
    ) -> TorchRunner:
        runner = TorchRunner(pack, slots=slots, threads=threads, dtype=dtype, split_k=split_k)
        poison(runner)
        return runner

    yield make
    torch.set_num_threads(threads)


def poison(runner: TorchRunner) -> None:
    """Fill every slot's cache with NaN, as stale rows of the worst kind."""
    with torch.inference_mode():
        for slot in runner._cache._layers:
            for keys, values in slot:
                keys.fill_(float("nan"))
                values.fill_(float("nan"))


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(GEOMETRY.vocab, size=length).tolist()


def stream(
    runner: TorchRunner,
    tokens: list[int],
    *,
    slot: int = 0,
    bucket: int = 1,
    steps: int = 12,
    chunk: int = LENGTH,
    sampling: Sampling = FULL,
) -> list[Choice]:
    """The choices of one stream, its prompt in chunks."""
    last = (len(tokens) - 1) // chunk * chunk
    for start in range(0, last, chunk):
        assert prefill_one(runner, slot, tokens[start : start + chunk]) is None
    first = prefill_one(runner, slot, tokens[last:], sampling)
    assert first is not None
    return [first, *(step[slot] for step in runner.decode(bucket, steps))]


def test_it_is_a_runner_and_states_its_facts(make_runner: MakeRunner) -> None:
    runner: Runner = make_runner(slots=4)
    facts = runner.facts
    assert (facts.name, facts.device, facts.compute_dtype) == ("torch", "cpu", "float32")
    assert (facts.slots, facts.buckets, facts.threads) == (4, (1, 2, 4), 1)
    assert (facts.max_length, facts.vocab, facts.prefill_tile) == (LENGTH, GEOMETRY.vocab, 64)
    assert facts.load_seconds > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
@pytest.mark.parametrize("chunk", [64, 128, 1, 37])
def test_cutting_the_prompt_does_not_change_a_bit_of_the_stream(
    make_runner: MakeRunner, length: int, chunk: int, dtype: str
) -> None:
    whole = stream(make_runner(slots=1, dtype=dtype), prompt(1, length), steps=3)
    cut = stream(make_runner(slots=1, dtype=dtype), prompt(1, length), chunk=chunk, steps=3)
    assert cut == whole


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bucket", [2, 4, 8])
def test_neighbours_do_not_change_a_bit_of_a_stream_in_the_same_bucket(
    make_runner: MakeRunner, bucket: int, threads: int, dtype: str
) -> None:
    alone = stream(make_runner(threads=threads, dtype=dtype), prompt(1, 70), bucket=bucket)
    runner = make_runner(threads=threads, dtype=dtype)
    for slot in range(1, bucket):
        prefill_one(runner, slot, prompt(slot + 10, 20 * slot), LIVELY)
    assert stream(runner, prompt(1, 70), bucket=bucket) == alone


def test_prompts_that_come_together_are_the_same_as_alone(make_runner: MakeRunner) -> None:
    lengths = {2: 70, 0: 64, 3: 1}
    alone = [
        stream(make_runner(), prompt(slot, length), slot=slot, bucket=4) for slot, length in lengths.items()
    ]
    runner = make_runner()
    pieces = [Piece(slot=s, tokens=prompt(s, length), sampling=FULL) for s, length in lengths.items()]
    firsts, steps = runner.prefill(pieces), runner.decode(4, 12)
    assert [[first, *(step[s] for step in steps)] for s, first in zip(lengths, firsts, strict=True)] == alone


def test_one_piece_that_is_refused_leaves_all_as_they_were(make_runner: MakeRunner) -> None:
    runner = make_runner()
    good = Piece(slot=0, tokens=prompt(1, 10), sampling=FULL)
    for bad, words in (
        (Piece(slot=1, tokens=prompt(1, LENGTH + 1)), "slot 1: 0 positions held"),
        (Piece(slot=0, tokens=[1]), "slot 0: expected one piece of its prompt, got another"),
    ):
        with pytest.raises((CapacityError, UsageError), match=words):
            runner.prefill([good, bad])
        assert runner.snapshot(0).length == runner.snapshot(1).length == 0


@pytest.mark.parametrize("bucket", [2, 4, 8])
def test_the_row_a_stream_gets_does_not_change_a_bit(make_runner: MakeRunner, bucket: int) -> None:
    runner = make_runner()
    streams = [stream(runner, prompt(1, 70), slot=slot, bucket=bucket) for slot in reversed(range(bucket))]
    assert all(other == streams[0] for other in streams)


def test_a_neighbour_that_joins_or_leaves_mid_stream_changes_nothing(make_runner: MakeRunner) -> None:
    alone = stream(make_runner(), prompt(1, 70), bucket=4, steps=12)
    runner = make_runner()
    found = stream(runner, prompt(1, 70), bucket=4, steps=4)
    prefill_one(runner, 2, prompt(2, 90), LIVELY)
    found += [step[0] for step in runner.decode(4, 4)]
    runner.release(2)
    found += [step[0] for step in runner.decode(4, 4)]
    assert found == alone


def test_a_neighbour_full_of_nan_reaches_nobody(make_runner: MakeRunner) -> None:
    alone = stream(make_runner(), prompt(1, 70), bucket=2)
    runner = make_runner()
    prefill_one(runner, 1, prompt(2, 70), Sampling())
    poison(runner)  # the neighbour's held rows too, so its hidden states are NaN from its next step on
    found = stream(runner, prompt(1, 70), bucket=2)
    assert found == alone


def test_buckets_agree_up_to_rounding(make_runner: MakeRunner) -> None:
    runner = make_runner()
    streams = []
    for bucket in runner.facts.buckets:
        streams.append(stream(runner, prompt(1, 70), bucket=bucket, steps=60))
        runner.release(0)
    for other in streams[1:]:
        for ours, theirs in zip(streams[0], other, strict=True):
            mine, yours = dict(ours.top), dict(theirs.top)
            assert max(abs(mine[token] - yours[token]) for token in mine) < 1e-4
            if ours.token != theirs.token:
                assert abs(mine[ours.token] - mine[theirs.token]) < 1e-4, "diverged, and not at a near-tie"
                break


@pytest.mark.parametrize("sampling", [FULL, replace(LIVELY, top_logprobs=5)])
def test_a_restored_cursor_replays_the_same_choices(make_runner: MakeRunner, sampling: Sampling) -> None:
    runner = make_runner(slots=2)
    prefill_one(runner, 0, prompt(1, 70), sampling)
    runner.decode(2, 5)
    cursor = runner.snapshot(0)
    assert (cursor.length, cursor.generated) == (75, 6)
    played = runner.decode(2, 10)
    runner.restore(0, cursor)
    assert runner.snapshot(0) == cursor
    assert runner.decode(2, 10) == played


def test_a_cursor_restored_into_a_prompt_takes_another_ending(make_runner: MakeRunner) -> None:
    runner = make_runner(slots=1)
    expected = stream(runner, prompt(1, 100) + prompt(3, 20))
    runner.release(0)
    prefill_one(runner, 0, prompt(1, 100))
    cursor = runner.snapshot(0)
    stream(runner, prompt(2, 30))
    runner.restore(0, cursor)
    assert stream(runner, prompt(3, 20)) == expected


def test_a_cursor_whose_rows_are_gone_is_refused(make_runner: MakeRunner) -> None:
    runner = make_runner(slots=1)
    stream(runner, prompt(1, 70))
    late = runner.snapshot(0)
    runner.restore(0, replace(late, length=20))
    prefill_one(runner, 0, prompt(2, 5))
    with pytest.raises(UsageError, match="cannot restore 82 positions, it holds 25"):
        runner.restore(0, late)
    runner.release(0)
    with pytest.raises(UsageError, match="it holds 0"):
        runner.restore(0, replace(late, length=20))


def test_release_disarms_and_empties_a_slot(make_runner: MakeRunner) -> None:
    runner = make_runner(slots=2)
    first = stream(runner, prompt(1, 70), bucket=2)
    runner.release(0)
    assert runner.decode(2, 2) == [{}, {}]
    assert runner.snapshot(0).length == 0
    assert stream(runner, prompt(1, 70), bucket=2) == first


def test_only_armed_slots_below_the_bucket_advance(make_runner: MakeRunner) -> None:
    runner = make_runner(slots=4)
    for slot in (0, 1, 3):
        prefill_one(runner, slot, prompt(slot, 10), None if slot == 1 else Sampling())
    assert [set(step) for step in runner.decode(2, 2)] == [{0}, {0}]
    assert [set(step) for step in runner.decode(4, 1)] == [{0, 3}]
    assert [runner.snapshot(slot).length for slot in range(4)] == [13, 10, 0, 11]


def test_a_prompt_beyond_the_slot_is_refused_before_anything_is_written(make_runner: MakeRunner) -> None:
    runner = make_runner(slots=1)
    prefill_one(runner, 0, prompt(1, 290))
    before, held = runner.snapshot(0), runner._cache._layers[0][0][0].clone()
    with pytest.raises(CapacityError, match="290 positions held, 11 more asked for, but a slot has 300"):
        prefill_one(runner, 0, prompt(2, 11), Sampling())
    assert runner.snapshot(0) == before
    assert torch.equal(runner._cache._layers[0][0][0].view(torch.int32), held.view(torch.int32))
    assert prefill_one(runner, 0, prompt(2, 10), Sampling()) is not None


def test_steps_beyond_a_slot_are_refused_before_any_slot_moves(make_runner: MakeRunner) -> None:
    runner = make_runner(slots=2)
    prefill_one(runner, 0, prompt(1, 10), Sampling())
    prefill_one(runner, 1, prompt(1, 295), Sampling())
    with pytest.raises(CapacityError, match="slot 1: 295 positions held, 6 more asked for"):
        runner.decode(2, 6)
    assert [runner.snapshot(slot).length for slot in (0, 1)] == [10, 295]
    assert len(runner.decode(2, 5)) == 5
    assert runner.snapshot(1).length == LENGTH


@pytest.mark.parametrize(
    ("slot", "tokens", "sampling", "problem"),
    [
        (8, [1], FULL, "slot: expected 0 to 7, got 8"),
        (-1, [1], FULL, "slot: expected 0 to 7, got -1"),
        (0, [], FULL, "prompt: expected at least one token"),
        (0, [1, 515], FULL, "prompt: token 515 is outside the vocabulary of 515"),
        (0, [-1], FULL, "prompt: token -1 is outside"),
        (0, [1], Sampling(suppress=(515,), suppress_steps=1), "suppress: token 515 is outside"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    make_runner: MakeRunner, slot: int, tokens: list[int], sampling: Sampling, problem: str
) -> None:
    runner = make_runner()
    with pytest.raises(UsageError, match=problem):
        prefill_one(runner, slot, tokens, sampling)
    assert runner.snapshot(0).length == 0


def test_an_unknown_bucket_is_refused(make_runner: MakeRunner) -> None:
    with pytest.raises(UsageError, match="bucket: expected one of 1, 2, 4, got 8"):
        make_runner(slots=4).decode(8, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_as_large_as_planned(make_runner: MakeRunner, pack: ArrayPack, dtype: Any) -> None:
    plan = resident_plan(pack.manifest.contract, slots=4, compute_dtype=dtype)
    assert make_runner(slots=4, dtype=dtype)._cache.nbytes == plan.kv_bytes


def test_weights_are_used_where_the_pack_holds_them(make_runner: MakeRunner, pack: ArrayPack) -> None:
    model = make_runner(slots=1)._model
    assert model.head.data_ptr() == pack.tensor("head").ctypes.data
    assert model.layers[1].qkv.data_ptr() == pack.tensor("layers.1.attention.qkv").ctypes.data


def test_a_split_projection_is_the_whole_one_but_for_rounding(make_runner: MakeRunner) -> None:
    prompt = list(range(40, 60))
    whole = prefill_one(make_runner(slots=1), 0, prompt, FULL)
    found = {}
    for split_k in (1, 8):
        runner = make_runner(slots=1, split_k=split_k)
        assert runner.facts.split_k == split_k
        assert prefill_one(runner, 0, prompt, FULL) == whole  # prompts take the projection whole
        (found[split_k],) = runner.decode(1, 1)
    plain = make_runner(slots=1)
    prefill_one(plain, 0, prompt, FULL)
    (expected,) = plain.decode(1, 1)
    assert plain.facts.split_k is None
    wanted = dict(expected[0].top)
    for step in found.values():
        assert step != expected
        assert max(abs(value - wanted[token]) for token, value in step[0].top) < 1e-3


def test_every_step_of_a_timed_runner_has_a_row(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(slots=2)
    log = RegionLog(tmp_path / "steps.jsonl", {})
    prefill_one(runner, 0, [1, 2, 3], FULL)
    runner.decode(1, 2)
    runner.time_regions(log)
    timed = runner.decode(1, 3)
    prefill_one(runner, 1, [4, 5], LIVELY)
    runner.decode(2, 2)
    runner.time_regions(None)
    runner.decode(2, 1)
    log.close()
    rows = read_regions(log.path).steps
    assert [(row.bucket, row.choose, row.after) for row in rows] == [
        (1, "greedy", "start"),
        (1, "greedy", "step"),
        (1, "greedy", "step"),
        (2, "sampled", "prompt"),
        (2, "sampled", "step"),
    ]
    assert all(seconds > 0 for row in rows for seconds in row.work_s)
    plain = make_runner(slots=2)
    prefill_one(plain, 0, [1, 2, 3], FULL)
    assert plain.decode(1, 5)[2:] == timed

"""The cuda runner's own logic, on a device that is not there: a stand-in computes tokens, late and in order.

The stand-in keeps the same small buffers a GPU would, runs programs only when somebody waits for them, and
makes each token from everything the slot has seen and its draw, so that a step on a wrong state shows.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from one_prompt import prefill_one

pytest.importorskip("cuda.bindings", reason="cuda-bindings, the driver's Python side, is not installed")

from kernels.qwen3 import decode_program, kernel_specs
from kernels.tiles import load_tiles
from lean.contracts import load_contract
from lean.errors import CapacityError, PackError, UsageError
from lean.kernel_sizes import sizes_of
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanpack.layout import plan_tensors
from lean.leanserve.cuda.appliance import check_programs
from lean.leanserve.cuda.programs import LoadedKernel
from lean.leanserve.cuda.runner import DEEPEST, CudaRunner
from lean.leanserve.region_times import REGIONS, RegionLog, StepTimes
from lean.leanserve.runner import Piece, Sampling
from lean.regions.summary import read_regions

ROOT = Path(__file__).resolve().parents[3]
CONTRACT = load_contract("tiny-cpu")
SIZES = sizes_of(CONTRACT)
VOCAB, LENGTH = CONTRACT.model.geometry.vocab, CONTRACT.max_length


class Device:
    """Work in order, done when somebody waits."""

    facts = SimpleNamespace(name="no such GPU", unified=False)
    stream = "the stream"

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def pinned(self, count: int) -> Any:
        return np.zeros(count, np.uint8)

    def event(self) -> Any:
        return SimpleNamespace(record=lambda stream: None, wait=self.synchronise)

    def synchronise(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()

    def run(self) -> None:
        """Do one thing of what waits."""
        if self.waiting:
            self.waiting.pop(0)()

    def copy_out(self, array: Any, host: Any) -> None:
        self.waiting.append(lambda: np.copyto(host, array.reshape(-1)[: host.size].reshape(host.shape)))


class Appliance:
    """What `lean.leanserve.cuda.appliance.Appliance` offers, with arithmetic in place of a model."""

    def __init__(self) -> None:
        self.device = Device()
        self.sizes = SimpleNamespace(prompt_rows=(64, 256))
        names = ("tokens", "positions", "drawn", "until", "chosen", "top_k")
        self.buffers: dict[str, Any] = {name: np.zeros(8, np.int32) for name in names}
        self.buffers |= {name: np.zeros(8, np.float32) for name in ("temperature", "top_p", "uniform")}
        self.buffers["banned"] = np.zeros(64, np.int32)
        unwritten = (("prompt", 256), ("groups", 12), ("last_rows", 8), ("last_slots", 8))
        self.buffers |= {name: np.full(size, -99, np.int32) for name, size in unwritten}
        self.buffers["logits"] = np.zeros((8, VOCAB), np.float32)
        self.buffers["positions"][:] = -1
        self.rows: dict[int, list[int]] = {slot: [] for slot in range(8)}
        self.wide: list[tuple[int, int] | None] = [None] * 256  # slot and position of each row
        self.steps = 0
        self.prompts: list[str] = []
        self.programs = self  # what records programs
        self.now = 0.0

    def write(self, name: str, values: Any, *, first: int = 0) -> None:
        copied = np.array(values).reshape(-1)
        buffer = self.buffers[name]
        self.device.waiting.append(lambda: buffer.__setitem__(slice(first, first + copied.size), copied))

    def prompt(self, rows: int) -> None:
        self.prompts.append(f"prompt {rows}")
        self.device.waiting.append(lambda: self._prompt(rows))

    def predict(self, count: int, choose: str) -> None:
        self.prompts.append(f"predict {count}")
        self.device.waiting.append(lambda: self._predict(count, choose))

    def decode(self, bucket: int, choose: str) -> None:
        self.device.waiting.append(lambda: self._decode(bucket, choose))

    def decode_launches(self, bucket: int, choose: str) -> Any:
        self.asked = bucket, choose
        return decode_program(SIZES, bucket, choose)

    def record_apart(self, parts: Any) -> Any:
        """Each part takes a second a launch, and between two graphs the device idles for half of one."""
        bucket, choose = self.asked
        moments = [Moment(self) for _ in range(len(parts) + 1)]

        def run() -> None:
            self.now += 0.5
            moments[0].at = self.now
            for part, moment in zip(parts, moments[1:], strict=True):
                self.now += len(part)
                moment.at = self.now
            self._decode(bucket, choose)

        return SimpleNamespace(launch=lambda: self.device.waiting.append(run)), tuple(moments)

    def _prompt(self, rows: int) -> None:
        for group, (slot, first, count) in enumerate(self.buffers["groups"].reshape(-1, 3)[: rows // 64]):
            assert 0 <= slot < 8 and 0 <= count <= 64 and first + count <= LENGTH
            tokens = self.buffers["prompt"][64 * group :][:64]
            assert all(0 <= token < VOCAB for token in tokens)  # the padding is looked up too
            self.wide[64 * group : 64 * group + 64] = [
                (int(slot), int(first) + row) if row < count else None for row in range(64)
            ]
            if count:
                assert len(self.rows[slot]) >= first
                self.rows[slot][first:] = tokens[:count].tolist()

    def _predict(self, count: int, choose: str) -> None:
        assert all(0 <= row < 256 for row in self.buffers["last_rows"])  # those beyond `count` are read too
        for row in range(count):
            slot = int(self.buffers["last_slots"][row])
            assert self.wide[self.buffers["last_rows"][row]] == (slot, len(self.rows[slot]) - 1)
            assert self.buffers["positions"][slot] == len(self.rows[slot])
            self._choose(row, slot, choose)

    def _decode(self, bucket: int, choose: str) -> None:
        self.steps += 1
        for slot in range(bucket):
            place = int(self.buffers["positions"][slot])
            if not 0 <= place < LENGTH:
                self.buffers["chosen"][slot] = -1
                continue
            self.rows[slot][place:] = [int(self.buffers["tokens"][slot])]
            self.buffers["positions"][slot] += 1
            self._choose(slot, slot, choose)

    def _choose(self, row: int, slot: int, choose: str) -> None:
        seen = self.rows[slot]
        token = hash((tuple(seen), int(self.buffers["drawn"][slot]))) % VOCAB
        if choose == "sampled" and self.buffers["temperature"][slot] > 0:
            token = (token + int(self.buffers["uniform"][slot] * 1000)) % VOCAB
        self.buffers["logits"][row] = -1.0
        self.buffers["logits"][row, token] = 1.0
        self.buffers["tokens"][slot] = self.buffers["chosen"][row] = token
        self.buffers["drawn"][slot] += 1


class Moment:
    """An event of a device whose clock is `Appliance.now`."""

    def __init__(self, appliance: Appliance) -> None:
        self.at: float | None = None
        self._device = appliance.device

    def wait(self) -> None:
        while self.at is None:
            self._device.run()

    def seconds_since(self, earlier: Moment) -> float:
        assert self.at is not None and earlier.at is not None
        return self.at - earlier.at


@pytest.fixture
def appliance() -> Appliance:
    return Appliance()


@pytest.fixture
def runner(appliance: Appliance) -> CudaRunner:
    return CudaRunner(appliance, CONTRACT, slots=8)  # type: ignore[arg-type]


def start(runner: CudaRunner, slot: int, prompt: list[int], **settings: Any) -> int:
    choice = prefill_one(runner, slot, prompt, Sampling(**settings))
    assert choice is not None
    return choice.token


def alone(prompt: list[int], steps: int, **settings: Any) -> list[int]:
    """The stream with nobody else there."""
    runner = CudaRunner(Appliance(), CONTRACT, slots=8)  # type: ignore[arg-type]
    first = start(runner, 0, prompt, **settings)
    return [first, *(step[0].token for _ in range(steps) for step in runner.decode(8, 1))]


def test_a_stream_is_the_same_whoever_joins_and_leaves(runner: CudaRunner) -> None:
    got = {0: [start(runner, 0, [5, 6, 7])]}
    for turn in range(40):
        if turn == 3:
            got[3] = [start(runner, 3, [9] * 30)]
        if turn == 5:
            got[1] = [start(runner, 1, [8], temperature=0.7, seed=4)]
        if turn == 9:
            runner.release(3)
            assert got.pop(3) == alone([9] * 30, 6)
        if turn == 11:
            got[3] = [start(runner, 3, [2, 2])]
        (step,) = runner.decode(8, 1)
        assert step.keys() == got.keys()
        for slot, choice in step.items():
            got[slot].append(choice.token)
    assert got[0] == alone([5, 6, 7], 40)
    assert got[1] == alone([8], 35, temperature=0.7, seed=4)
    assert got[3] == alone([2, 2], 29)


def test_a_nucleus_too_small_for_f32_is_the_smallest_and_not_none(
    appliance: Appliance, runner: CudaRunner
) -> None:
    prefill_one(runner, 0, [1, 2, 3], Sampling(temperature=1.0, top_p=1e-50))
    assert appliance.buffers["top_p"][0] > 0


def test_the_next_step_is_started_before_this_one_is_read(appliance: Appliance, runner: CudaRunner) -> None:
    start(runner, 0, [1, 2, 3])
    runner.decode(1, 1)
    appliance.device.synchronise()
    assert appliance.steps == 2


def test_no_step_is_started_that_nobody_will_read(appliance: Appliance, runner: CudaRunner) -> None:
    start(runner, 0, [1, 2, 3], max_tokens=4)
    for _ in range(3):
        runner.decode(1, 1)
    appliance.device.synchronise()
    assert appliance.steps == 3


def test_who_joins_wastes_nobody_s_step(appliance: Appliance, runner: CudaRunner) -> None:
    for slot in range(8):
        start(runner, slot, [slot, 1], max_tokens=20)
        runner.decode(8, 1)
    for _ in range(11):
        runner.decode(8, 1)
    appliance.device.synchronise()
    assert appliance.steps <= 8 + 11 + 8  # one ahead for each that joined


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_stream_is_the_same_while_seven_others_join_one_by_one(runner: CudaRunner, every: int) -> None:
    got = [start(runner, 0, [5, 5])]
    for turn in range(60):
        if turn % every == 0 and turn // every < 7:
            start(runner, turn // every + 1, [turn, 3])
        got.append(runner.decode(8, 1)[0][0].token)
    assert got == alone([5, 5], 60)


@pytest.mark.parametrize("every", [1, 2, 8])
def test_a_stream_is_the_same_while_a_neighbour_is_replaced_again_and_again(
    runner: CudaRunner, every: int
) -> None:
    got = [start(runner, 0, [5, 5])]
    for turn in range(120):
        if turn % every == 0:
            runner.release(turn % 7 + 1)
            start(runner, turn % 7 + 1, [turn, 3])
        got.append(runner.decode(8, 1)[0][0].token)
    assert got == alone([5, 5], 120)
    assert max(len(slot.unread) for slot in runner._slots) <= DEEPEST + 1


def test_many_one_token_prompts_between_two_steps_leave_a_stream_alone(runner: CudaRunner) -> None:
    got = [start(runner, 0, [5, 5])]
    for turn in range(10):
        for other in range(16):
            start(runner, other % 7 + 1, [turn, other], max_tokens=1)
            runner.release(other % 7 + 1)
        got.append(runner.decode(8, 1)[0][0].token)
    assert got == alone([5, 5], 10)


def test_a_prompt_over_a_stream_that_decodes_stops_it_on_the_device_too(
    appliance: Appliance, runner: CudaRunner
) -> None:
    start(runner, 0, [1])
    start(runner, 1, [2])
    runner.decode(8, 2)
    prefill_one(runner, 1, [7, 8, 9])
    assert [step.keys() for step in runner.decode(8, 3)] == [{0}] * 3
    appliance.device.synchronise()
    assert appliance.rows[1][:1] == [2] and appliance.rows[1][-3:] == [7, 8, 9]


def test_many_steps_at_once_are_the_same_steps(runner: CudaRunner) -> None:
    first = start(runner, 0, [4, 4])
    assert [first, *(step[0].token for step in runner.decode(2, 12))] == alone([4, 4], 12)


def test_a_restored_cursor_replays_the_same_tokens(runner: CudaRunner) -> None:
    start(runner, 2, [1, 2, 3], temperature=0.9, seed=11)
    start(runner, 0, [7])
    runner.decode(8, 3)
    cursor = runner.snapshot(2)
    went = [step[2].token for step in runner.decode(8, 6)]
    others = [step[0].token for step in runner.decode(8, 1)]
    runner.restore(2, cursor)
    again = runner.decode(8, 6)
    assert [step[2].token for step in again] == went
    assert alone([7], 16)[10:] == [*others, *(step[0].token for step in again)]


def test_a_cursor_of_rows_that_are_gone_is_refused(runner: CudaRunner) -> None:
    start(runner, 0, [1, 2, 3])
    cursor = runner.snapshot(0)
    runner.release(0)
    with pytest.raises(UsageError, match="cannot restore 3 positions, it holds 0"):
        runner.restore(0, cursor)


def test_log_probabilities_come_from_the_step_s_own_logits(runner: CudaRunner) -> None:
    first = prefill_one(runner, 0, [1, 2], Sampling(top_logprobs=2))
    assert first is not None
    start(runner, 1, [3])
    for choice in [first, *(step[0] for _ in range(5) for step in runner.decode(8, 1))]:
        assert choice.top[0][0] == choice.token
        assert choice.logprob == pytest.approx(choice.top[0][1])
        assert choice.logprob == pytest.approx(1.0 - np.log(np.e + (VOCAB - 1) / np.e), abs=1e-6)


def test_a_prompt_that_comes_in_parts_is_the_same_prompt(runner: CudaRunner) -> None:
    prefill_one(runner, 0, list(range(20)))
    prefill_one(runner, 0, list(range(20, 33)))
    first = start(runner, 0, [40])
    assert [first, *(step[0].token for step in runner.decode(1, 4))] == alone([*range(33), 40], 4)


def together(runner: CudaRunner, *pieces: tuple[int, list[int], Sampling | None]) -> list[int | None]:
    """The first tokens of (slot, tokens, sampling) that come in together."""
    choices = runner.prefill([Piece(slot=s, tokens=tokens, sampling=how) for s, tokens, how in pieces])
    return [None if choice is None else choice.token for choice in choices]


def test_short_prompts_that_come_together_go_through_the_device_together(
    appliance: Appliance, runner: CudaRunner
) -> None:
    together(runner, *((slot, [slot] * 64, Sampling()) for slot in range(4)))
    assert appliance.prompts == ["prompt 256", "predict 4"]


def test_streams_whose_prompts_came_together_are_those_of_prompts_that_came_alone(runner: CudaRunner) -> None:
    prompts = {3: [9], 0: [1, 2] * 32, 5: [7] * 65, 1: list(range(130)), 6: [4] * 300}
    settings = {slot: {"temperature": 0.8 if slot % 2 else 0.0, "seed": slot} for slot in prompts}
    firsts = together(runner, *((s, tokens, Sampling(**settings[s])) for s, tokens in prompts.items()))
    steps = runner.decode(8, 6)
    for first, (slot, tokens) in zip(firsts, prompts.items(), strict=True):
        assert [first, *(step[slot].token for step in steps)] == alone(tokens, 6, **settings[slot])


def test_a_prompt_that_ends_in_an_early_program_is_answered_from_it(
    appliance: Appliance, runner: CudaRunner
) -> None:
    firsts = together(runner, (2, [5] * 100, Sampling()), (1, [6] * 250, Sampling()), (4, [7], Sampling()))
    assert appliance.prompts == ["prompt 256", "predict 1", "prompt 256", "predict 2"]
    assert firsts == [alone([5] * 100, 0)[0], alone([6] * 250, 0)[0], alone([7], 0)[0]]


def test_a_piece_in_the_middle_of_a_prompt_beside_one_that_ends(
    appliance: Appliance, runner: CudaRunner
) -> None:
    firsts = together(runner, (0, [1] * 64, None), (1, [2] * 3, Sampling()))
    assert appliance.prompts == ["prompt 256", "predict 1"]
    assert firsts == [None, alone([2] * 3, 0)[0]]
    assert [step.keys() for step in runner.decode(8, 2)] == [{1}] * 2
    assert together(runner, (0, [8], Sampling()), (2, [3], None)) == [alone([1] * 64 + [8], 0)[0], None]


def test_a_stream_keeps_flowing_while_others_prompts_come_together(runner: CudaRunner) -> None:
    got = [start(runner, 0, [5, 5])]
    for turn in range(12):
        if turn % 3 == 1:
            runner.release(2)
            together(runner, *((slot, [turn, slot] * 40, Sampling()) for slot in (1, 2, 3)))
            for slot in (1, 3):
                runner.release(slot)
        got.append(runner.decode(8, 1)[0][0].token)
    assert got == alone([5, 5], 12)


def test_each_of_several_prompts_has_its_own_log_probabilities(runner: CudaRunner) -> None:
    pieces = [Piece(slot=s, tokens=[s + 1] * 70, sampling=Sampling(top_logprobs=s)) for s in (2, 1, 3)]
    for piece, choice in zip(pieces, runner.prefill(pieces), strict=True):
        assert choice is not None and choice.top[0][0] == choice.token == alone([*piece.tokens], 0)[0]
        assert len(choice.top) == piece.slot


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Piece(slot=1, tokens=[1] * (LENGTH + 1)), "slot 1: 0 positions held"),
        (Piece(slot=1, tokens=[VOCAB]), "outside the vocabulary"),
        (Piece(slot=0, tokens=[1]), "slot 0: expected one piece of its prompt, got another"),
    ],
)
def test_one_piece_that_is_refused_leaves_all_as_they_were(
    appliance: Appliance, runner: CudaRunner, bad: Piece, words: str
) -> None:
    before = len(appliance.device.waiting)
    with pytest.raises((CapacityError, UsageError), match=words):
        runner.prefill([Piece(slot=0, tokens=[1, 2], sampling=Sampling()), bad])
    assert (appliance.prompts, len(appliance.device.waiting)) == ([], before)
    assert runner.snapshot(0).length == runner.snapshot(1).length == 0
    assert start(runner, 0, [1, 2]) == alone([1, 2], 0)[0]


def test_an_empty_slot_and_one_in_its_prompt_are_left_alone(runner: CudaRunner) -> None:
    start(runner, 0, [1])
    prefill_one(runner, 1, [5, 6])
    assert [step.keys() for step in runner.decode(8, 3)] == [{0}] * 3
    first = start(runner, 1, [7])
    assert [first, *(step[1].token for step in runner.decode(8, 4))] == alone([5, 6, 7], 4)


def test_a_slot_ends_where_its_cache_does(runner: CudaRunner) -> None:
    start(runner, 0, [1] * (LENGTH - 2))
    runner.decode(1, 2)
    with pytest.raises(CapacityError, match=f"{LENGTH} positions held, 1 more asked for"):
        runner.decode(1, 1)
    with pytest.raises(CapacityError):
        prefill_one(runner, 1, [1] * (LENGTH + 1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: prefill_one(r, 8, [1]), "slot: expected 0 to 7, got 8"),
        (lambda r: prefill_one(r, 0, []), "at least one token"),
        (lambda r: prefill_one(r, 0, [VOCAB]), f"token {VOCAB} is outside"),
        (lambda r: prefill_one(r, 0, [1], Sampling(suppress=(VOCAB,))), "suppress: token"),
        (lambda r: prefill_one(r, 0, [1], Sampling(suppress=tuple(range(9)))), "holds back at most 8"),
        (lambda r: r.decode(3, 1), "bucket: expected one of 1, 2, 4, 8, got 3"),
        (lambda r: r.release(-1), "slot: expected 0 to 7"),
    ],
)
def test_bad_input_is_a_named_error(
    runner: CudaRunner, call: Callable[[CudaRunner], Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        call(runner)


def loaded() -> dict[str, LoadedKernel]:
    """The kernels of the contract as a pack brings them, without a device."""
    specs = kernel_specs(sizes_of(CONTRACT), load_tiles("sm_90"))
    return {spec.name: LoadedKernel(handle=None, arrays=spec.arrays, grid=spec.grid) for spec in specs}


def check(kernels: dict[str, LoadedKernel], slots: int = 2) -> None:
    weights = {tensor.name: 0 for tensor in plan_tensors(CONTRACT.model)} | {"head": 0}
    pack: Any = SimpleNamespace(path="packs/p")
    check_programs(pack, sizes_of(CONTRACT), slots, kernels, weights)


def test_the_kernels_of_this_release_fit_its_programs_for_any_number_of_slots() -> None:
    for slots in (1, 2, 4, 8):
        check(loaded(), slots)


def test_a_pack_that_lacks_a_kernel_is_refused_before_the_first_request() -> None:
    kernels = loaded()
    del kernels["sampled.rows"]
    with pytest.raises(PackError, match=r"packs/p: kernel sampled\.rows is missing; pack it again"):
        check(kernels)


def test_a_kernel_for_larger_buffers_than_there_are_is_refused() -> None:
    kernels = loaded()
    *others, last = kernels["attention.one"].arrays
    wider = replace(last, shape=(*last.shape[:-1], 1 << 20))
    kernels["attention.one"] = replace(kernels["attention.one"], arrays=(*others, wider))
    with pytest.raises(PackError, match=r"kernel attention\.one takes mixed as bf16"):
        check(kernels)


def test_the_rotary_table_is_the_reference_s() -> None:
    torch = pytest.importorskip("torch", reason="torch, the reference's library, is not installed")
    from kernels.attention.reference import rotary_table as reference
    from lean.leanserve.cuda.appliance import rotary_table

    ours = torch.from_numpy(rotary_table(128, 1e6, 1088))
    assert torch.allclose(ours, reference(128, 1e6, 1088), atol=2e-4)  # the reference's angles are FP32


WITHOUT = """
import runpy, sys
for name in ("torch", "cuda.tile", "triton", "cupy"):
    sys.modules[name] = None  # importing it fails
sys.argv = ["lean.leanserve", *sys.argv[1:]]
runpy.run_module("lean.leanserve", run_name="__main__")
"""


def test_the_process_needs_neither_torch_nor_a_compiler_up_to_the_missing_driver(
    tmp_path: Path,
) -> None:
    request = BuildRequest(seed=1, contract=CONTRACT, packs=tmp_path, encoding="bf16", target="cpu")
    pack = build_pack(request).path
    arguments = ["measure", "--pack", pack, "--profile", "decode_64_256", "--runner", "cuda"]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    if ended.returncode == 0 or "no kernels for" in ended.stderr + ended.stdout:
        pytest.skip("there is a GPU here: nothing is missing")
    assert ended.returncode == 4
    assert "the cuda runner needs a GPU" in ended.stdout + ended.stderr
    assert "install NVIDIA driver r580 or later" in ended.stdout + ended.stderr


def timed(runner: CudaRunner, path: Path, steps: int) -> tuple[list[int], tuple[StepTimes, ...]]:
    """Tokens of slot 0 and the rows written meanwhile."""
    log = RegionLog(path, {})
    runner.time_regions(log)
    tokens = [step[0].token for _ in range(steps) for step in runner.decode(8, 1)]
    runner.time_regions(None)
    log.close()
    return tokens, read_regions(path).steps


def test_a_timed_step_has_a_row_and_chooses_the_same_tokens(runner: CudaRunner, tmp_path: Path) -> None:
    first, *rest = alone([3, 1, 4], 20)
    assert start(runner, 0, [3, 1, 4]) == first
    tokens, rows = timed(runner, tmp_path / "steps.jsonl", 20)
    assert tokens == rest
    layers = SIZES.layers
    once = {"embedding": 1.0, "head": 1.0, "choose": 2.0}
    for row in rows:
        work = dict(zip(REGIONS, row.work_s, strict=True))
        assert work == dict.fromkeys(REGIONS, float(layers)) | once
    assert [(row.after, row.wait_s) for row in rows[:2]] == [("start", 0.0), ("step", 0.5)]
    assert len(rows) == 21  # the step that was on its way is a step too
    assert [step[0].token for step in runner.decode(8, 5)] == alone([3, 1, 4], 25)[21:]


def test_a_step_behind_a_prompt_says_so(runner: CudaRunner, tmp_path: Path) -> None:
    start(runner, 0, [3, 1, 4])
    log = RegionLog(tmp_path / "steps.jsonl", {})
    runner.time_regions(log)
    runner.decode(8, 3)
    start(runner, 1, [1, 5])
    runner.decode(8, 3)
    runner.time_regions(None)
    log.close()
    assert [row.after for row in read_regions(log.path).steps].count("prompt") == 1


def test_a_sampled_step_says_so_and_its_search_counts_as_choosing(runner: CudaRunner, tmp_path: Path) -> None:
    start(runner, 0, [3, 1, 4], temperature=0.8)
    _, rows = timed(runner, tmp_path / "steps.jsonl", 4)
    assert {row.choose for row in rows} == {"sampled"}
    assert {row.work_s[REGIONS.index("choose")] for row in rows} == {18.0}

"""Measuring reading and single kernels, on a device that only counts: every byte read takes its time."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="cuda-bindings, the driver's Python side, is not installed")

from kernels.driver import CudaError
from kernels.encodings import ENCODINGS
from kernels.qwen3 import decode_program, kernel_specs
from kernels.tiles import load_tiles
from lean.bench.traffic import step_traffic
from lean.cli import run_program
from lean.contracts import (
    BenchProfile,
    Contract,
    encoded_contract,
    from_data,
    load_contract,
    load_profile,
)
from lean.errors import PackError, PreflightError
from lean.host_facts import host_id
from lean.in_process import CACHE_BYTES, InProcess
from lean.kernel_sizes import sizes_of
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanpack.layout import plan_aliases, plan_tensors
from lean.leanserve.__main__ import main
from lean.leanserve.cuda import speed
from lean.leanserve.cuda.appliance import Appliance
from lean.leanserve.cuda.programs import LoadedKernel, Programs
from lean.leanserve.cuda.speed import SAMPLES, measure_speed
from lean.leanserve.step_reads import step_reads

GBS, LAUNCH_S = 100.0, 2e-6  # what the device reads, and what every launch takes beside
READ = "read_bandwidth"
ROOT = Path(__file__).resolve().parents[3]


class Clockwork:
    """A device whose clock runs by the launches that were started."""

    stream = "the stream"

    def __init__(self) -> None:
        self.now = 0.0
        self.started: list[tuple[str, tuple[int, ...]]] = []  # kernel, pointers
        self.recording: list[tuple[str, tuple[int, ...]]] | None = None
        self.read_bytes: dict[str, float] = {}  # of one launch
        self.graphs: list[list[tuple[str, tuple[int, ...]]]] = []
        self.made: list[tuple[int, int]] = []  # pointer, bytes
        self.room = 1 << 40

    def empty(self, shape: Any, dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > self.room:
            raise CudaError("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory")
        self.made.append(((1 << 50) + sum(-(-size // 256) * 256 for _, size in self.made), size))
        return SimpleNamespace(pointer=self.made[-1][0], shape=shape)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[None]:
        yield
        self.given_back = len(self.made)

    def launch(self, kernel: str, *, grid: Any, arguments: Any, early: bool) -> None:
        assert early and self.recording is not None
        self.recording.append((kernel, tuple(argument.pointer for argument in arguments)))

    @contextlib.contextmanager
    def capture(self) -> Iterator[Any]:
        self.recording = recorded = []
        self.graphs.append(recorded)
        yield SimpleNamespace(launch=lambda: self.started.extend(recorded), recorded=recorded)
        self.recording = None

    def synchronise(self) -> None:
        for kernel, _ in self.started:
            self.now += LAUNCH_S + self.read_bytes[kernel] / (GBS * 1e9)
        self.started.clear()


class Standing:
    """An appliance of a contract's kernels; its weight files lie one after another, with gaps between."""

    def __init__(self, contract: Contract, *, without: str = "") -> None:
        self.device = Clockwork()
        self.sizes = sizes_of(contract)
        self.split_k: int | None = None
        self.pack = SimpleNamespace(path="packs/p", manifest=SimpleNamespace(tensors=_tensors(contract)))
        self._weights = {tensor.name: tensor.place for tensor in self.pack.manifest.tensors}
        self._weights |= {alias: self._weights[of] for alias, of in plan_aliases(contract.model).items()}
        specs = [spec for spec in kernel_specs(self.sizes, load_tiles("sm_90")) if spec.name != without]
        kernels = {s.name: LoadedKernel(handle=s.name, arrays=s.arrays, grid=s.grid) for s in specs}
        launches = [launch for batch in (1, 2, 4, 8) for launch in decode_program(self.sizes, batch)]
        pointers = {name: 0 for launch in launches for name in launch.buffers} | self._weights
        self.programs = Programs(self.device, kernels, pointers)  # type: ignore[arg-type]
        self.written: list[tuple[str, list[int]]] = []

    def weight_files(self) -> list[tuple[int, int]]:
        return Appliance.weight_files(self)  # type: ignore[arg-type]

    def write(self, name: str, values: Any, *, first: int = 0) -> None:
        self.written.append((name, np.asarray(values).tolist()))

    def take_time(self, batch: int, positions: int) -> None:
        """Let every kernel take as long as its bytes need."""
        reads = step_reads(self.sizes, batch=batch, positions=positions)
        self.device.read_bytes = {own.kernel: own.read_bytes / len(own.launches) for own in reads}
        if READ in self.programs.kernels:
            self.device.read_bytes[READ] = self.programs.kernels[READ].arrays[0].nbytes


def _tensors(contract: Contract) -> list[Any]:
    found, place, file = [], 1 << 40, ""
    for tensor in plan_tensors(contract.model):
        place += 0 if tensor.file == file else 1 << 30
        file, size = tensor.file, 2 * int(np.prod(tensor.shape))
        found.append(SimpleNamespace(name=tensor.name, file=file, size=size, place=place))
        place += -(-size // 4096) * 4096
    return found


def measured(
    contract: Contract, profile: BenchProfile, monkeypatch: pytest.MonkeyPatch
) -> tuple[Standing, speed.Speed]:
    standing = Standing(contract)
    standing.take_time(profile.batch, profile.prompt_tokens + profile.decode_tokens // 2)
    monkeypatch.setattr(speed, "perf_counter", lambda: standing.device.now)
    return standing, measure_speed(standing, profile)  # type: ignore[arg-type]


H100 = load_contract("qwen3-4b-base-bf16-h100")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["decode_64_256", "decode_64_256_b2", "decode_64_256_b8", "prefill_1024_64"])
def test_the_kernels_of_a_step_read_together_what_the_step_s_traffic_is(name: str, encoding: str) -> None:
    profile, contract = load_profile(name), encoded_contract(H100, encoding)
    sizes = sizes_of(contract)
    reads = step_reads(
        sizes, batch=profile.batch, positions=profile.prompt_tokens + profile.decode_tokens // 2
    )
    assert sum(own.read_bytes for own in reads) == step_traffic(contract, profile).total_bytes
    assert sum(len(own.launches) for own in reads) == len(decode_program(sizes, profile.batch))


def test_reading_alone_takes_every_window_of_the_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    standing, found = measured(H100, load_profile("decode_64_256"), monkeypatch)
    bandwidth = found.read_bandwidth
    window = standing.programs.kernels[READ].arrays[0].nbytes
    assert bandwidth.launches == 36 + 3  # a layer each, and the embedding's whole windows
    assert bandwidth.read_bytes == 39 * window > 2 << 30 and bandwidth.beyond_caches
    assert len(bandwidth.seconds) == SAMPLES and bandwidth.replays >= 3
    assert bandwidth.gbs == pytest.approx(window / (LAUNCH_S + window / (GBS * 1e9)) / 1e9)


def test_windows_lie_within_one_file_and_never_overlap() -> None:
    standing = Standing(load_contract("qwen3-0.6b-base-bf16-gb10"))
    reader = speed._Reader(standing)  # type: ignore[arg-type]
    with standing.device.capture() as graph:
        reader.programs.run(reader.passing)
    places = sorted(pointers[0] for _, pointers in graph.recorded)
    window = standing.programs.kernels[READ].arrays[0].nbytes
    assert all(later - earlier >= window for earlier, later in itertools.pairwise(places))
    files = standing.weight_files()
    for place in places:
        assert any(first <= place and place + window <= first + size for first, size in files)


@pytest.mark.parametrize("name", ["tiny-cpu", "qwen3-0.6b-base-bf16-gb10", "qwen3-4b-base-bf16-h100"])
def test_what_sweeps_the_caches_is_none_of_the_model_and_larger_than_any_cache(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing, found = measured(load_contract(name), load_profile("decode_64_256"), monkeypatch)
    window = standing.programs.kernels[READ].arrays[0].nbytes
    buffer, size = standing.device.made[-1]
    assert found.sweep_bytes == size >= CACHE_BYTES
    assert all(first + length <= buffer for first, length in standing.weight_files())
    swept = [graph for graph in standing.device.graphs if len({kernel for kernel, _ in graph}) > 1]
    assert len(swept) == sum(kernel.swept for kernel in found.kernels) > 0
    for graph in swept:
        places = [pointers[0] for kernel, pointers in graph if kernel == READ]
        reached = buffer
        for place in sorted(places):
            assert buffer <= place <= reached  # no gap
            reached = place + window
        assert reached == buffer + size
    assert standing.device.given_back == len(standing.device.made)


def test_what_sweeps_the_caches_is_at_least_twice_the_cache_of_every_chip() -> None:
    chips = [load_contract(path.stem) for path in (ROOT / "profiles/contracts").glob("*.yaml")]
    sizes = [chip.target_facts.l2_mib for chip in chips if chip.target_facts.l2_mib is not None]
    assert sizes and 2 * max(sizes) * (1 << 20) <= CACHE_BYTES


def test_a_device_without_room_for_the_sweep_is_told_so() -> None:
    standing = Standing(H100)
    standing.device.room = CACHE_BYTES - 1
    with pytest.raises(PreflightError, match="268,435,456 bytes to sweep the caches with do not fit"):
        measure_speed(standing, load_profile("decode_64_256"))  # type: ignore[arg-type]


def test_every_kernel_has_the_time_of_its_own_launches_whether_swept_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, found = measured(H100, load_profile("decode_64_256"), monkeypatch)
    kernels = {kernel.kernel: kernel for kernel in found.kernels}
    assert [k for k in kernels if k.endswith(".one")] == [
        f"{name}.one" for name in ("embedding", "qkv", "attention", "output", "gate_up", "down", "head")
    ]
    for kernel in kernels.values():
        wanted = kernel.launches * LAUNCH_S + kernel.read_bytes / (GBS * 1e9)
        assert len(kernel.seconds) == SAMPLES
        assert kernel.step_s == pytest.approx(wanted, rel=1e-6), kernel.kernel
        assert (kernel.gbs is None) == (kernel.share is None) == (kernel.read_bytes == 0)
    assert kernels["attention.one"].swept and not kernels["gate_up.one"].swept
    assert kernels["gate_up.one"].launches == 36 and kernels["head.one"].launches == 1
    share = kernels["head.one"].share
    assert share is not None and 0.9 < share < 1.1


def test_slots_stand_at_the_mean_length_for_each_kernel_and_are_empty_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    standing, found = measured(H100, load_profile("decode_64_256_b2"), monkeypatch)
    assert standing.written[:-1] == [("positions", [192, 192, *[-1] * 6])] * len(found.kernels)
    assert standing.written[-1] == ("positions", [-1] * 8)


def test_slots_are_empty_after_a_fault_too(monkeypatch: pytest.MonkeyPatch) -> None:
    standing = Standing(H100)
    standing.take_time(1, 192)
    del standing.device.read_bytes["down.one"]
    monkeypatch.setattr(speed, "perf_counter", lambda: standing.device.now)
    with pytest.raises(KeyError):
        measure_speed(standing, load_profile("decode_64_256"))  # type: ignore[arg-type]
    assert standing.written[-1] == ("positions", [-1] * 8)


def test_a_model_smaller_than_any_cache_is_measured_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = measured(load_contract("tiny-cpu"), load_profile("decode_64_256"), monkeypatch)
    assert not found.read_bandwidth.beyond_caches
    assert all(kernel.swept == (kernel.read_bytes > 0) for kernel in found.kernels)


def test_a_pack_of_an_older_release_is_told_from_one_that_reads() -> None:
    standing = Standing(H100, without=READ)
    with pytest.raises(PackError, match="packs/p: kernel read_bandwidth is missing; pack it again"):
        measure_speed(standing, load_profile("decode_64_256"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def demo_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    request = BuildRequest(
        seed=1,
        contract=load_contract("tiny-cpu"),
        packs=tmp_path_factory.mktemp("packs"),
        encoding="bf16",
        target="cpu",
    )
    return Path(build_pack(request).path)


def test_a_runner_without_kernels_has_neither_bandwidth_nor_kernels(
    demo_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = BenchProfile(
        id="short", prompt_tokens=8, decode_tokens=4, batch=1, warmup_requests=1, requests=3, seed=7
    )
    monkeypatch.setattr("lean.contracts.load_profile", lambda name: short)
    out = tmp_path / "in_process.json"
    argv = ["measure", "--pack", str(demo_pack), "--profile", "short", "--threads", "1", "--out", str(out)]
    assert run_program(main, argv) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    found = from_data(InProcess, printed, "out")
    assert (found.read_bandwidth, found.kernels) == (None, None)
    assert (printed["schema"], found.runner["name"], found.profile) == ("in-process/v2", "torch", short)
    assert (found.release, found.host) == (ROOT.name, host_id())
    assert found.finished_utc is not None and found.finished_utc > found.started_utc
    assert len(found.rounds) == 3 and all(len(done.step_s) == 3 for done in found.rounds)
    assert run_program(main, [*argv[:-1], str(tmp_path / "no" / "folder.json")]) == 4
    assert "cannot be written: No such file or directory" in capsys.readouterr().out

"""Which encodings a host may serve, by its own gate records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernels.gate_probes.probes import probes
from lean.contracts import Encoding
from lean.errors import GateError
from lean.leanserve.gate_check import ROUTES, GateVerdict, check_gate

RESULTS = Path(__file__).resolve().parents[3] / "results" / "v1"
H100 = max((RESULTS / "h100" / "gate").glob("*/gate.json"))
NO_GPU = max((RESULTS / "loopback" / "gate").glob("*/gate.json"))
CODED: tuple[Encoding, ...] = ("fp8-e4m3", "int4-codebook", "nvfp4")


def checked(
    encoding: Encoding, *records: Path, runner: str = "cuda", target: str = "sm_90", allow: bool = False
) -> GateVerdict:
    return check_gate(encoding, runner, [target], records, allow=allow)


def gate_run(folder: Path, name: str, *cells: tuple[str, str, str], **changes: Any) -> Path:
    """A record of (precision, route, status) on sm_90, in a run's folder."""
    named = [
        {"target": "sm_90", "precision": p, "route": r, "status": s, "why": "the compiler said no\nat length"}
        for p, r, s in cells
    ]
    record = {"schema": "gate/v1", "run": name, "started": name, "cells": named} | changes
    (folder / name).mkdir(parents=True)
    (folder / name / "gate.json").write_text(json.dumps(record))
    return folder


def test_the_routes_are_ones_that_a_gate_asks() -> None:
    asked = {(probe.precision, probe.route) for probe in probes()}
    assert {(encoding, route) for encoding, routes in ROUTES.items() for route in routes} <= asked


@pytest.mark.parametrize("encoding", CODED)
def test_the_committed_record_of_a_chip_clears_what_ran_there(encoding: Encoding) -> None:
    found = checked(encoding, H100)
    assert (found.status, found.encoding) == ("cleared", encoding)
    assert found.record is not None and f"on sm_90 is cleared in gate {found.record}" in found.why


@pytest.mark.parametrize("encoding", CODED)
def test_a_record_without_a_gpu_clears_nothing(encoding: Encoding) -> None:
    with pytest.raises(GateError, match=r"is compile-only.*run: invoke remote\.gate, or serve with --allow"):
        checked(encoding, NO_GPU)


@pytest.mark.parametrize("records", [(), (Path("absent"),), (Path(__file__),)])
def test_without_a_record_the_fix_is_named(records: tuple[Path, ...]) -> None:
    with pytest.raises(
        GateError, match="no gate record of this host asked weight-only on sm_90; run: invoke"
    ):
        checked("fp8-e4m3", *records)


def test_a_record_of_another_chip_says_nothing_of_this_one() -> None:
    with pytest.raises(GateError, match="no gate record of this host asked weight-only on sm_121"):
        checked("fp8-e4m3", H100, target="sm_121")


def test_a_blocked_route_is_refused_in_the_compilers_first_line(tmp_path: Path) -> None:
    gate_run(tmp_path, "1", ("int4-codebook", "weight-only", "blocked"))
    with pytest.raises(
        GateError, match=r"weight-only on sm_90 is blocked \(the compiler said no\) in gate 1"
    ):
        checked("int4-codebook", tmp_path)


@pytest.mark.parametrize("other", ["weight-only", "block-scaled-mma"])
def test_nvfp4_is_cleared_only_by_the_route_that_its_kernels_take(tmp_path: Path, other: str) -> None:
    gate_run(tmp_path, "1", ("nvfp4", "weight-only-shift", "blocked"), ("nvfp4", other, "cleared"))
    with pytest.raises(GateError, match="weight-only-shift on sm_90 is blocked"):
        checked("nvfp4", tmp_path)
    gate_run(tmp_path, "2", ("nvfp4", "weight-only-shift", "cleared"), ("nvfp4", other, "blocked"))
    assert checked("nvfp4", tmp_path).why.startswith("weight-only-shift on sm_90 is cleared")


def test_the_newest_record_that_asked_counts(tmp_path: Path) -> None:
    gate_run(tmp_path / "runs", "2026-01-01", ("fp8-e4m3", "weight-only", "cleared"))
    gate_run(tmp_path / "runs", "2026-01-03", ("bf16", "mma", "cleared"))  # a part only was asked
    sent = gate_run(tmp_path / "sent", "2026-01-02", ("fp8-e4m3", "weight-only", "blocked"))
    assert checked("fp8-e4m3", tmp_path / "runs").record == "2026-01-01"
    with pytest.raises(GateError, match="in gate 2026-01-02"):
        checked("fp8-e4m3", tmp_path / "runs", sent / "2026-01-02" / "gate.json")


@pytest.mark.parametrize("changes", [{"schema": "gate/v2"}, {"cells": 3}, {"cells": [{}]}, {"run": None}])
def test_what_is_no_sound_record_clears_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    gate_run(tmp_path, "1", ("fp8-e4m3", "weight-only", "cleared"), **changes)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "gate.json").write_text("{")
    with pytest.raises(GateError):
        checked("fp8-e4m3", tmp_path)


def test_who_allows_it_gets_a_verdict_that_says_so(tmp_path: Path) -> None:
    assert checked("nvfp4", allow=True).status == "not cleared"
    assert checked("nvfp4", H100, allow=True).status == "cleared"


def test_no_gate_applies_to_bf16_nor_to_the_torch_runner() -> None:
    assert checked("bf16").status == "not needed"
    assert checked("nvfp4", runner="torch").why == "the torch runner decodes to FP32"

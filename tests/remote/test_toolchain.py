"""The gate and the portability matrix as they are asked of a host, and what is kept of them here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Host
from lean.errors import LeanError, PreflightError, UsageError
from remote.appliance import toolchain
from remote.console import Console
from remote.host.dry_run import DrySite
from remote.host.python import HostPython, local_program
from remote.host.site import LiveSite
from remote.paths import STATE


@pytest.fixture
def site() -> DrySite:
    return DrySite(Console(), "far", Host(hostname="203.0.113.9", contract="tiny-cpu", gpu="none"))


def record(results: Path, run: str, host: str = "far") -> Path:
    path = results / "v1" / host / "gate" / run / "gate.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    return path


def test_a_gate_is_compared_with_the_newest_record_of_that_host(site: DrySite, tmp_path: Path) -> None:
    record(tmp_path, "20260101T000000Z-0000000")
    newest = record(tmp_path, "20260201T000000Z-0000000-dirty")
    record(tmp_path, "20260301T000000Z-0000000", host="other")
    toolchain.gate(site, results=tmp_path, targets="sm_90", precisions="bf16", routes="mma", kernels="/k")
    *_, push, job, pull = site.steps
    assert push == f"push {newest}, 2 bytes -> ~/lean/tmp/gate-before.json"
    assert job == (
        "job gate: python -m lean.toolchain gate --out '~/lean/artifacts/gate' --gpu none "
        "--previous '~/lean/tmp/gate-before.json' --target sm_90 --precision bf16 --route mma --kernels /k"
    )
    assert pull.startswith(f"pull ~/lean/artifacts/gate/<run> -> {STATE}/artifacts/far/gate/<run>")


def test_a_first_gate_is_compared_with_nothing(site: DrySite, tmp_path: Path) -> None:
    toolchain.gate(site, results=tmp_path)
    *_, job, _ = site.steps
    assert job == "job gate: python -m lean.toolchain gate --out '~/lean/artifacts/gate' --gpu none"


def test_a_bench_is_of_the_host_s_own_contract_and_brings_its_stages_home() -> None:
    site = DrySite(Console(), "far", Host(hostname="203.0.113.9", contract="tiny-cpu"))
    toolchain.kernels(site)
    toolchain.kernels(
        site, contract="other", only="qkv", rows="1,8", seed=7, folder="/k", encoding="fp8-e4m3"
    )
    *_, first, pull, second, _ = site.steps
    assert first == (
        "job kernels: python -m lean.toolchain kernels --contract tiny-cpu --out '~/lean/artifacts/kernels'"
    )
    assert second == (
        "job kernels: python -m lean.toolchain kernels --contract other --out '~/lean/artifacts/kernels' "
        "--only qkv --rows 1,8 --seed 7 --kernels /k --encoding fp8-e4m3"
    )
    assert pull.startswith(f"pull ~/lean/artifacts/kernels/<run> -> {STATE}/artifacts/far/kernels/<run>")


def test_a_search_for_tiles_keeps_its_journal_on_the_host_and_brings_the_run_home() -> None:
    site = DrySite(Console(), "far", Host(hostname="203.0.113.9", contract="tiny-cpu"))
    toolchain.tune(site)
    toolchain.tune(site, contract="other", only="qkv.*", folder="/k", encoding="nvfp4")
    *_, first, pull, second, _ = site.steps
    assert first == (
        "job tune: python -m lean.toolchain tune --contract tiny-cpu --out '~/lean/artifacts/tune'"
    )
    assert second == (
        "job tune: python -m lean.toolchain tune --contract other --out '~/lean/artifacts/tune' "
        "--only 'qkv.*' --kernels /k --encoding nvfp4"
    )
    assert pull.startswith(f"pull ~/lean/artifacts/tune/<run> -> {STATE}/artifacts/far/tune/<run>")


def test_a_host_said_to_have_no_gpu_is_not_asked_for_speed(site: DrySite) -> None:
    before = list(site.steps)
    with pytest.raises(PreflightError, match="far: the hosts file says `gpu: none`"):
        toolchain.kernels(site)
    with pytest.raises(PreflightError, match="say `gpu: auto`"):
        toolchain.tune(site)
    assert site.steps == before


class Busy(DrySite):
    """A host with a GPU on which one job runs."""

    def __init__(self, job: str) -> None:
        super().__init__(Console(), "far", Host(hostname="203.0.113.9", contract="tiny-cpu"))
        self.job_name = job

    def runs(self, name: str) -> bool:
        return name == self.job_name


@pytest.mark.parametrize(
    ("job", "stop"),
    [
        ("serve", "invoke remote.stop --host far"),
        ("measure", "invoke remote.jobs --host far --stop measure"),
        ("bench", "invoke remote.jobs --host far --stop bench"),
        ("kernels", "invoke remote.jobs --host far --stop kernels"),
        ("tune", "invoke remote.jobs --host far --stop tune"),
    ],
)
def test_nothing_is_timed_beside_a_job_that_works(job: str, stop: str) -> None:
    for verb, own in ((toolchain.kernels, "kernels"), (toolchain.tune, "tune")):
        site = Busy(job)
        before = list(site.steps)
        if own != job:  # a second one of its own name is what the host refuses
            with pytest.raises(PreflightError, match=f"far: job '{job}' runs, .* stop it with: {stop}$"):
                verb(site)
            assert site.steps == before


def test_a_pushed_file_replaces_the_one_before_it(any_host: Any, tmp_path: Path) -> None:
    connection = any_host.connect()
    python = HostPython(release=connection.host.root, python=sys.executable)
    site = LiveSite(Console(), connection, python, connection.host.root)
    target = tmp_path / "there" / "before.json"
    target.parent.mkdir()
    for text in ("one", "two and more"):
        (tmp_path / "here.json").write_text(text)
        site.push(tmp_path / "here.json", str(target))
        assert target.read_text() == text


def test_a_program_of_this_machine_is_heard_line_by_line_and_its_failure_told_once() -> None:
    heard: list[str] = []
    words = ("portability", "--sizes", "tiny", "--target", "sm_7")
    with pytest.raises(UsageError, match="--target: sm_7; expected some of"):
        local_program("lean.toolchain", *words, on_line=heard.append)
    assert heard == []
    assert local_program("lean.host_facts")["schema"] == "host_facts/v1"
    with pytest.raises(LeanError, match=r"python -m lean\.nothing ended with 1: .*No module named lean"):
        local_program("lean.nothing", on_line=heard.append)
    assert "No module named lean.nothing" in heard[-1]


def test_only_a_document_that_can_be_kept_is_kept(tmp_path: Path) -> None:
    document = tmp_path / "gate.json"
    document.write_text(json.dumps({"schema": "gate/v1", "whole": False}))
    with pytest.raises(UsageError, match="covers a part only"):
        toolchain.keep(str(document), "loopback")

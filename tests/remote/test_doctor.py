"""The doctor's table: what it asks, what it refuses to ask, and what it makes of a host's facts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Contract, Host, load_contract
from remote.host.doctor import DoctorReport, examine
from remote.host.requirements import GIB, DoctorRow, fact_rows
from remote.ssh.connection import HostConnection

CONTRACT = load_contract("tiny-cpu")
GB10 = load_contract("qwen3-4b-base-bf16-gb10")


def row(report: DoctorReport | list[DoctorRow], what: str) -> DoctorRow:
    rows = report.rows if isinstance(report, DoctorReport) else report
    return next(row for row in rows if row.what == what)


def test_a_good_host_is_ok_and_every_row_says_what_was_found(any_host: Any) -> None:
    report = examine(any_host.connect(), CONTRACT)

    assert [(row.what, row.fix) for row in report.rows if row.required and not row.ok] == []
    assert (report.ok, report.exit_code) == (True, 0)
    assert [row.what for row in report.rows] == [
        "address",
        "host key",
        "login key",
        "server",
        "python",
        "clock",
        "rsync",
        "disk",
        "memory",
        "driver",
        "toolkit",
        "linger",
        "foreign kernels",
    ]
    assert all(row.need and row.have for row in report.rows)
    assert f"{any_host.directory}/ssh_config:1 " in row(report, "address").have
    assert str(any_host.directory / "user_ed25519") == row(report, "login key").have
    assert report.facts is not None
    json.dumps(asdict(report))


def test_nothing_is_asked_of_a_host_whose_key_is_unknown(new_sshd: Any, tmp_path: Path) -> None:
    host = new_sshd("watched", "LogLevel DEBUG1")
    (host.directory / "known_hosts").write_text("")

    report = examine(host.connect(), CONTRACT)

    assert [(row.what, row.ok) for row in report.rows] == [("address", True), ("host key", False)]
    assert "SHA256:" in row(report, "host key").fix
    assert "StrictHostKeyChecking=ask" in row(report, "host key").fix
    assert (report.exit_code, report.facts) == (3, None)
    assert "userauth-request" not in (host.directory / "sshd.log").read_text()


def test_a_refused_login_is_its_own_row(new_sshd: Any) -> None:
    host = new_sshd()
    (host.directory / "authorized_keys").write_text("")

    report = examine(host.connect(), CONTRACT)

    assert [(row.what, row.ok) for row in report.rows] == [("address", True), ("login key", False)]
    assert "authorized_keys" in row(report, "login key").fix
    assert report.exit_code == 3


def test_a_silent_host_is_its_own_row(free_local_port: int) -> None:
    with HostConnection(
        "box", Host(contract="tiny-cpu", hostname="127.0.0.1", port=free_local_port)
    ) as connection:
        report = examine(connection, CONTRACT)

    assert not row(report, "server").ok
    assert report.address is not None
    assert report.exit_code == 3


def test_a_broken_configuration_is_its_own_row(sshd_host: Any, tmp_path: Path) -> None:
    broken = sshd_host.with_config(tmp_path / "config", "Host box\n  Bogus 1\n")

    report = examine(broken.connect(), CONTRACT)

    assert [(row.what, row.ok) for row in report.rows] == [("address", False)]
    assert "Bogus" in row(report, "address").fix or "bogus" in row(report, "address").fix
    assert (report.address, report.exit_code) == (None, 2)


def test_a_missing_python_is_a_failing_row(any_host: Any) -> None:
    report = examine(any_host.connect(host=any_host.spec(python="no-such-python")), CONTRACT)

    assert not row(report, "python").ok
    assert "no-such-python" in row(report, "python").fix
    assert report.exit_code == 4


def test_a_clock_that_is_off_is_a_failing_row(any_host: Any, tmp_path: Path) -> None:
    late = tmp_path / "late-python"
    late.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 1000000000.5 3 11 || exec python3 "$@"\n')
    late.chmod(0o755)

    report = examine(any_host.connect(host=any_host.spec(python=str(late))), CONTRACT)

    assert not row(report, "clock").ok
    assert row(report, "clock").have.startswith("-")
    assert "timedatectl" in row(report, "clock").fix


def test_an_old_python_is_a_failing_row(any_host: Any, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = -c ] && echo $(date +%s) 3 8 || exec python3 "$@"\n')
    old.chmod(0o755)

    report = examine(any_host.connect(host=any_host.spec(python=str(old))), CONTRACT)

    assert (row(report, "python").ok, row(report, "python").have) == (False, "3.8")


def facts(**changes: Any) -> dict[str, Any]:
    """The facts of a DGX Spark, as its own tools report them."""
    base: dict[str, Any] = {
        "memory": {"total": 128 * GIB, "available": 100 * GIB, "swap_free": 0},
        "disk": {"total": 1000 * GIB, "free": 500 * GIB},
        "gpus": [
            {
                "name": "NVIDIA GB10",
                "driver": "580.95.05",
                "compute_capability": "12.1",
                "memory": None,
                "unified_memory": True,
            }
        ],
        "gpu_error": None,
        "toolkit": {"CUDA_HOME": None, "CUDA_PATH": None},
        "tools": {"rsync": {"flavour": "rsync", "version": "3.2.7"}, "git": "2.43.0", "systemd_run": True},
        "linger": True,
        "foreign_kernels": None,
    }
    return base | changes


def rows(contract: Contract | None = GB10, gpu: Any = "auto", **changes: Any) -> list[DoctorRow]:
    return fact_rows(facts(**changes), Host(contract="x", hostname="spark", gpu=gpu), contract)


def test_a_spark_is_fit_for_its_contract() -> None:
    found = rows()

    assert [row.what for row in found if not row.ok] == []
    assert "unified with the GPU" in row(found, "memory").have
    assert row(found, "gpu").have == "NVIDIA GB10 12.1"


def test_weights_are_counted_as_the_published_checkpoint_has_them() -> None:
    published = 8_044_936_192  # total_size in model.safetensors.index.json of Qwen3-4B-Base, norms included
    assert 2 * GB10.model.parameters == published


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("disk", {"disk": {"total": 30 * GIB, "free": 20 * GIB}}),
        ("memory", {"memory": {"total": 16 * GIB, "available": 8 * GIB, "swap_free": 0}}),
        ("driver", {"gpus": [], "gpu_error": "NVIDIA-SMI has failed"}),
        ("gpu", {"gpus": [{**facts()["gpus"][0], "compute_capability": "9.0"}]}),
    ],
)
def test_what_the_contract_needs_and_the_host_lacks_fails(what: str, changes: dict[str, Any]) -> None:
    found = row(rows(**changes), what)

    assert (found.ok, found.required) == (False, True)
    assert found.fix


def test_an_old_driver_fails() -> None:
    assert not row(rows(gpus=[{**facts()["gpus"][0], "driver": "570.86"}]), "driver").ok


@pytest.mark.parametrize(("contract", "gpu"), [(CONTRACT, "auto"), (GB10, "none"), (None, "auto")])
def test_no_gpu_is_asked_for_where_none_is_needed(contract: Contract | None, gpu: str) -> None:
    found = rows(contract, gpu, gpus=[])

    assert row(found, "driver").ok
    assert "gpu" not in [row.what for row in found]


@pytest.mark.parametrize(
    ("what", "changes", "words"),
    [
        ("rsync", {"tools": {"rsync": None}}, "install rsync"),
        ("linger", {"linger": False}, "enable-linger"),
        ("foreign kernels", {"foreign_kernels": "0.10.1"}, "pip uninstall kernels"),
        (
            "toolkit",
            {
                "toolkit": {
                    "CUDA_HOME": {"path": "/usr/local/cuda-13.0", "version": "13.0.2"},
                    "CUDA_PATH": None,
                }
            },
            "unset CUDA_HOME",
        ),
    ],
)
def test_what_can_be_done_without_is_told_and_does_not_fail(
    what: str, changes: dict[str, Any], words: str
) -> None:
    found = row(rows(**changes), what)

    assert (found.ok, found.required) == (False, False)
    assert words in found.fix


def test_a_new_toolkit_is_no_trouble() -> None:
    toolkit = {"CUDA_HOME": {"path": "/usr/local/cuda", "version": "13.4.1"}, "CUDA_PATH": None}

    assert row(rows(toolkit=toolkit), "toolkit").ok

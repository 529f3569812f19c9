"""Clocks and throttling, read from made-up /proc, /sys and nvidia-smi."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lean.bench.host_state import (
    HostState,
    host_notes,
    parse_gpu_states,
    read_host_state,
    throttle_reasons,
)

# As an H100 with driver 580.159.04 prints it; the second line as a GB10 does, which reports no power limits.
H100 = (
    "NVIDIA H100 80GB HBM3, 1980, 2619, 1980, 38, 124.36, 700.00, 700.00, "
    "0x0000000000000001, 0, 0, 0, 0, 9012\n"
)
GB10 = "NVIDIA GB10, 2418, [N/A], 3003, 41, 12.10, [N/A], [N/A], 0x0000000000000001, 5, [N/A], 0, 0, [N/A]\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("cpu MHz\t\t: 2000.5\nflags: x\ncpu MHz\t\t: 3000.5\n")
    (tmp_path / "proc/loadavg").write_text("0.42 0.30 0.20 1/200 4242\n")
    for core in (0, 1):
        counts = tmp_path / f"sys/devices/system/cpu/cpu{core}/thermal_throttle"
        counts.mkdir(parents=True)
        (counts / "core_throttle_count").write_text(f"{core + 1}\n")
        (counts / "package_throttle_count").write_text("9\n")
    return tmp_path


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An nvidia-smi that answers with what the test wrote, and leaves its arguments in a file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "$@" > {folder}/args\ncat {folder}/answer\nexit $(cat {folder}/code)\n')
    tool.chmod(0o755)
    (folder / "code").write_text("0")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.mark.usefixtures("no_gpu")
def test_clock_load_and_throttle_counts_come_from_the_kernel(machine: Path) -> None:
    state = read_host_state(machine)
    assert (state.cpu_mhz_min, state.cpu_mhz_mean, state.load_1min) == (2000.5, 2500.5, 0.42)
    assert state.throttle_counts == {
        "cpu0 core_throttle_count": 1,
        "cpu1 core_throttle_count": 2,
        "package_throttle_count": 9,
    }
    assert state.gpus == () and state.unread == ()


@pytest.mark.usefixtures("no_gpu")
def test_an_arm_machine_s_clock_comes_from_cpufreq(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_cur_freq").write_text("2808000\n")
    assert read_host_state(tmp_path).cpu_mhz_mean == 2808.0


@pytest.mark.usefixtures("no_gpu")
def test_what_cannot_be_read_is_named_and_not_guessed(tmp_path: Path) -> None:
    state = read_host_state(tmp_path)
    assert state.cpu_mhz_mean is None and state.throttle_counts == {}
    assert [text.split(" (")[0] for text in state.unread] == ["CPU clock", "CPU throttle counts"]
    assert host_notes(state, state)[0].startswith("not readable here: CPU clock")


@pytest.mark.usefixtures("no_gpu")
def test_a_rising_count_between_the_readings_means_throttled(machine: Path) -> None:
    before = read_host_state(machine)
    assert throttle_reasons(before, before) == ()
    (machine / "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count").write_text("5\n")
    (reason,) = throttle_reasons(before, read_host_state(machine))
    assert reason.startswith("throttled: cpu1 core_throttle_count rose by 3")


def test_the_line_of_a_real_gpu_is_understood() -> None:
    h100, gb10 = parse_gpu_states(H100 + GB10)
    assert (h100.name, h100.sm_clock_mhz, h100.temperature_c) == ("NVIDIA H100 80GB HBM3", 1980.0, 38.0)
    assert h100.event_reasons == 1 and set(h100.slowdown_us.values()) == {0.0}
    assert gb10.memory_clock_mhz is None and gb10.power_limit_w is None
    assert "sw_thermal_slowdown" not in gb10.slowdown_us and gb10.power_cap_us == 5.0


def gpu_state(line: str) -> HostState:
    return HostState(
        at_utc="2026-02-03T04:05:06.789+00:00",
        cpu_mhz_min=None,
        cpu_mhz_mean=None,
        cpus=2,
        load_1min=None,
        throttle_counts={},
        gpus=parse_gpu_states(line),
        unread=(),
    )


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        ("0x0000000000000008", "hardware slow-down"),
        ("0x0000000000000020", "software thermal"),
        ("0x0000000000000040", "hardware thermal"),
        ("0x0000000000000080", "power brake"),
    ],
)
def test_an_active_slow_down_means_throttled(bits: str, reason: str) -> None:
    hot = gpu_state(H100.replace("0x0000000000000001", bits))
    (found,) = throttle_reasons(gpu_state(H100), hot)
    assert reason in found and "after the run" in found


@pytest.mark.parametrize("bits", ["0x0000000000000001", "0x0000000000000002", "0x0000000000000004"])
def test_idle_fixed_clocks_and_a_power_limit_are_no_throttling(bits: str) -> None:
    state = gpu_state(H100.replace("0x0000000000000001", bits))
    assert throttle_reasons(state, state) == ()


def test_a_slow_down_in_the_middle_of_the_run_shows_in_the_counters() -> None:
    after = gpu_state(H100.replace("0, 0, 0, 0, 9012\n", "0, 0, 2500000, 0, 9012\n"))
    (reason,) = throttle_reasons(gpu_state(H100), after)
    assert reason == "throttled: GPU 0 hardware thermal slow-down for 2.500 s during the run"


def test_a_counter_that_appears_between_readings_proves_nothing() -> None:
    assert throttle_reasons(gpu_state(GB10), gpu_state(GB10.replace("5, [N/A]", "5, 900"))) == ()


def test_memory_in_use_is_read_where_the_chip_has_its_own() -> None:
    (h100,), (gb10,) = gpu_state(H100).gpus, gpu_state(GB10).gpus
    assert (h100.memory_used_mib, gb10.memory_used_mib) == (9012, None)


def test_power_limits_are_noted_and_do_not_invalidate() -> None:
    lowered = gpu_state(
        H100.replace("700.00, 700.00", "350.00, 700.00").replace(
            "0, 0, 0, 0, 9012\n", "1000, 0, 0, 0, 9012\n"
        )
    )
    assert throttle_reasons(gpu_state(H100), lowered) == ()
    assert host_notes(gpu_state(H100), lowered) == (
        "GPU 0: power limit lowered to 350 W (default 700 W)",
        "GPU 0: at its power limit for 0.001 s of the run",
    )


@pytest.mark.usefixtures("no_gpu")
def test_other_load_is_noted(machine: Path) -> None:
    (machine / "proc/loadavg").write_text("2.50 0 0 1/2 3\n")
    state = read_host_state(machine)
    assert host_notes(state, state) == ("busy machine: load 2.5 on 2 processors before the run",)
    assert throttle_reasons(state, state) == ()


def test_a_gpu_that_went_away_leaves_the_state_unknown() -> None:
    gone = dataclasses.replace(gpu_state(H100), gpus=())
    (reason,) = throttle_reasons(gpu_state(H100), gone)
    assert reason == "throttle state unknown: 1 GPUs before the run, 0 after"


def test_nvidia_smi_is_asked_where_there_is_one(machine: Path, smi: Path) -> None:
    (smi / "answer").write_text(H100)
    assert [gpu.name for gpu in read_host_state(machine).gpus] == ["NVIDIA H100 80GB HBM3"]
    assert "clocks_event_reasons_counters.hw_thermal_slowdown" in (smi / "args").read_text()


def test_an_nvidia_smi_that_fails_is_named(machine: Path, smi: Path) -> None:
    (smi / "answer").write_text("NVIDIA-SMI has failed because it couldn't communicate with the driver")
    (smi / "code").write_text("9")
    state = read_host_state(machine)
    assert state.gpus == ()
    assert state.unread[0].startswith("GPU state (NVIDIA-SMI has failed")

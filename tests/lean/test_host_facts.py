"""What a machine says about itself: on this one for real, on others from what their tools print."""

from __future__ import annotations

import ast
import getpass
import hashlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lean import host_facts

SOURCE = Path(host_facts.__file__)


def run(*argv: str, **environ: str) -> dict[str, object]:
    """The program as the doctor runs it: piped into an interpreter that knows nothing of this checkout."""
    answer = subprocess.run(
        [sys.executable, "-", *argv],
        input=SOURCE.read_bytes(),
        capture_output=True,
        check=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environ},
    )
    assert answer.stderr == b""
    document = json.loads(answer.stdout)
    assert isinstance(document, dict)
    return document


def test_the_source_alone_runs_from_standard_input_and_agrees_with_the_system() -> None:
    facts = run("--root", "/no/such/directory/yet")

    assert facts["schema"] == "host_facts/v1"
    assert facts["cpu"]["count"] == os.cpu_count()  # type: ignore[index]
    assert facts["system"]["arch"] == os.uname().machine  # type: ignore[index]
    assert facts["system"]["kernel"] == os.uname().release  # type: ignore[index]
    disk = os.statvfs("/")
    assert facts["disk"]["total"] == disk.f_blocks * disk.f_frsize  # type: ignore[index]
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert facts["memory"]["total"] == kib * 1024  # type: ignore[index]
    assert facts["packages"]["numpy"] == importlib.metadata.version("numpy")  # type: ignore[index]


def test_it_parses_as_python_3_9_and_imports_the_standard_library_only() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))

    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


def test_neither_names_nor_addresses_are_published() -> None:
    text = json.dumps(run(CUDA_HOME=os.path.expanduser("~/cuda")))

    assert socket.gethostname() not in text
    assert os.path.expanduser("~") + "/" not in text
    assert hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12] in text
    if getpass.getuser() not in ("root", "user"):
        assert getpass.getuser() not in text


def test_a_toolkit_named_by_the_environment_tells_its_version(tmp_path: Path) -> None:
    (tmp_path / "version.json").write_text('{"cuda": {"name": "CUDA SDK", "version": "13.0.2"}}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/version.json").write_text("{")

    facts = run(CUDA_HOME=str(tmp_path), CUDA_PATH=str(tmp_path / "broken"))

    assert facts["toolkit"] == {
        "CUDA_HOME": {"path": str(tmp_path), "version": "13.0.2"},
        "CUDA_PATH": {"path": str(tmp_path / "broken"), "version": None},
    }


@pytest.mark.parametrize("memory", ["[N/A]", "Not Supported", "[Not Supported]"])
def test_a_gb10_has_unified_memory_and_no_figure_of_its_own(memory: str) -> None:
    assert host_facts.parse_gpus(f"NVIDIA GB10, 580.95.05, 12.1, {memory}\n") == [
        {
            "name": "NVIDIA GB10",
            "driver": "580.95.05",
            "compute_capability": "12.1",
            "memory": None,
            "unified_memory": True,
        }
    ]


def test_a_card_with_its_own_memory_tells_it_in_bytes() -> None:
    gpus = host_facts.parse_gpus(
        "NVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559\nNVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559"
    )

    assert [(gpu["memory"], gpu["unified_memory"]) for gpu in gpus] == [(81559 << 20, False)] * 2


def fake_tool(tmp_path: Path, name: str, script: str) -> str:
    """PATH with a program `name` before all others."""
    program = tmp_path / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_a_driver_that_fails_is_quoted(tmp_path: Path) -> None:
    path = fake_tool(tmp_path, "nvidia-smi", "echo NVIDIA-SMI has failed: no driver; exit 9")

    facts = run(PATH=path)

    assert (facts["gpus"], facts["gpu_error"]) == ([], "NVIDIA-SMI has failed: no driver")


def test_the_query_asks_nvidia_smi_for_the_columns_it_reads(tmp_path: Path) -> None:
    script = f'echo "$@" > {tmp_path}/asked; echo "NVIDIA GB10, 580.95.05, 12.1, [N/A]"'

    facts = run(PATH=fake_tool(tmp_path, "nvidia-smi", script))

    assert [gpu["name"] for gpu in facts["gpus"]] == ["NVIDIA GB10"]  # type: ignore[attr-defined]
    asked = (tmp_path / "asked").read_text().split()
    assert asked == [
        "--query-gpu=name,driver_version,compute_cap,memory.total",
        "--format=csv,noheader,nounits",
    ]


def test_rsync_is_told_from_openrsync() -> None:
    samba = "rsync  version 3.2.7  protocol version 31\nCopyright (C) 1996-2022 by Andrew Tridgell\n"
    apple = "openrsync: protocol version 29\nrsync version 2.6.9 compatible\n"

    assert host_facts.parse_rsync(samba) == {"flavour": "rsync", "version": "3.2.7"}
    assert host_facts.parse_rsync(apple) == {"flavour": "openrsync", "version": "29"}
    assert host_facts.parse_rsync("") is None


def test_meminfo_is_read_in_bytes() -> None:
    text = "MemTotal:       131072 kB\nMemAvailable:    65536 kB\nHugePages_Total:       0\n"

    assert host_facts.parse_meminfo(text) == {"MemTotal": 131072 * 1024, "MemAvailable": 65536 * 1024}


def test_lingering_is_read_from_loginctl(tmp_path: Path) -> None:
    assert run(PATH=fake_tool(tmp_path, "loginctl", "echo yes"))["linger"] is True
    assert run(PATH=fake_tool(tmp_path, "loginctl", "echo no"))["linger"] is False
    assert run(PATH=fake_tool(tmp_path, "loginctl", "exit 1"))["linger"] is None

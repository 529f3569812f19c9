"""The records of GPU runs: one for every kernel source, each for exactly the bytes that ran."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lean.cli import run_program
from lean.errors import IntegrityError, PreflightError, UsageError
from lean.toolchain.__main__ import main
from lean.toolchain.proof.record import read_proofs, unproven, write_record

ROOT = Path(__file__).resolve().parents[2]
COVERED = ("kernels/add/kernel.py", "kernels/add/cases.py")


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for path in COVERED:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"# {path}\n")
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "kernels")
    return root


def probe_of(root: Path, **changes: Any) -> dict[str, Any]:
    sources = [
        {"path": path, "sha256": hashlib.sha256((root / path).read_bytes()).hexdigest()} for path in COVERED
    ]
    return {
        "schema": "toolchain-probe/v1",
        "status": "passed",
        "run": "20260725T120000Z",
        "gpu": {"status": "passed", "device": {"name": "Some GPU", "sm": "sm_90"}},
        "sources": sources,
    } | changes


def record(root: Path, probe: dict[str, Any], host: str = "h100") -> dict[str, Any]:
    file = root.parent / "probe.json"
    file.write_text(json.dumps(probe))
    return write_record(file, host=host, root=root)


def test_every_kernel_source_of_this_project_has_a_passing_gpu_record() -> None:
    assert unproven(ROOT) == ()


def test_a_recorded_probe_proves_its_sources(checkout: Path) -> None:
    assert [line.split(":")[0] for line in unproven(checkout)] == ["kernels/add/kernel.py"]
    done = record(checkout, probe_of(checkout))
    sha = git(checkout, "rev-parse", "HEAD")
    assert done["record"] == f"results/v1/h100/verify/20260725T120000Z-{sha[:7]}/verify.json"
    (proof,) = read_proofs(checkout)
    assert (proof.git_sha, proof.dirty, proof.gpu, proof.sm) == (sha, False, "Some GPU", "sm_90")
    assert proof.probe["run"] == "20260725T120000Z"
    assert unproven(checkout) == ()


@pytest.mark.parametrize("path", COVERED)
def test_one_changed_byte_makes_a_kernel_unproven_again(checkout: Path, path: str) -> None:
    record(checkout, probe_of(checkout))
    with (checkout / path).open("a") as file:
        file.write("\n")
    (line,) = unproven(checkout)
    assert line.startswith("kernels/add/kernel.py: it or its cases.py changed since")
    assert "20260725T120000Z on h100" in line


def test_a_second_kernel_is_not_proved_by_the_first_one_s_record(checkout: Path) -> None:
    record(checkout, probe_of(checkout))
    for name in ("kernel.py", "cases.py"):
        (checkout / "kernels" / "multiply").mkdir(exist_ok=True)
        (checkout / "kernels" / "multiply" / name).write_text("")
    (line,) = unproven(checkout)
    assert line.startswith("kernels/multiply/kernel.py: no GPU run ever covered it")


def test_a_checkout_with_changed_kernels_is_marked_dirty_in_record_and_name(checkout: Path) -> None:
    (checkout / COVERED[0]).write_text("# changed\n")
    done = record(checkout, probe_of(checkout))
    assert done["dirty"] and done["record"].split("/")[-2].endswith("-dirty")
    assert read_proofs(checkout)[0].dirty


def test_a_probe_of_other_sources_is_not_recorded(checkout: Path) -> None:
    probe = probe_of(checkout)
    (checkout / COVERED[1]).write_text("# changed after the run\n")
    with pytest.raises(IntegrityError, match=r"kernels/add/cases\.py: is not what ran"):
        record(checkout, probe)
    assert not (checkout / "results").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"status": "compile-only", "gpu": {"status": "no GPU"}}, "only a run that passed on a GPU"),
        ({"status": "failed"}, "only a run that passed on a GPU"),
        ({"schema": "something/v1"}, "no toolchain-probe/v1 document"),
    ],
)
def test_a_probe_that_did_not_pass_on_a_gpu_is_not_recorded(
    checkout: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        record(checkout, probe_of(checkout, **changes))


@pytest.mark.parametrize("host", ["", "../x", "a/b", "-x", ".x", "A B"])
def test_a_host_name_that_would_leave_the_results_is_refused(checkout: Path, host: str) -> None:
    with pytest.raises(UsageError, match="--host"):
        record(checkout, probe_of(checkout), host)


def test_a_record_is_never_rewritten(checkout: Path) -> None:
    record(checkout, probe_of(checkout))
    with pytest.raises(UsageError, match="already recorded"):
        record(checkout, probe_of(checkout))


def test_a_directory_that_is_no_git_checkout_is_said(tmp_path: Path, checkout: Path) -> None:
    (checkout / ".git").rename(tmp_path / "gone")
    with pytest.raises(PreflightError, match="must be a git checkout"):
        record(checkout, probe_of(checkout))


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"schema": "kernel-proof/v1"}'])
def test_a_damaged_record_is_an_error_that_names_it_and_not_a_proof(checkout: Path, damage: str) -> None:
    path = checkout / record(checkout, probe_of(checkout))["record"]
    path.write_text(damage)
    with pytest.raises(IntegrityError, match=r"verify\.json: not a proof record"):
        unproven(checkout)


def test_a_record_edited_to_hold_a_failed_probe_is_refused(checkout: Path) -> None:
    path = checkout / record(checkout, probe_of(checkout))["record"]
    path.write_text(path.read_text().replace('"status": "passed"', '"status": "failed"'))
    with pytest.raises(IntegrityError, match="expected one that passed on a GPU"):
        unproven(checkout)


def test_record_as_typed_prints_the_path(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = checkout.parent / "probe.json"
    file.write_text(json.dumps(probe_of(checkout)))
    assert run_program(main, ["record", "--probe", str(file), "--host", "h100", "--root", str(checkout)]) == 0
    assert (checkout / json.loads(capsys.readouterr().out)["record"]).is_file()

"""Records of the gate and of the portability matrix: kept whole, with their pages, and in the documents."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lean.bench.results import list_runs
from lean.cli import run_program
from lean.errors import IntegrityError, PreflightError, UsageError
from lean.toolchain.__main__ import main
from lean.toolchain.records import BEGIN, END, figure_block, keep
from lean.toolchain.shown import gate_tables, portability_tables

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "kernels/some/kernel.py"


def git(root: Path, *words: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(root), *identity, *words], capture_output=True, check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name, text in ((SOURCE, "x = 1\n"), ("docs/retargeting.md", f"# Title\n\n{BEGIN}\n{END}\n\nMore.\n")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "a kernel")
    return root


def cell(precision: str, route: str, **more: Any) -> dict[str, Any]:
    return {"target": "sm_90", "precision": precision, "route": route, "status": "compile-only"} | more


def gate_document(root: Path) -> dict[str, Any]:
    refusal = "the cuTile front end refused the kernel for sm_90: no such type\n   at line 3"
    return {
        "schema": "gate/v1",
        "run": "20260725T120000Z",
        "started": "2026-07-25T12:00:00+00:00",
        "seconds": 3.2,
        "whole": True,
        "targets": ["sm_90"],
        "tools": {"cuda-tile": "1.7.0"},
        "compiled_by": {"here": False, "run": "20260724T120000Z"},
        "sources": {SOURCE: hashlib.sha256((root / SOURCE).read_bytes()).hexdigest()},
        "gpu": {"status": "used", "device": {"name": "Some GPU"}},
        "cells": [
            cell("bf16", "elementwise", why="not run: because"),
            cell("bf16", "mma", status="cleared", why="", limits={"norm": 3.4e-6}),
            cell("nvfp4", "mma", status="blocked", why=refusal),
        ],
        "not_applicable": [],
        "recommended": {"sm_90": {"primary": "bf16", "why": "it ran", "fewer_bytes": []}},
        "changes": {
            "previous": "20260701T000000Z",
            "tools": {"cuda-tile": ["1.6.0", "1.7.0"]},
            "gpu": None,
            "sources": [SOURCE],
            "cells": [
                {
                    **{"target": "sm_90", "precision": "bf16", "route": "mma", "why": ""},
                    **{"before": "blocked", "after": "cleared"},
                }
            ],
        },
    }


def matrix(root: Path) -> dict[str, Any]:
    used = {"registers": 64, "spill_stores": 0, "spill_loads": 0, "shared_bytes": 2048}
    spilled = used | {"registers": 255, "spill_stores": 4, "status": "does-not-fit", "why": "registers spill"}
    fat = used | {"shared_bytes": 200 << 10, "status": "does-not-fit", "why": "too much shared memory"}
    chip = {
        **{
            "tiles": "default rules",
            "shared_limit": 99 << 10,
            "ok": 1,
            "spilling": 1,
            "refused": 0,
            "lost": 0,
        },
        **{"most_registers": 255, "most_shared_bytes": 2048, "matrix": ["HMMA"], "loads": ["LDG", "TMA"]},
    }
    return {
        "schema": "portability/v1",
        "run": "20260725T120000Z",
        "started": "2026-07-25T12:00:00+00:00",
        "seconds": 3.2,
        "whole": True,
        "sizes": "4b",
        "distinct": 6,
        "tools": {"cuda-tile": "1.7.0", "tileiras": "13.4.92"},
        "sources": {SOURCE: hashlib.sha256((root / SOURCE).read_bytes()).hexdigest()},
        "targets": [chip | {"target": "sm_86"}, chip | {"target": "sm_120"}],
        "kernels": [
            {"kernel": "a", "cells": {"sm_86": used | {"status": "ok", "why": ""}, "sm_120": fat}},
            {"kernel": "b", "cells": {"sm_86": spilled, "sm_120": spilled}},
            {
                "kernel": "c",
                "cells": {"sm_86": spilled, "sm_120": {"status": "refused", "why": "no\nline 2"}},
            },
            {"kernel": "d", "cells": {"sm_86": {"status": "lost", "why": "signal 11"}}},
        ],
        "figure": {
            **{"chips": 2, "files": 3, "files_that_compile_everywhere": 2, "files_that_fit_everywhere": 1},
            **{"functions": 4, "functions_that_compile_everywhere": 3, "functions_that_fit_everywhere": 2},
        },
    }


def kept(root: Path, document: dict[str, Any], host: str = "spark") -> dict[str, Any]:
    file = root.parent / "document.json"
    file.write_text(json.dumps(document))
    return keep(file, host=host, root=root)


def test_a_gate_is_kept_by_host_run_and_commit_with_a_page_that_says_it_all(checkout: Path) -> None:
    found = kept(checkout, gate_document(checkout))
    record = checkout / found["record"]
    assert record.relative_to(checkout).match("results/v1/spark/gate/20260725T120000Z-???????/gate.json")
    assert json.loads(record.read_text())["kept"]["host"] == "spark" and found["dirty"] is False
    page = (record.parent / "report.md").read_text()
    for words in (
        "Ran on Some GPU. Compiled elsewhere, in run 20260724T120000Z.",
        "| bf16 | compile-only | cleared 3e-06 |",
        "| nvfp4 mma | sm_90 | front end: no such type |",
        "| cuda-tile | 1.6.0 | 1.7.0 |",
        "| sm_90 bf16 mma | blocked | cleared |",
        "- compile-only, 1 of sm_90: not run: because",
        "- sm_90: start from bf16; it ran",
    ):
        assert words in page


def test_a_record_is_never_rewritten_and_an_edited_source_shows_in_its_name(checkout: Path) -> None:
    kept(checkout, gate_document(checkout))
    with pytest.raises(UsageError, match="already recorded"):
        kept(checkout, gate_document(checkout))
    (checkout / SOURCE).write_text("x = 2\n")
    found = kept(checkout, gate_document(checkout))
    assert found["dirty"] is True and found["record"].endswith("-dirty/gate.json")


def test_what_is_of_a_part_or_of_other_sources_or_of_no_host_is_not_kept(checkout: Path) -> None:
    document = gate_document(checkout)
    with pytest.raises(UsageError, match="covers a part only; a record is kept of the whole gate"):
        kept(checkout, document | {"whole": False})
    with pytest.raises(UsageError, match=r"--host: '\.\./x' is no host name"):
        kept(checkout, document, host="../x")
    with pytest.raises(IntegrityError, match=r"kernels/some/kernel\.py: is not what this gate is about"):
        kept(checkout, document | {"sources": {SOURCE: "0"}})
    with pytest.raises(PreflightError, match="--root must be a git checkout"):
        keep_outside = checkout.parent
        (keep_outside / SOURCE).parent.mkdir(parents=True)
        (keep_outside / SOURCE).write_bytes((checkout / SOURCE).read_bytes())
        file = checkout.parent / "document.json"
        file.write_text(json.dumps(document))
        keep(file, host="spark", root=keep_outside)
    assert not (checkout / "results").exists()


def test_a_document_without_a_field_is_refused_in_one_line(checkout: Path) -> None:
    for missing in ("whole", "sources", "run", "cells"):
        document = gate_document(checkout)
        del document[missing]
        with pytest.raises(UsageError, match=f"not a whole record: KeyError: '{missing}'"):
            kept(checkout, document)
    assert not (checkout / "results").exists()


def test_a_portability_matrix_is_kept_and_its_figure_goes_into_the_document(checkout: Path) -> None:
    kept(checkout, matrix(checkout))
    found = kept(checkout, matrix(checkout) | {"run": "20260726T120000Z"})
    text = (checkout / "docs" / "retargeting.md").read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n") and text.endswith(f"{END}\n\nMore.\n")
    assert (
        "**2 of 3 kernel sources (3 of 4 kernel functions) compile unchanged for all 2 chips; 1 (2)" in text
    )
    assert found["record"] in text and "20260725" not in text
    page = (checkout / found["record"]).with_name("report.md").read_text()
    assert "| sm_86 | default | 1 | 1 | 0 | 0 | 255 | 2/99 | HMMA | LDG TMA |" in page


def test_a_cell_says_in_one_word_what_is_wrong_and_kernels_with_the_same_trouble_share_a_line(
    checkout: Path,
) -> None:
    _, kernels, trouble = portability_tables(matrix(checkout))
    assert kernels.rows == (
        ("a", "64", "64m"),
        ("b", "255s", "255s"),
        ("c", "255s", "no"),
        ("d", "lost", "-"),
    )
    assert ("b", "sm_86, sm_120", "does-not-fit", "registers spill") in trouble.rows
    assert ("c", "sm_120", "refused", "no") in trouble.rows


def test_a_gate_without_a_record_before_it_shows_no_changes(checkout: Path) -> None:
    document = gate_document(checkout) | {"changes": {"previous": None}}
    assert [table.columns[0] for table in gate_tables(document)] == ["precision", "blocked"]
    same = gate_document(checkout)["changes"] | {"tools": {}, "sources": [], "cells": []}
    *_, changes = gate_tables(gate_document(checkout) | {"changes": same})
    assert changes.rows == (("versions, GPU, sources, statuses", "", "unchanged"),)


def test_the_list_of_runs_leaves_them_out_and_calls_none_broken(checkout: Path) -> None:
    kept(checkout, gate_document(checkout))
    kept(checkout, matrix(checkout))
    found = list_runs(checkout / "results")
    assert (found.rows, found.broken) == ((), ())


def test_record_as_typed_tells_the_documents_apart(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkout.parent / "document.json"
    words = ["record", "--probe", str(file), "--host", "spark", "--root", str(checkout)]
    file.write_text(json.dumps(matrix(checkout)))
    assert run_program(main, words) == 0
    assert json.loads(capsys.readouterr().out)["record"].endswith("/portability.json")
    file.write_text("{}")
    assert run_program(main, words) == 1
    assert "no toolchain-probe/v1 document" in capsys.readouterr().err


def test_the_retargeting_page_says_what_the_newest_portability_record_says() -> None:
    records = sorted(ROOT.glob("results/v1/*/portability/*/portability.json"), key=lambda p: p.parent.name)
    assert records, "run `invoke show.portability --keep`"
    text = (ROOT / "docs" / "retargeting.md").read_text(encoding="utf-8")
    assert figure_block(json.loads(records[-1].read_text())) in text

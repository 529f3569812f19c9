"""The verbs over kept runs, through `invoke`: results, exit codes, and what --json says."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPO

RUNS = REPO / "results" / "v1" / "h100"
BATCH_8_BEFORE = "20261121T090410.540Z-96b8b3f"
BATCH_8_AFTER = "20261121T125541.544Z-7a77bc0"  # TTFT got worse, everything else better
SAME = ("20261121T125443.096Z-7a77bc0", "20261121T143341.808Z-6574008")


def invoke(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "invoke", *map(str, words)]
    return subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=120)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with some of the runs that are kept with the repository."""
    for profile, runs in (
        ("decode_64_256", SAME),
        ("decode_64_256_b8", (BATCH_8_BEFORE, BATCH_8_AFTER)),
    ):
        for run in runs:
            shutil.copytree(RUNS / profile / run, tmp_path / "results" / "v1" / "h100" / profile / run)
    return tmp_path / "results"


def test_a_regression_ends_with_5_and_is_named_and_its_document_is_whole(results: Path) -> None:
    done = invoke("results.compare", BATCH_8_BEFORE, BATCH_8_AFTER, "--results", results, "--json")
    assert done.returncode == 5
    assert "is worse than" in done.stderr and "TTFT 22.33 -> 26.87 ms" in done.stderr
    document = json.loads(done.stdout)
    verdicts = {one["metric"]: one["verdict"] for one in document["compared"]}
    assert verdicts["TTFT"] == "worse" and verdicts["TPOT"] == "better"
    assert document["regressed"] == ["TTFT"]
    assert [d["what"] for d in document["differences"]] == ["code", "pack LOCK"]


def test_runs_that_agree_end_with_0_and_a_table(results: Path) -> None:
    done = invoke("results.compare", *SAME, "--results", results)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("within noise") == 5


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((BATCH_8_BEFORE, SAME[0]), 7, "or allow it with --across profile"),
        ((BATCH_8_BEFORE, SAME[0], "--across", "size"), 1, "--across 'size': expected some of contract"),
        ((*SAME, "--threshold", "much"), 1, "--threshold 'much': expected a number of percent"),
        ((SAME[0], "1999"), 1, "no run is named '1999'"),
    ],
)
def test_what_cannot_be_compared_says_why(
    results: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = invoke("results.compare", *words, "--results", results, "--json")
    assert done.returncode == code
    assert said in json.loads(done.stdout)["error"]["message"]


def test_an_altered_run_is_named_by_every_verb_and_hides_no_other(results: Path) -> None:
    from lean.bench.sums import RAW_FILES, write_sums

    run = results / "v1" / "h100" / "decode_64_256" / SAME[0]
    write_sums(run, RAW_FILES)
    assert invoke("results.show", "--run", SAME[0], "--results", results).returncode == 0
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"requests": 3', '"requests": 4', 1))

    listed = invoke("results.list", "--results", results, "--json")
    document = json.loads(listed.stdout)
    assert listed.returncode == 0 and len(document["runs"]) == 3
    (broken,) = document["broken"]
    assert broken["kind"] == "altered" and "run.json was changed" in broken["problem"]
    assert "altered: " in invoke("results.list", "--results", results).stderr

    shown = invoke("results.show", "--run", SAME[0], "--results", results, "--json")
    assert shown.returncode == 8 and json.loads(shown.stdout)["altered"][0].startswith("run.json was changed")
    assert invoke("results.compare", *SAME, "--results", results).returncode == 8
    assert invoke("results.plot", "--runs", SAME[0], "--results", results).returncode == 8
    exported = invoke("results.export", "--results", results)
    assert exported.returncode == 0 and "run.json was changed" in exported.stderr
    rows = list(csv.DictReader(io.StringIO(exported.stdout)))
    assert {row["run"] for row in rows} == {SAME[1], BATCH_8_BEFORE, BATCH_8_AFTER}


def test_two_tables_want_a_folder(results: Path, tmp_path: Path) -> None:
    done = invoke("results.export", "--samples", "--results", results)
    assert done.returncode == 1 and "--out FOLDER" in done.stderr
    out = tmp_path / "tables"
    done = invoke("results.export", "--samples", "--results", results, "--out", out, "--json")
    assert json.loads(done.stdout)["files"] == [str(out / "metrics.csv"), str(out / "samples.csv")]
    assert "exists; name a new one" in invoke("results.export", "--results", results, "--out", out).stderr


def test_figures_are_drawn_of_several_runs(results: Path, tmp_path: Path) -> None:
    both = f"{BATCH_8_BEFORE},{BATCH_8_AFTER}"
    done = invoke("results.plot", "--runs", both, "--results", results, "--out", tmp_path / "drawn", "--json")
    assert done.returncode == 0, done.stderr
    for file in json.loads(done.stdout)["files"]:
        assert Path(file).read_bytes().startswith(b"\x89PNG")


def test_an_iteration_goes_into_the_ledger_and_into_its_totals(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    words = (
        "--contract",
        "tiny-cpu",
        "--prompt-tokens",
        "900",
        "--response-tokens",
        "80",
        "--ledger",
        ledger,
    )
    added = invoke("ledger.add", *words, "--parity", "passed", "--first-correct-s", "12.5", "--json")
    assert json.loads(added.stdout)["entry"]["parity"] == "passed"
    with ledger.open("a") as file:
        file.write('{"schema": "ledger/v1", "at')
    done = invoke("ledger.report", "--ledger", ledger, "--json")
    document = json.loads(done.stdout)
    assert [(c["contract"], c["tokens"]) for c in document["contracts"]] == [("tiny-cpu", 980)]
    assert [bad["number"] for bad in document["bad"]] == [2]
    assert "line 2" in invoke("ledger.report", "--ledger", ledger).stderr
    for words, said in (
        (("no-such", "1", "1", "failed"), "no contract named 'no-such'"),
        (("tiny-cpu", "1", "1", "maybe"), "parity: expected one of passed, failed"),
        (("tiny-cpu", "x", "1", "failed"), "--prompt-tokens 'x': expected a whole number"),
        (("tiny-cpu", "1", "1", "failed", "--range", "HEAD"), "--range 'HEAD': expected two commits"),
    ):
        refused = invoke("ledger.add", *words, "--ledger", ledger)
        assert refused.returncode in (1, 2) and said in refused.stderr


def test_the_gaps_of_this_checkout_have_a_kind_and_a_fix() -> None:
    done = invoke("show.gaps", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0 and sum(document["counts"].values()) == len(document["gaps"])
    assert all(gap["fix"] for gap in document["gaps"])

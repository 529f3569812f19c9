"""What a soak comes to: its record, whether it can be believed, and where an unfinished one stands."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from soak_fakes import Behaviour, FakeStart, again, soak_of

from lean.bench.record import Release
from lean.errors import GateError, InvalidRunError
from lean.soak import finish
from lean.soak.finish import Kept, keep, standing
from lean.soak.run import Soak, run_soak

RELEASE = Release(id="made", git_sha="0123456789" * 4, dirty=False, diff_sha256=None)
DAMAGED = [{"name": "whole"}, {"name": "twin"}, {"name": "damaged", "control": "weights"}]
SLOW = {"token_s": 0.004}


@pytest.fixture(autouse=True)
def no_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes serve no pack; of one, a record only says whose weights it has."""

    class Manifest:
        weights = "demo"

    monkeypatch.setattr(finish, "read_manifest", lambda _: (Manifest, "5" * 64))


def ended(soak: Soak, results: Path) -> Kept:
    run_soak(soak)
    return keep(soak, release=RELEASE, host="far", results=results)


def damaged(tmp_path: Path, wrong: int, **others: Behaviour) -> Soak:
    """A soak of a baseline, its twin and an arm that answers `wrong` tasks wrongly."""
    start_engine = FakeStart({"damaged": Behaviour(wrong_answers=wrong, lock="7" * 64, **SLOW)} | others)
    for name in ("whole", "twin"):
        start_engine.behaviours.setdefault(name, Behaviour(**SLOW))
    return soak_of(tmp_path / "soaks", start_engine, arms=DAMAGED)


def test_a_record_has_every_row_and_what_happened_and_its_sums(tmp_path: Path) -> None:
    kept = ended(damaged(tmp_path, wrong=4), tmp_path)
    place = tmp_path / "v1/far/soak" / kept.record.id
    assert kept.place == place and kept.record.complete
    for line in (place / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((place / name).read_bytes()).hexdigest() == digest
    rows = [json.loads(line) for line in gzip.decompress((place / "rows.jsonl.gz").read_bytes()).splitlines()]
    assert len(rows) == 3 * (4 + 2 * (4 + 1 + 2))
    assert {row["replay"] for row in rows} == {1, 2}
    events = [json.loads(line)["event"] for line in (place / "journal.jsonl").read_text().splitlines()]
    assert events.count("phase done") == 12
    document = json.loads((place / "soak.json").read_text())
    assert [one["arm"] for one in document["verdicts"]] == ["whole", "twin", "damaged"]
    assert "# Soak made on far" in (place / "report.md").read_text() and (place / "soak.png").stat().st_size


def test_damage_that_its_rule_catches_leaves_a_soak_to_believe(tmp_path: Path) -> None:
    kept = ended(damaged(tmp_path, wrong=4), tmp_path)
    found = {one.arm: (one.verdict, one.rule) for one in kept.record.verdicts}
    assert found["damaged"] == ("investigate", "score under the floor")
    assert kept.failure is None or "twin" in str(kept.failure)  # this machine may be too busy for a twin


def test_damage_that_goes_uncaught_is_a_failed_gate(tmp_path: Path) -> None:
    kept = ended(damaged(tmp_path, wrong=0), tmp_path)
    assert isinstance(kept.failure, GateError) and "'damaged' is damaged on purpose" in str(kept.failure)
    assert "Damage went unseen" in (kept.place / "report.md").read_text()


def test_a_twin_that_is_flagged_means_that_nothing_can_be_believed(tmp_path: Path) -> None:
    kept = ended(damaged(tmp_path, wrong=4, twin=Behaviour(wrong_answers=4)), tmp_path)
    assert isinstance(kept.failure, InvalidRunError) and "'twin' has the baseline's own settings" in str(
        kept.failure
    )


def test_a_damaged_arm_that_never_ran_is_not_called_caught(tmp_path: Path) -> None:
    soak = damaged(tmp_path, wrong=4)
    assert isinstance(soak.start_engine, FakeStart)
    soak.start_engine.behaviours["damaged"].starts = False
    kept = ended(soak, tmp_path)
    assert isinstance(kept.failure, InvalidRunError) and "1 of 3 arms are not whole" in str(kept.failure)
    page = (kept.place / "report.md").read_text()
    assert (
        "The soak is **incomplete**" in page and "whether the rules see such damage here is not known" in page
    )


def test_a_baseline_that_failed_is_named_and_not_the_damaged_arm(tmp_path: Path) -> None:
    soak = damaged(tmp_path, wrong=4, whole=Behaviour(dies_after=9))
    kept = ended(soak, tmp_path)
    assert isinstance(kept.failure, InvalidRunError) and "whole: " in str(kept.failure)


def test_a_soak_that_was_cut_and_came_to_its_end_is_complete(tmp_path: Path) -> None:
    soak = damaged(tmp_path, wrong=4, twin=Behaviour(dies_after=9))
    assert not ended(soak, tmp_path / "first").record.complete
    start_engine = FakeStart({"damaged": Behaviour(lock="7" * 64, wrong_answers=4, **SLOW)})
    kept = ended(again(soak, start_engine), tmp_path / "second")
    assert kept.record.complete and kept.record.incomplete
    assert "The soak is **complete**" in (kept.place / "report.md").read_text()


def test_where_a_soak_stands_is_told_by_arm_and_phase(tmp_path: Path) -> None:
    soak = damaged(tmp_path, wrong=4, twin=Behaviour(dies_after=9))
    run_soak(soak)
    found: dict[str, Any] = standing(soak.state)
    assert found["phases"]["whole"]["conversations"] == {"replays": 2, "of": 2}
    assert found["phases"]["twin"]["conversations"] == {"replays": 0, "of": 2}
    assert found["finished"] is False and found["not_run"]["whole"] is None
    assert found["incomplete"] and found["last"]

"""The benchmark of copies runs every case against a real sshd, and its record says what it measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import site_on

from lean.errors import UsageError
from remote.appliance.transfer_costs import measure_transfers, rows, write_transfers


@pytest.mark.slow
@pytest.mark.sshd
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, the download's peer")
def test_every_copy_and_its_peer_are_measured_and_kept(
    sshd_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote.appliance.transfer_costs.TREE_FILES", 20)
    scratch = tmp_path / "scratch"
    monkeypatch.setattr("os.getloadavg", lambda: (9.0 if scratch.exists() else 0.25, 0.0, 0.0))
    record = measure_transfers(site_on(sshd_host.connect()), scratch, rounds=2, mib=2)

    assert {name: set(runs) for name, runs in record["samples"].items()} == {
        "push": {"ours", "peer", "rsync alone", "scp", "ssh cat"},
        "pull": {"ours", "peer", "rsync alone"},
        "tree": {"ours", "peer"},
        "relay": {"ours", "download", "push"},
    }
    assert all(len(s) == 2 and min(s) > 0 for runs in record["samples"].values() for s in runs.values())
    path = write_transfers(record, tmp_path / "results")
    assert json.loads((path / "transfers.json").read_text())["rows"] == record["rows"]
    page = (path / "report.md").read_text()
    assert "load 0.25 before" in page and "largest child" in page
    assert "rsync, sha256sum twice, sync" in page
    with pytest.raises(UsageError, match="never rewritten"):
        write_transfers(record, tmp_path / "results")


def test_a_ratio_is_of_medians_and_the_relay_is_held_against_its_slower_leg() -> None:
    samples = {
        "push": {"ours": [1.0, 2.0, 9.0], "peer": [2.0, 2.0, 2.0], "scp": [1.0, 1.0, 1.0]},
        "relay": {"ours": [3.0, 3.0, 3.0], "download": [1.0, 1.0, 1.0], "push": [2.0, 2.0, 2.0]},
    }
    found = rows({"samples": samples})
    assert found[0] == (
        "push", "2.00 s", "rsync, sha256sum twice, sync 2.00 s", "1.00 (0.50 to 4.50), limit 1.1", "yes",
    )  # fmt: skip
    assert found[1][0] == "  ceiling: scp"
    assert found[2][2:] == ("slower leg (push) 2.00 s", "1.50 (1.50 to 1.50), limit 1.15", "no")

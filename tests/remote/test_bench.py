"""What is refused before anything is asked of the host, and what is not, through the verb itself."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from helpers import REPO


def dry_bench(*words: str) -> tuple[int, dict[str, Any]]:
    argv = [sys.executable, "-m", "invoke", "remote.bench", "--host", "loopback", "--dry-run", "--json"]
    done = subprocess.run([*argv, *words], cwd=REPO, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--requests", "2"), 2, "profile decode_64_256: requests: expected at least 3, got 2"),
        (("--warmup", "0"), 2, "profile decode_64_256: warmup_requests: expected at least 1, got 0"),
        (("--requests", "many"), 1, "--requests 'many': expected a whole number"),
    ],
)
def test_counts_that_no_profile_may_have_are_refused_before_a_service_starts(
    words: tuple[str, ...], code: int, message: str
) -> None:
    ended, document = dry_bench(*words)
    assert (ended, document["error"]["message"]) == (code, message)


def test_counts_of_ones_own_reach_the_measurement() -> None:
    code, document = dry_bench("--requests", "90", "--warmup", "2")
    assert code == 0
    assert any("lean.bench run" in step and "--requests 90 --warmup 2" in step for step in document["would"])

"""What is refused before anything is asked of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from lean.contracts import Host
from lean.errors import ContractError
from remote.appliance.bench import bench
from remote.console import Console
from remote.host.dry_run import DrySite


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"requests": 2}, "profile decode_64_256: requests: expected at least 3, got 2"),
        ({"warmup": 0}, "profile decode_64_256: warmup_requests: expected at least 1, got 0"),
    ],
)
def test_counts_that_no_profile_may_have_are_refused_before_a_service_starts(
    tmp_path: Path, counts: dict[str, int], message: str
) -> None:
    site = DrySite(Console(), "loopback", Host(contract="tiny-cpu"))
    before = list(site.steps)
    with pytest.raises(ContractError, match=message):
        bench(site, "decode_64_256", results=tmp_path, **counts)
    assert site.steps == before

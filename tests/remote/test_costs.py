"""How a record of costs is shown."""

from __future__ import annotations

from typing import Any

import pytest

from remote.appliance.costs import rows

SAMPLE = {"seconds": 1.0, "resident_bytes": 1 << 28, "private_bytes": 1 << 27}
RECORD: dict[str, Any] = {
    "list": {"ours": [0.3], "bare": [0.1]},
    "sync": {"ours": [0.6], "bare": [0.2]},
    "start": {
        "pack_bytes": 1 << 23,
        "service": [SAMPLE],
        "torch_import": [SAMPLE],
        "torch_product": [SAMPLE],
    },
    "decode": None,
}


def clients(decode_ratio: float, ttft_ratio: float) -> dict[str, Any]:
    return {
        **{"peer": "llama-benchy 1.0", "prompt": 512, "new": 64},
        "ours": {"decode_tokens_per_s": [99.0, 102.0, 100.0], "ttft_s": [0.04, 0.05, 0.06]},
        "theirs": {"decode_tokens_per_s": [100.0] * 3, "ttft_s": [0.05] * 3},
        **{"decode_ratio": decode_ratio, "decode_ratios": [0.9, decode_ratio, 1.1]},
        **{"ttft_ratio": ttft_ratio, "ttft_ratios": [0.9, ttft_ratio, 1.1]},
    }


def test_a_record_without_a_second_client_has_no_row_of_it() -> None:
    assert not [row for row in rows(RECORD) if "our client" in row[0]]
    assert rows(RECORD | {"clients": None}) == rows(RECORD)


@pytest.mark.parametrize(
    ("ratio", "kept"), [(1.0, "yes"), (1.049, "yes"), (0.951, "yes"), (1.06, "no"), (0.94, "no")]
)
def test_two_clients_of_one_service_agree_within_five_percent_or_the_row_says_no(
    ratio: float, kept: str
) -> None:
    speed, first = rows(RECORD | {"clients": clients(ratio, ratio)})[-2:]
    assert speed == (
        "decode tokens/s, our client, 512 in, 64 out",
        f"100.0 tokens/s, ratio {ratio:.3f} (0.900 to 1.100)",
        "llama-benchy 1.0 100.0 tokens/s",
        "ratio within 5% of 1",
        kept,
    )
    assert (first[1], first[2], first[4]) == (
        f"50.0 ms, ratio {ratio:.3f} (0.900 to 1.100)",
        "llama-benchy 1.0 50.0 ms",
        kept,
    )


def test_a_paced_service_has_rows_of_its_own_behind_the_real_one_s() -> None:
    found = rows(RECORD | {"clients": clients(1.09, 1.0), "paced": clients(1.0, 1.0) | {"pace_ms": 5.0}})
    assert [(row[0].split(", ")[1], row[4]) for row in found[-4:]] == [
        *(("our client", "no"), ("our client", "yes")),
        *(("paced service", "yes"), ("paced service", "yes")),
    ]

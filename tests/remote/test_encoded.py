"""Encoded packs from the laptop: what the host is asked to serve, to measure and to compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from lean.contracts import Host
from lean.errors import UsageError
from remote.appliance import models, service
from remote.appliance.accuracy import AccuracyRequest, measure_accuracy
from remote.appliance.bench import BenchRequest, bench
from remote.appliance.service import ServeRequest
from remote.console import Console
from remote.host.dry_run import DrySite

CODED = "/packs/qwen3-4b-base-bf16-h100-nvfp4-0123abcd"
PLAIN = "/packs/qwen3-4b-base-bf16-h100-0123abcd"


@pytest.fixture
def site() -> DrySite:
    """A host with a chip of which this checkout has a gate record."""
    return DrySite(Console(), "h100", Host(hostname="203.0.113.9", contract="qwen3-4b-base-bf16-h100"))


def asked(site: DrySite, request: ServeRequest) -> list[str]:
    before = len(site.steps)
    service.serve(site, request)
    return site.steps[before:]


def test_an_encoding_reaches_the_builder(site: DrySite) -> None:
    models.pack(site, random=7, encoding="fp8-e4m3")
    assert "--encoding=fp8-e4m3" in site.steps[-1]


def test_the_service_is_told_where_the_hosts_gate_records_lie_and_given_our_newest(site: DrySite) -> None:
    _, pushed, serving = asked(site, ServeRequest(pack=CODED, runner="cuda"))
    assert "results/v1/h100/gate/" in pushed and pushed.endswith("-> ~/lean/tmp/gate-record.json")
    assert "--gate '~/lean/artifacts/gate' --gate '~/lean/tmp/gate-record.json'" in serving
    assert "--allow-uncleared" not in serving


def test_a_bf16_pack_needs_no_record_and_the_torch_runner_no_gate(site: DrySite) -> None:
    _, serving = asked(site, ServeRequest(pack=PLAIN, runner="cuda"))
    assert "gate-record" not in serving
    _, serving = asked(site, ServeRequest(pack=CODED, runner="torch"))
    assert "--gate" not in serving


def test_who_allows_an_uncleared_encoding_says_so_to_the_service(site: DrySite, tmp_path: Path) -> None:
    assert (
        "--allow-uncleared" in asked(site, ServeRequest(pack=CODED, runner="cuda", allow_uncleared=True))[-1]
    )
    request = BenchRequest(profile="decode_64_256", pack=CODED, allow_uncleared=True)
    bench(site, request, results=tmp_path)
    assert any("leanserve serve" in step and "--allow-uncleared" in step for step in site.steps)


def test_an_encoded_pack_is_measured_under_the_hosts_contract_by_name(site: DrySite, tmp_path: Path) -> None:
    bench(site, BenchRequest(profile="decode_64_256", pack=CODED), results=tmp_path)
    (measured,) = (step for step in site.steps if "lean.bench run" in step)
    assert f"--contract qwen3-4b-base-bf16-h100 --pack {CODED} --host-name h100" in measured


def test_accuracy_compares_with_the_newest_bf16_pack_and_brings_the_record_home(
    site: DrySite, tmp_path: Path
) -> None:
    before = len(site.steps)
    measure_accuracy(site, AccuracyRequest(pack=CODED, prompts=4), results=tmp_path)
    listed, measured, pulled = site.steps[before:]
    assert "lean.leanpack list" in listed
    assert measured.startswith(f"job accuracy: python -m lean.accuracy --pack {CODED} --against ")
    assert "--runner cuda --prompts 4 --host-name h100" in measured and "--tokens" not in measured
    assert f"-> {tmp_path}/v1/h100/accuracy/" in pulled


def test_a_pack_that_would_be_read_as_an_option_is_refused(site: DrySite, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pack"):
        measure_accuracy(site, AccuracyRequest(pack="--runner"), results=tmp_path)

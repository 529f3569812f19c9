"""`--host a,b`: every host is tried at once, one line each, and one failure fails the verb."""

from __future__ import annotations

import shutil
import socket

import pytest

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client")


def test_a_verb_runs_on_every_host_and_fails_if_one_did(checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gone = f"  gone: {{hostname: 127.0.0.1, port: {port}, contract: tiny-cpu}}\n"
    text = (checkout.path / "hosts.local.yaml").read_text() + gone
    with checkout.hosts(text):
        shown = checkout.invoke("remote.sync", "--host", "loopback,gone")
        told = checkout.invoke("remote.sync", "--host", "loopback,gone", "--json")
    assert shown.code == told.code == 3
    lines = [line.strip() for line in shown.stdout.splitlines() if line.strip()]
    told_of = {line.split(":")[0]: line for line in lines}
    assert set(told_of) == {"loopback", "gone"} and len(lines) == 2
    assert ": ok, " in told_of["loopback"] and f"127.0.0.1:{port}" in told_of["gone"]
    hosts = told.document["hosts"]
    assert hosts["loopback"]["exit_code"] == 0 and hosts["loopback"]["unchanged"] is True
    assert hosts["gone"]["exit_code"] == 3 and hosts["gone"]["error"]["kind"] == "UnreachableError"


def test_flags_and_positions_travel_to_every_host(checkout, tmp_path) -> None:
    (tmp_path / "it's a file").write_text("x")
    outcome = checkout.invoke(
        "remote.push", str(tmp_path / "it's a file"), "/tmp/never", "--host", "loopback,", "--dry-run"
    )
    assert outcome.code == 1 and "a comma between" in outcome.stderr
    document = checkout.invoke(
        "remote.push",
        str(tmp_path / "it's a file"),
        "/x",
        "--host",
        "loopback,loopback",
        "--dry-run",
        "--json",
    ).document
    assert document["hosts"]["loopback"]["target"] == "loopback:/x"


def test_a_verb_that_belongs_to_one_host_takes_one(checkout) -> None:
    outcome = checkout.invoke("remote.bench", "--host", "loopback,other", "--dry-run")
    assert outcome.code == 2 and "no host named 'loopback,other'" in outcome.stderr

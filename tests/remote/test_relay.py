"""A relay through real SSH, both servers: from a local HTTP server to the host."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO, site_on

from lean.errors import HostKeyError, PreflightError, UsageError
from remote.appliance.range_server import serving
from remote.appliance.relay import RelayRequest, relay, size_in_bytes
from remote.host.site import LiveSite

MIB = 1 << 20


class Source:
    """A file behind HTTP."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url

    def fill(self, size: int) -> str:
        """Write so many random bytes; their sha256."""
        running, made = hashlib.sha256(), random.Random(7)
        with self.path.open("wb") as file:
            for start in range(0, size, MIB):
                piece = made.randbytes(min(MIB, size - start))
                running.update(piece)
                file.write(piece)
        return running.hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    path = tmp_path / "source.bin"
    path.touch()
    with serving(path) as url:
        yield Source(path, url)


@pytest.fixture
def site(any_host: Any) -> LiveSite:
    """The host with this checkout as its release and the tests' interpreter."""
    return site_on(any_host.connect())


def test_a_relayed_file_is_on_the_host_with_the_hash_of_its_source(
    site: LiveSite, source: Source, tmp_path: Path
) -> None:
    sha256 = source.fill(40 * MIB + 5)
    target = tmp_path / "on the host" / "it's $(id)"
    done = relay(site, RelayRequest(url=source.url, target=str(target)), state=tmp_path / "state")
    assert done == {"path": str(target), "size": 40 * MIB + 5, "sha256": sha256}
    assert hashlib.sha256(target.read_bytes()).hexdigest() == sha256
    assert not (tmp_path / "state" / "relay").exists() or not list((tmp_path / "state" / "relay").glob("*/*"))


def test_an_unknown_host_key_is_named_and_nothing_is_sent(
    any_host: Any, site: LiveSite, source: Source, tmp_path: Path
) -> None:
    source.fill(MIB)
    site.connection.resolved  # noqa: B018  as after a first connection
    known = any_host.directory / "known_hosts"
    kept = known.read_text()
    known.write_text("")
    try:
        with pytest.raises(HostKeyError):
            relay(site, RelayRequest(url=source.url, target=str(tmp_path / "f")), state=tmp_path)
    finally:
        known.write_text(kept)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (RelayRequest(url="http://127.0.0.1/f"), "--url needs --target"),
        (RelayRequest(url="http://127.0.0.1/f", target="-x"), "leading '-'"),
        (RelayRequest(target="/x"), "belongs to --url"),
        (RelayRequest(spool="many"), "expected a number"),
        (RelayRequest(url="ftp://127.0.0.1/f", target="/nowhere/f"), "expected an http or https"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    site: LiveSite, tmp_path: Path, request_: RelayRequest, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        relay(site, request_, state=tmp_path)


def test_sizes_are_read_in_powers_of_1024() -> None:
    assert [size_in_bytes(t) for t in ("7", "2 KiB", "3MiB", "2GiB")] == [7, 2048, 3 * MIB, 2048 * MIB]


def test_missing_packages_are_named_with_the_command(site: LiveSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PreflightError, match=r"pip install .*\[relay\]"):
        relay(site, RelayRequest(url="http://127.0.0.1/f", target="/x"))


@pytest.mark.fault("kill -9 ten times at random, 2 GiB", "relay")
@pytest.mark.slow
@pytest.mark.sshd
def test_two_gigabytes_interrupted_ten_times_arrive_with_the_right_hash(
    sshd_host: Any, source: Source, tmp_path: Path
) -> None:
    size, made = 2048 * MIB, random.Random(20261121)
    sha256, target = source.fill(size), tmp_path / "f"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "import remote.appliance.relay as r\n"
        "from remote.ssh.connection import HostConnection; from remote.ssh.settings import SshSettings\n"
        "from remote.host.python import HostPython; from remote.host.site import LiveSite\n"
        "from remote.console import Console; from lean.contracts import Host\n"
        "_, repo, config, name, state, url, target = sys.argv\n"
        "host = Host(contract='tiny-cpu', hostname=name, root='/tmp')\n"
        "connection = HostConnection(name, host, SshSettings(ssh_config=Path(config)))\n"
        "site = LiveSite(Console(), connection, HostPython(release=repo, python=sys.executable), '/tmp')\n"
        "request = r.RelayRequest(url=url, target=target, spool='512MiB')\n"
        "print(r.relay(site, request, state=Path(state))['sha256'])\n"
    )
    argv = [sys.executable, "-c", code, str(REPO), str(sshd_host.settings.ssh_config), sshd_host.name]
    argv += [str(tmp_path / "state"), source.url, str(target)]
    interrupted = 0
    while interrupted < 10:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            time.sleep(made.uniform(1.0, 3.0))
            assert child.poll() is None, f"it ended after {interrupted} interruptions: {child.communicate()}"
            child.kill()
        interrupted += 1
        assert not target.exists()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250)
    assert done.stdout.splitlines()[-1] == sha256, done.stderr
    assert hashlib.sha256(target.read_bytes()).hexdigest() == sha256

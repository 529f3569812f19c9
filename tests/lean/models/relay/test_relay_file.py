"""One file from an HTTP server that misbehaves. Oracle: the bytes themselves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import pattern, until

Relay = Any  # the fixtures' classes, see conftest.py
Origin = Any
MIB = 1 << 20
CHUNK = 16 * MIB
LOOKS = 8  # bytes: each end may look at the first byte before it goes on, to see that the version is the same


@pytest.fixture
def small_disk(tmp_path: Path, mount_small_disk: Callable[[Path, int], Path]) -> Path:
    return mount_small_disk(tmp_path / "small", 8192)


def whole(target: Path, body: bytes) -> bool:
    return target.read_bytes() == body


def test_a_relayed_file_is_what_the_server_holds(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    target = tmp_path / "host" / "new" / "weights.bin"
    ended = relay.file(origin.url, target)

    assert (ended.code, ended.host_code) == (0, 0), ended.stderr
    assert ended.document == {
        "path": str(target), "size": len(origin.body), "sha256": hashlib.sha256(origin.body).hexdigest(),
    }  # fmt: skip
    assert whole(target, origin.body)
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in target.parent.iterdir()) == [".weights.bin.relay.lock", "weights.bin"]
    assert not relay.spool.exists()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_sizes_around_a_chunk_arrive_whole(relay: Relay, origin: Origin, tmp_path: Path, size: int) -> None:
    origin.body = pattern(size)
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body)


@pytest.mark.fault("HTTP body cut short", "relay")
def test_dropped_connections_cost_a_chunk_each_and_nothing_else(
    relay: Relay, origin: Origin, tmp_path: Path
) -> None:
    origin.cut = [100_000, 0, 5 * MIB]
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body) and not origin.cut
    assert origin.sent <= len(origin.body) + 6 * MIB


def test_a_server_that_is_unwell_is_asked_again(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    origin.status = [503, 429]
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body)


def test_a_server_without_ranges_is_read_from_the_start(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    origin.ranges = False
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body)


@pytest.mark.fault("source changes under way", "relay")
def test_a_version_that_changes_under_way_is_never_spliced(
    relay: Relay, origin: Origin, tmp_path: Path
) -> None:
    old, new = origin.body, pattern(len(origin.body), seed=7)

    def change(number: int) -> None:
        if number == 4:
            origin.body = new

    origin.before = change
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert len(origin.asked) > 4 and old != new
    assert whole(tmp_path / "f", new)


@pytest.mark.fault("source changes under way", "relay")
def test_a_file_that_never_holds_still_is_given_up(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    def change(number: int) -> None:
        origin.etag = f'"{number}"'

    origin.before = change
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 8
    assert "changes while it is read" in ended.document["error"]["message"]
    assert not (tmp_path / "f").exists()


def test_a_range_that_lies_about_the_whole_is_not_believed(
    relay: Relay, origin: Origin, tmp_path: Path
) -> None:
    origin.lie = True
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 8 and not (tmp_path / "f").exists()


@pytest.mark.fault("kill -9 of either end", "relay")
@pytest.mark.parametrize("victim", ["sender", "host"])
def test_a_relay_that_was_killed_goes_on_where_it_was(
    relay: Relay, origin: Origin, tmp_path: Path, victim: str
) -> None:
    target = tmp_path / "f"
    sender, host = relay.start(["take-file", f"--target={target}"], [f"--url={origin.url}"])
    until(lambda: notes(tmp_path) >= 2)
    os.kill((sender if victim == "sender" else host).pid, signal.SIGKILL)
    sender.communicate(timeout=60)
    host.communicate(timeout=60)
    assert not target.exists()
    before = origin.sent
    ended = relay.file(origin.url, target)
    assert ended.code == 0, ended.stderr
    assert whole(target, origin.body)
    assert origin.sent - before <= len(origin.body) - CHUNK + LOOKS  # at least one chunk was not read again


def notes(folder: Path) -> int:
    """Lines that the host wrote about the staged file: its version, then its chunks."""
    found = list(folder.glob(".*.relay/*.relay"))
    return len(found[0].read_text().splitlines()) if found else 0


@pytest.mark.fault("one flipped byte in what is staged", "relay")
def test_a_flipped_byte_in_what_is_staged_does_not_survive(
    relay: Relay, origin: Origin, tmp_path: Path
) -> None:
    stage(relay, origin, tmp_path)
    staged = tmp_path / ".f.relay" / "file"
    data = bytearray(staged.read_bytes())
    data[5] ^= 1
    staged.write_bytes(data)
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body)


@pytest.mark.fault("one flipped byte in what is cached", "relay")
def test_a_flipped_byte_in_the_spool_does_not_survive(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    stage(relay, origin, tmp_path)
    cached = [path for path in relay.spool.iterdir() if not path.name.endswith(".part")]
    assert cached, "nothing was downloaded ahead"
    for path in cached:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body)


def test_what_was_staged_of_another_version_is_not_used(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    stage(relay, origin, tmp_path)
    origin.body = pattern(len(origin.body), seed=3)
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body)


def stage(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    """Leave a relay half-way: one chunk at least on the host, others in the spool."""
    sender, host = relay.start(["take-file", f"--target={tmp_path / 'f'}"], [f"--url={origin.url}"])
    until(lambda: notes(tmp_path) >= 2)
    os.kill(host.pid, signal.SIGSTOP)
    until(lambda: len(spooled(relay)) >= 1)
    for child in (sender, host):
        os.kill(child.pid, signal.SIGKILL)
        child.communicate(timeout=60)


def spooled(relay: Relay) -> list[Path]:
    return [p for p in relay.spool.iterdir() if not p.name.endswith(".part")] if relay.spool.exists() else []


def test_the_spool_stays_below_its_limit(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    origin.body = pattern(6 * CHUNK)
    most = 0
    sender, host = relay.start(
        ["take-file", f"--target={tmp_path / 'f'}"], [f"--url={origin.url}"], spool=2 * CHUNK
    )
    while sender.poll() is None:
        with contextlib.suppress(OSError):
            most = max(most, sum(p.stat().st_size for p in relay.spool.iterdir()))
        time.sleep(0.002)
    sender.communicate(timeout=60)
    host.communicate(timeout=60)
    assert (sender.returncode, whole(tmp_path / "f", origin.body)) == (0, True)
    assert 0 < most <= 2 * CHUNK


def test_an_existing_target_stays_unless_asked(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 4 and "--replace" in ended.document["error"]["message"]
    assert (tmp_path / "f").read_text() == "mine"
    assert relay.file(origin.url, tmp_path / "f", "--replace").code == 0
    assert whole(tmp_path / "f", origin.body)


@pytest.mark.fault("two at once", "relay")
def test_a_second_relay_of_the_same_file_names_the_first(
    relay: Relay, origin: Origin, tmp_path: Path
) -> None:
    origin.body = pattern(4 * CHUNK)
    sender, host = relay.start(["take-file", f"--target={tmp_path / 'f'}"], [f"--url={origin.url}"])
    until(lambda: notes(tmp_path) >= 1)
    os.kill(host.pid, signal.SIGSTOP)
    second = type(relay)(relay.folder / "other", relay.environment).file(origin.url, tmp_path / "f")
    os.kill(host.pid, signal.SIGCONT)
    sender.communicate(timeout=60)
    host.communicate(timeout=60)
    assert second.code == 4 and f"process {host.pid}" in second.document["error"]["message"]
    assert sender.returncode == 0 and whole(tmp_path / "f", origin.body)


@pytest.mark.security("a signed address is shown without its signature")
@pytest.mark.parametrize(
    ("status", "code", "words"), [(404, 1, "not there"), (403, 3, "refused"), (418, 8, "answered 418")]
)
def test_a_refusing_server_is_an_error_without_the_addresss_secret(
    relay: Relay, origin: Origin, tmp_path: Path, status: int, code: int, words: str
) -> None:
    origin.status = [status] * 9
    ended = relay.file(f"{origin.url}?signature=s3cret", tmp_path / "f")
    message = ended.document["error"]["message"]
    assert (ended.code, words in message) == (code, True), message
    assert "s3cret" not in ended.stderr + message


@pytest.mark.fault("disk full (data)", "relay")
def test_a_full_disk_is_said_before_a_byte_moves(relay: Relay, origin: Origin, small_disk: Path) -> None:
    ended = relay.file(origin.url, small_disk / "f")
    assert ended.code == 4 and "make room" in ended.document["error"]["message"]
    assert origin.sent < MIB


@pytest.mark.fault("two versions with one validator", "relay")
def test_what_was_staged_of_another_address_is_not_used(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    origin.etag = '"the same for all"'
    stage(relay, origin, tmp_path)
    origin.body = pattern(len(origin.body), seed=3)
    ended = relay.file(f"{origin.url}?another", tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body)


@pytest.mark.fault("two versions with no validator", "relay")
def test_a_server_that_names_no_version_is_read_in_one_body(
    relay: Relay, origin: Origin, tmp_path: Path
) -> None:
    origin.etag = ""
    bodies = [origin.body, pattern(len(origin.body), seed=5)]

    def change(number: int) -> None:
        origin.body = bodies[number % 2]

    origin.before = change
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert (tmp_path / "f").read_bytes() in bodies


def test_a_torn_note_costs_one_chunk_and_not_the_file(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    stage(relay, origin, tmp_path)
    notes_file = tmp_path / ".f.relay" / "file.relay"
    good = len(notes_file.read_text().splitlines()) - 1
    notes_file.write_text(notes_file.read_text() + '[16777216, "torn')
    for path in relay.spool.iterdir():
        path.unlink()
    before = origin.sent
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert whole(tmp_path / "f", origin.body)
    assert origin.sent - before <= len(origin.body) - good * CHUNK + LOOKS


def test_a_new_version_of_another_size_is_said_and_not_taken(
    relay: Relay, origin: Origin, tmp_path: Path
) -> None:
    def change(number: int) -> None:
        if number == 4:
            origin.body = pattern(len(origin.body) + MIB, seed=7)

    origin.before = change
    ended = relay.file(origin.url, tmp_path / "f")
    assert ended.code == 8 and "run it again" in ended.document["error"]["message"]
    assert not (tmp_path / "f").exists()
    assert relay.file(origin.url, tmp_path / "f").code == 0
    assert whole(tmp_path / "f", origin.body)


def test_an_unwritable_place_on_the_host_is_named(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    ended = relay.file(origin.url, tmp_path / "file" / "below")
    assert ended.code == 4, ended.document
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("url", ["http://[::1", "no address", "ftp://127.0.0.1/f"])
def test_what_is_no_address_is_said_plainly(relay: Relay, tmp_path: Path, url: str) -> None:
    ended = relay.file(url, tmp_path / "f")
    assert ended.code == 1 and "address" in ended.document["error"]["message"]


def test_user_and_password_of_an_address_go_to_its_host(relay: Relay, origin: Origin, tmp_path: Path) -> None:
    ended = relay.file(origin.url.replace("http://", "http://me:s3cret@"), tmp_path / "f")
    assert ended.code == 0, ended.stderr
    assert set(origin.credentials) == {"Basic bWU6czNjcmV0"}
    assert "s3cret" not in ended.stderr

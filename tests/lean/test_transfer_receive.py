"""The receiving end against a sender that lies. The test speaks the sender's part over a pair of pipes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lean.transfer.channel import Channel, ChannelError, Refused
from lean.transfer.receive import Target, receive
from lean.transfer.tree import Entry, check


class Talk:
    """A receiver in a thread, and the channel to talk to it."""

    def __init__(self, target: Path) -> None:
        down, up = os.pipe(), os.pipe()
        self.pipes = [*down, *up]
        self.channel = Channel(up[0], down[1], idle_s=5)
        self.outcome: list[Any] = []
        theirs = Channel(down[0], up[1], idle_s=5)
        to = Target(path=str(target), who="test")
        self.thread = threading.Thread(target=self._run, args=(theirs, to))
        self.thread.start()

    def _run(self, theirs: Channel, to: Target) -> None:
        try:
            self.outcome.append(receive(theirs, to))
        except (Refused, ChannelError) as error:
            self.outcome.append(error)

    def offer(self, *entries: list[Any], tree: bool = True) -> dict[str, Any]:
        self.channel.send({"tree": tree, "entries": list(entries), "rsync": False})
        return self.channel.receive()

    def hang_up(self) -> Any:
        os.close(self.pipes[1])
        self.thread.join(10)
        self.pipes = [self.pipes[0], *self.pipes[2:]]
        return self.outcome[0]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    (tmp_path / "root").mkdir()
    talk = Talk(tmp_path / "root" / "target")
    yield talk
    if len(talk.pipes) == 4:
        talk.hang_up()
    for pipe in talk.pipes:
        os.close(pipe)
    assert not talk.thread.is_alive()


def file(path: str, size: int = 1) -> list[Any]:
    return [path, "file", size, 0, False, ""]


def link(path: str, to: str) -> list[Any]:
    return [path, "link", 0, 0, False, to]


@pytest.mark.security("a hostile listing stays inside its root")
@pytest.mark.parametrize(
    "entries",
    [
        [file("../out")],
        [file("/out")],
        [file("a/../../out")],
        [file("a//b")],
        [file(".")],
        [file("a\0b")],
        [file("")],
        [file("a"), file("a")],
        [file("a"), file("a/b")],
        [link("a", "/etc"), file("a/passwd")],
        [link("a", "b"), file("a/x")],
        [link("a", "/etc/passwd")],
        [link("a", "..")],
        [link("d/a", "../..")],
        [link("d/a", "../x/../../..")],
        [link("up", "d/.."), link("out", "up/..")],
        [link("a", "")],
        [["a", "device", 0, 0, False, ""]],
        [["a", "file", -1, 0, False, ""]],
        [["a", "file", "1", 0, False, ""]],
        ["a"],
        [],
    ],
)
def test_a_listing_that_could_leave_its_root_is_refused_and_writes_nothing(
    talk: Talk, tmp_path: Path, entries: list[Any]
) -> None:
    empty_is_fine = entries == []
    if empty_is_fine:
        assert "stage" in talk.offer()
    else:
        with pytest.raises(Refused):
            talk.offer(*entries)
    assert talk.hang_up()

    assert [path.name for path in tmp_path.rglob("*") if "lean-part" not in str(path)] == ["root"]


def test_links_that_stay_inside_are_believed() -> None:
    check(
        [
            Entry("d", "folder"),
            Entry("d/up", "link", link="../f"),
            Entry("l", "link", link="d/up"),
            Entry("f", "file"),
        ]
    )


def test_damaged_bytes_are_refused_and_only_the_good_ones_kept(talk: Talk, tmp_path: Path) -> None:
    talk.offer(file("", 6), tree=False)
    good = hashlib.sha256(b"abc").hexdigest()
    talk.channel.send({"file": 0, "from": 0})
    for data, sha256 in ((b"abc", good), (b"dXf", hashlib.sha256(b"abcdef").hexdigest())):
        talk.channel.send({"bytes": len(data)})
        talk.channel.write(data)
        talk.channel.send({"sha256": sha256})
    with pytest.raises(Refused, match="bytes 3 to 6 arrived damaged"):
        talk.channel.receive()
    talk.hang_up()

    assert not (tmp_path / "root" / "target").exists()
    assert (tmp_path / "root" / ".target.lean-part" / "data").read_bytes() == b"abc"


def test_a_file_that_was_never_sent_ends_the_copy(talk: Talk, tmp_path: Path) -> None:
    talk.offer(file("a"), file("b", 0))
    talk.channel.send({"end": True})
    with pytest.raises(Refused, match="was never sent"):
        talk.channel.receive()

    assert not (tmp_path / "root" / "target").exists()


def test_more_bytes_than_announced_are_refused(talk: Talk) -> None:
    talk.offer(file("", 2), tree=False)
    talk.channel.send({"file": 0, "from": 0})
    talk.channel.send({"bytes": 3})
    with pytest.raises(Refused, match="more bytes arrive than were announced"):
        talk.channel.receive()


def test_a_prefix_that_is_not_there_cannot_be_claimed(talk: Talk) -> None:
    talk.offer(file("", 2), tree=False)
    talk.channel.send({"file": 0, "from": 1})
    with pytest.raises(Refused, match="nobody said that 1 bytes of it are here"):
        talk.channel.receive()


def test_a_sender_that_hangs_up_leaves_the_target_and_the_lock_free(talk: Talk, tmp_path: Path) -> None:
    talk.offer(file("", 2), tree=False)

    assert isinstance(talk.hang_up(), ChannelError)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_sender_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    down, up = os.pipe(), os.pipe()
    try:
        with pytest.raises(ChannelError, match=r"no answer for 0\.2 s"):
            receive(Channel(down[0], up[1], idle_s=0.2), Target(path=str(tmp_path / "t"), who="test"))
    finally:
        for pipe in (*down, *up):
            os.close(pipe)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [{"file": 7, "from": 0}, {"file": "x", "from": 0}, {"from": 0}, {"need": [9]}, {}]
)
def test_a_malformed_word_ends_the_copy_with_a_reason(
    talk: Talk, tmp_path: Path, words: dict[str, Any]
) -> None:
    talk.offer(file("", 2), tree=False)
    talk.channel.send(words)
    with pytest.raises(Refused, match="malformed"):
        talk.channel.receive()

    assert not (tmp_path / "root" / "target").exists()


def test_a_malformed_offer_is_refused(talk: Talk) -> None:
    talk.channel.send({"tree": True})
    with pytest.raises(Refused, match="malformed"):
        talk.channel.receive()


def test_work_that_times_out_is_not_taken_for_a_tick_of_the_wait() -> None:
    pipes = [*os.pipe(), *os.pipe()]
    channel = Channel(pipes[0], pipes[3], idle_s=5)

    def work(what: str, *, after: float) -> None:
        raise TimeoutError(f"{what} did not answer in {after:g} s")

    with pytest.raises(TimeoutError, match=r"the disk did not answer in 30 s"):
        channel.beating(work, "the disk", after=30.0)
    for pipe in pipes:
        os.close(pipe)


def test_work_goes_on_to_its_end_when_nobody_listens_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lean.transfer.channel.BEAT_S", 0.01)
    down, up = os.pipe(), os.pipe()
    channel = Channel(down[0], up[1], idle_s=5)
    os.close(up[0])
    os.close(down[1])
    done: list[int] = []

    def work() -> None:
        for step in range(20):
            threading.Event().wait(0.01)
            done.append(step)

    with pytest.raises(ChannelError, match="the other end went away"):
        channel.beating(work)
    assert len(done) == 20
    for pipe in (down[0], up[1]):
        os.close(pipe)

"""RST at 1, 50 and 99 % of the bytes, and just before the rename, under every kind of copy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import lock_is_free, until

from lean.errors import LeanError
from remote.transfer.copy import push

WAIT_AT_RENAME = """
import os, pathlib, time
def waiting(source, target, replace=os.replace, gate=pathlib.Path({gate!r})):
    gate.touch()
    while gate.exists():
        time.sleep(0.01)
    replace(source, target)
os.replace = waiting
"""


@pytest.mark.fault("link reset at 1, 50 and 99 %")
@pytest.mark.parametrize(
    "percent", [50, *(pytest.param(percent, marks=pytest.mark.slow) for percent in (1, 99))]
)
def test_a_cut_copy_replaces_nothing_and_the_next_one_is_whole(
    any_host: Any, faulty_link: Any, work: Any, percent: int, tmp_path: Path, no_strays: None
) -> None:
    link = faulty_link(any_host.port)
    through = any_host.through(link.port, tmp_path / "config")
    connection = through.connect()
    connection.run(["true"])
    cut_at = work.size * percent // 100
    link.cut_after(cut_at)
    with pytest.raises(LeanError) as raised:
        work.run(connection)
    assert link.carried >= cut_at, "the fault did not fire"
    assert raised.value.exit_code == 3, raised.value
    assert "run it again to go on" in str(raised.value)
    assert work.untouched()
    connection.close()

    link.cut_after(None)
    before = link.carried
    work.run(through.connect())
    assert work.whole()
    if percent == 99 and work.name != "sync":  # what had arrived, less a chunk, was not sent again
        assert link.carried - before < work.size


@pytest.mark.fault("link reset just before the rename", "push")
def test_a_cut_before_the_rename_leaves_the_old_file_or_the_new_one(
    any_host: Any, faulty_link: Any, place: Path, tmp_path: Path, carried_behind: Callable[[str], None]
) -> None:
    """The receiver waits at its rename until the link is gone."""
    here, there, gate = tmp_path / "f", place / "f", tmp_path / "gate"
    here.write_bytes(bytes(range(256)) * 4096)
    there.write_text("the old one")
    carried_behind(WAIT_AT_RENAME.format(gate=str(gate)))
    link = faulty_link(any_host.port)
    connection = any_host.through(link.port, tmp_path / "config").connect()
    ended: list[BaseException] = []

    def work() -> None:
        try:
            push(connection, here, str(there), method="chunks")
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(gate.exists)
    link.cut()
    thread.join(20)
    assert ended and isinstance(ended[0], LeanError) and ended[0].exit_code == 3
    assert there.read_text() == "the old one"
    gate.unlink()
    until(lambda: lock_is_free(there))
    assert there.read_bytes() in (b"the old one", here.read_bytes())
    carried_behind("")
    push(any_host.connect(), here, str(there))
    assert there.read_bytes() == here.read_bytes()
    connection.close()

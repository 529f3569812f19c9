"""RST at 1, 50 and 99 % of the bytes, and just before the rename, under every kind of copy."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lean.errors import LeanError
from remote.transfer import far_end
from remote.transfer.copy import push

MIB = 1 << 20


@pytest.mark.fault("link reset at 1, 50 and 99 %")
@pytest.mark.parametrize("percent", [pytest.param(1, marks=pytest.mark.slow), 50, 99])
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
    any_host: Any, faulty_link: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver, which is our own source carried there, waits at its rename until the link is gone."""
    here, there, gate = tmp_path / "f", place / "f", tmp_path / "gate"
    here.write_bytes(bytes(range(256)) * 4096)
    there.write_text("the old one")
    wait = (
        f"import pathlib, time\n        pathlib.Path({str(gate)!r}).touch()\n"
        f"        while pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n        os.replace(self.data"
    )
    whole = Path(far_end.REPOSITORY, "lean", "transfer")
    read = Path.read_text

    def altered(self: Path, *args: Any, **options: Any) -> str:
        text = read(self, *args, **options)
        if self == whole / "stage.py":
            assert "os.replace(self.data" in text
            text = text.replace("os.replace(self.data", wait)
        return text

    monkeypatch.setattr(Path, "read_text", altered)
    far_end.carried_source.cache_clear()
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
    until = time.monotonic() + 20
    while not gate.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    link.cut()
    thread.join(20)
    assert ended and isinstance(ended[0], LeanError) and ended[0].exit_code == 3
    assert there.read_text() == "the old one"
    gate.unlink()
    monkeypatch.undo()
    far_end.carried_source.cache_clear()
    time.sleep(0.3)
    assert there.read_bytes() in (b"the old one", here.read_bytes())
    push(any_host.connect(), here, str(there))
    assert there.read_bytes() == here.read_bytes()
    connection.close()

"""What every test process starts from, and fixtures of more than one folder."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from fault_table import FaultTable, rows_of
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Under nohup, in the background of a shell and on some CI runners these are ignored, by all children too:
# then Ctrl-C does nothing, and the gateway that ssh ends with SIGHUP stays.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def mount_small_disk() -> Iterator[Callable[[Path, int], Path]]:
    """Makes `folder` a file system of so many KiB, until the test ends."""
    mounted: list[Path] = []

    def mount(folder: Path, kib: int) -> Path:
        folder.mkdir()
        argv = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a small tmpfs (root): {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_configure(config: pytest.Config) -> None:
    page = os.environ.get("FAULT_TABLE")
    if page is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(Path(page)), "fault-table")


class OneDemoAModule(LoadScopeScheduling):
    """A module of `integration` goes to one worker, for its demo takes half a minute; others test by test.

    xdist's own groups (3.8) do nothing under pytest 9.2, whose node ids cannot be changed any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if "/integration/" in module else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneDemoAModule:
    return OneDemoAModule(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.table_rows = rows_of(item)  # type: ignore[attr-defined]
    return report

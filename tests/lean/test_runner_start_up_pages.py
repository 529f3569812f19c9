"""Giving back start-up memory: it shrinks the process and breaks nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lean.leanserve import start_up_pages

ROOT = Path(__file__).resolve().parents[2]
SMAPS = """\
7f0000000000-7f0000001000 r-xp 00000000 08:01 11 /usr/lib/lib with space.so
Rss:                   4 kB
Anonymous:             0 kB
7f0000002000-7f0000004000 r--p 00000000 08:01 11 /usr/lib/relocated.so
Rss:                   8 kB
Anonymous:             4 kB
7f0000005000-7f0000006000 rw-p 00000000 08:01 11 /usr/lib/data.so
Rss:                   4 kB
Anonymous:             0 kB
7f0000007000-7f0000008000 r--p 00000000 08:01 11 /usr/lib/untouched.so
Rss:                   0 kB
Anonymous:             0 kB
7f0000009000-7f000000a000 r--p 00000000 00:00 0 [vvar]
Rss:                   4 kB
Anonymous:             0 kB
7f000000b000-7f000000c000 r--p 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
"""

MEASURE = """
import json, re
import torch
from lean.leanserve.start_up_pages import release_start_up_pages

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10

x = torch.arange(4096.0).view(64, 64)
expected, before = (x @ x).sum().item(), resident()
released = release_start_up_pages()
after = resident()
print(json.dumps([before, released, after, (x @ x).sum().item() == expected]))
"""


def test_only_clean_read_only_mappings_of_files_are_given_back() -> None:
    assert start_up_pages._clean_file_mappings(SMAPS) == [(0x7F0000000000, 0x7F0000001000, 4096)]


def test_a_process_shrinks_by_what_was_released_and_computes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, released, after, same = json.loads(done.stdout)
    assert same
    assert released > 16 << 20
    assert before - after > released / 2


def test_a_system_without_smaps_gives_nothing_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(start_up_pages, "SMAPS", tmp_path / "absent")
    assert start_up_pages.release_start_up_pages() == 0

"""The file that llama.cpp reads: whole or not there, with room for it before a byte is written.

Except where `gguf` itself is asked, a stand-in that writes as slowly or as badly as a test wants is in its
place: it is installed in llama.cpp's environment, not in ours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import REPO, until

from lean.baseline.gguf_file import file_bytes, write_gguf
from lean.baseline.systems import SYSTEMS
from lean.demo import CHECKPOINT_DIR
from lean.errors import PreflightError

Usage = namedtuple("Usage", "total used free")

STAND_IN = """
import errno, os, time
from pathlib import Path
class Anything:
    def __getattr__(self, name): return 0
TokenType = GGMLQuantizationType = LlamaFileType = Anything()
class GGUFWriter:
    def __init__(self, path, arch): self.path = Path(path)
    def __getattr__(self, name): return lambda *a, **k: None
    def write_header_to_file(self): self.path.write_bytes(b"GGUF")
    def write_tensors_to_file(self):
        if os.environ["STAND_IN"] == "full": raise OSError("128 requested and 64 written")
        time.sleep(60)
"""


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(json.loads((CHECKPOINT_DIR / "config.json").read_text()))


def writing(tmp_path: Path, how: str) -> subprocess.Popen[str]:
    """The program with the stand-in."""
    (tmp_path / "gguf.py").write_text(STAND_IN)
    argv = [sys.executable, "-m", "lean.baseline.gguf_file", str(CHECKPOINT_DIR), str(tmp_path / "w.gguf")]
    paths = os.pathsep.join((str(REPO), str(tmp_path)))
    environment = os.environ | {"PYTHONPATH": paths, "STAND_IN": how}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def partials(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob(".w.gguf.*"))


@pytest.mark.fault("disk full (before it starts)", "baseline")
def test_too_little_room_is_said_in_bytes_before_a_byte_is_written(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace())
    needed = file_bytes(CHECKPOINT_DIR, config)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, needed - 1))
    with pytest.raises(PreflightError, match=f"needs {needed} bytes and .* has {needed - 1} free"):
        write_gguf(CHECKPOINT_DIR, tmp_path / "w.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("SIGTERM", "baseline")
def test_being_told_to_end_leaves_nothing_beside(tmp_path: Path) -> None:
    with writing(tmp_path, "slowly") as child:
        until(lambda: partials(tmp_path))
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=30)
    assert child.returncode == 130 and json.loads(out)["error"]["kind"] == "Interrupted"
    assert partials(tmp_path) == [] and not (tmp_path / "w.gguf").exists()


@pytest.mark.fault("disk full (data)", "baseline")
def test_a_disk_that_fills_up_is_named_and_nothing_is_left_beside(tmp_path: Path) -> None:
    with writing(tmp_path, "full") as child:
        out, err = child.communicate(timeout=30)
    assert child.returncode == 4 and "Traceback" not in err
    message = json.loads(out)["error"]["message"]
    assert "w.gguf: cannot be written: 128 requested and 64 written; make room there" in message
    assert partials(tmp_path) == []


@pytest.mark.slow
def test_the_room_that_is_asked_for_is_enough_and_hardly_more_by_gguf_itself(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    pins = [pin for pin in SYSTEMS["llama.cpp"].requirements if pin.startswith("gguf")]
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "own"), *pins]
    subprocess.run(argv, check=True, timeout=200)
    argv = [sys.executable, "-m", "lean.baseline.gguf_file", str(CHECKPOINT_DIR), str(tmp_path / "w.gguf")]
    paths = os.pathsep.join((str(REPO), str(tmp_path / "own")))
    subprocess.run(argv, env=os.environ | {"PYTHONPATH": paths}, check=True, timeout=200)
    size = (tmp_path / "w.gguf").stat().st_size
    assert size <= file_bytes(CHECKPOINT_DIR, config) <= size + (2 << 20)

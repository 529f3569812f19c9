"""A real service that is killed while it is measured: the record names it and loses nothing."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.bench import measure
from lean.bench.__main__ import main
from lean.bench.host_state import HostState
from lean.bench.record import read_run
from lean.cli import run_program

SHA = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("load", [(), ("--concurrency", "3"), ("--rate", "20")])
def test_every_request_until_the_end_is_in_the_record(
    start_service: Callable[..., Any],
    demo_pack: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    load: tuple[str, ...],
) -> None:
    served = start_service()
    release = tmp_path / "release.json"
    release.write_text(json.dumps({"id": "r", "git_sha": SHA, "dirty": False, "diff_sha256": None}))
    killer = threading.Timer(0.3, lambda: served.signal(signal.SIGKILL))

    def then_kill() -> HostState:
        if killer.ident is None:
            killer.start()  # the measured requests begin now, and take longer than that
        return real()

    real = measure.read_host_state
    monkeypatch.setattr(measure, "read_host_state", then_kill)
    words = ["run", "--url", served.url, "--profile", "decode_64_512", "--contract", "tiny-cpu"]
    words += ["--pack", str(demo_pack), "--token-file", str(served.folder / "token")]
    words += ["--service", str(served.folder / "ready.json"), "--release", str(release)]
    words += ["--host-name", "loopback", "--results", str(tmp_path / "results"), *load]
    code = run_program(main, words)
    killer.join()
    document = json.loads(capsys.readouterr().out)
    assert code == 7 and "every request answered to its end" in document["error"]["message"]
    record = read_run(Path(document["run"]))
    assert record.status == "invalid" and not record.fairness.fair
    broken = [s for s in record.samples if s.error is not None]
    assert broken and all(not s.finished and "Error" in str(s.error) for s in broken)
    assert [s.phase for s in record.samples if s.error is None].count("warmup") >= 1

"""A sound engine seen through a proxy that damages its answers, for the time of a block."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lean.child import await_ready, begin, end, last_words
from lean.errors import NotReadyError

READY_S = 60.0
STOP_S = 15.0  # more than `lean.soak.control` gives running answers
_RELEASE = Path(__file__).resolve().parents[2]


@contextmanager
def controlled(
    url: str, kind: Literal["slower", "cut"], *, folder: Path, share: float = 0.06, every: int = 10
) -> Iterator[str]:
    """The URL of a proxy before the engine at `url`, which is gone with the block, or with this process.

    `folder` gets its ready file, `control.json`, and its words, `control.log`. `share` and `every`: see
    `lean.soak.proxy`. To be entered on a thread that lives as long as the block: the kernel ends the proxy
    with the thread that started it. Errors: `NotReadyError` with its last words when it does not listen
    within `READY_S` seconds, or ended by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "control.json", folder / "control.log"
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "lean.soak.control", "--upstream", url, "--kind", kind]
    argv += ["--share", str(share), "--every", str(every), "--ready-file", str(ready)]
    paths = [str(_RELEASE), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = begin(argv, log, os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
    try:
        yield str(await_ready(process, ready, log, limit_s=READY_S, who="the control's proxy")["url"])
        if process.poll() is not None:
            raise NotReadyError(f"the control's proxy ended with {process.returncode}: {last_words(log)}")
    finally:
        end(process, STOP_S)
        ready.unlink(missing_ok=True)

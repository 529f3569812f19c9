"""Engines that follow a workload, for soaks in milliseconds; as a program, a whole soak to be killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lean.bench.dialect import VLLM
from lean.bench.prompt import Prompt
from lean.contracts import from_data
from lean.contracts.soak import Arm, Limits, SoakPlan
from lean.errors import NotReadyError
from lean.soak.engine import Engine, EngineInputs, Instruments, check_effective, effective, expected
from lean.soak.run import Soak, run_soak
from lean.soak.state import SoakState
from lean.soak.workload import Request, Workload

LOCK = "5" * 64
WARM_UPS = 5  # requests of an engine before any counts: one of each phase, and two at once
NO_FILE = {"file": "none.jsonl", "sha256": "0" * 64}
INPUTS = EngineInputs(
    contract="tiny-cpu", pack=Path("/nonexistent"), runner="torch", venvs=Path("/nonexistent")
)


@dataclass
class Behaviour:
    """What an arm's engine does. Defaults behave. `after`: from the so-many-th request on."""

    token_s: float = 0.0
    wrong_answers: int = 0  # of the scored tasks, each a wrong word
    short_every: int | None = None  # each so-many-th answer lacks a token
    dies_after: int | None = None
    hangs_after: int | None = None
    refuses_after: int | None = None
    other_lock_after: int | None = None
    starts: bool = True
    lock: str = LOCK  # of the weights that it serves
    effective: dict[str, str] = field(default_factory=dict)  # over what was asked
    artifact: bytes = b"{}\n"
    runner: dict[str, Any] = field(default_factory=dict)  # as /health says it
    requests: int = 0
    starts_seen: int = 0


def plan_of(**changes: Any) -> SoakPlan:
    """A plan of two arms and all four phases, with few and short requests."""
    passes = {"artifacts": [one["name"] for one in changes.get("supplementary", ())]}
    document: dict[str, Any] = {
        "schema": "soak/v1",
        "id": "made",
        "about": "a test",
        "baseline": "whole",
        "arms": [{"name": "whole"} | passes, {"name": "split4", "split_k": 4} | passes],
        "quality": {"data": NO_FILE, "tasks": 4, "new_tokens": 2},
        "conversations": {
            "data": NO_FILE,
            "conversations": 2,
            "prompt_tokens": 9,
            "new_tokens": 3,
            "replays": 2,
        },
        "long_decode": {"prompt_tokens": 4, "new_tokens": 6, "replays": 2},
        "concurrent": {"prompt_tokens": 4, "new_tokens": 3, "streams": 2, "replays": 2},
        "thresholds": {"floor": 3, "drop": 0, "replays": 2},
        "limits": {"read_s": 1.0, "connect_s": 1.0, "ready_s": 5.0},
    }
    return from_data(SoakPlan, document | changes, "the test's plan")


def long_plan() -> SoakPlan:
    """One that takes some seconds, in many short replays."""
    data = {"data": NO_FILE, "conversations": 2, "prompt_tokens": 9}
    return plan_of(
        conversations=data | {"new_tokens": 3, "replays": 10},
        long_decode={"prompt_tokens": 4, "new_tokens": 6, "replays": 10},
        concurrent={"prompt_tokens": 4, "new_tokens": 3, "streams": 2, "replays": 10},
    )


def workload_of(plan: SoakPlan) -> Workload:
    """What the plan asks, without data files: prompts of plain numbers."""

    def asked(name: str, turn: int, stream: int, new: int, scored: bool = False) -> Request:
        ids = tuple(range(1, 5))
        correct = (lambda text: not text.startswith("no")) if scored else None
        text = f"{name} {turn} {stream}"
        return Request(conversation=name, turn=turn, stream=stream, prompt=Prompt(ids=ids, text=text),
                     new_tokens=new, correct=correct)  # fmt: skip

    groups: dict[str, Any] = {}
    for phase in plan.phases:
        new = getattr(plan, phase).new_tokens
        if phase == "quality":
            one = tuple((asked(f"task-{i}", 0, 0, new, True),) for i in range(plan.quality.tasks))
        elif phase == "conversations":
            one = tuple((asked(f"c{i}", turn, 0, new),) for i in range(2) for turn in range(2))
        elif phase == "long_decode":
            one = ((asked("stream 0", 0, 0, new),),)
        else:
            one = (tuple(asked(f"stream {i}", 0, i, new) for i in range(plan.concurrent.streams)),)
        groups[phase] = (one,) * plan.replays(phase)
    return Workload(groups=groups, configs={phase: {"phase": phase} for phase in plan.phases})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _handler(behaviour: Behaviour, stopping: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def _json(self, status: int, document: dict[str, Any]) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            limit = behaviour.other_lock_after
            lock = "6" * 64 if limit is not None and behaviour.requests >= limit else behaviour.lock
            dead = behaviour.dies_after is not None and behaviour.requests > behaviour.dies_after
            self._json(503 if dead else 200, {"lock": lock, "status": "ok", "runner": behaviour.runner})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            behaviour.requests += 1
            number, total = behaviour.requests, body["max_tokens"]
            if behaviour.refuses_after is not None and number > behaviour.refuses_after:
                self._json(500, {"error": {"message": "the model fell over"}})
                return
            if behaviour.dies_after is not None and number > behaviour.dies_after:
                self.close_connection = True
                return
            while (
                behaviour.hangs_after is not None and number > behaviour.hangs_after and not stopping.is_set()
            ):
                time.sleep(0.02)
            if behaviour.short_every and number % behaviour.short_every == 0:
                total -= 1
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            word = "no" if number <= behaviour.wrong_answers + WARM_UPS else "yes"
            for token in range(total):
                time.sleep(behaviour.token_s)
                reason = "length" if token == total - 1 else None
                choice = {
                    "index": 0,
                    "text": word if not token else " x",
                    "finish_reason": reason,
                    "token_ids": [7],
                }
                self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": total}
            self.wfile.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

    return Handler


@dataclass
class FakeStart:
    """Starts engines that behave as their arm's entry says."""

    behaviours: dict[str, Behaviour] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(
        self, arm: Arm, inputs: EngineInputs, limits: Limits, *, slots: int, length: int, folder: Path,
        instruments: Instruments | None = None,
    ) -> Iterator[Engine]:  # fmt: skip
        behaviour = self.behaviours.setdefault(arm.name, Behaviour())
        behaviour.starts_seen += 1
        if not behaviour.starts:
            raise NotReadyError(f"arm {arm.name}: the engine ended with 1 before it served")
        folder.mkdir(parents=True, exist_ok=True)
        stopping = threading.Event()
        server = _Server(("127.0.0.1", 0), _handler(behaviour, stopping))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        try:
            if instruments is not None and instruments.regions is not None and behaviour.artifact:
                instruments.regions.write_bytes(behaviour.artifact)
            asked = expected(arm, inputs, slots)
            found = asked | behaviour.effective
            check_effective(arm, asked, found)
            behaviour.runner = {
                "name": found["runner"], "slots": found["slots"], "threads": 1, "device": "none",
                "compute_dtype": "float32",
                "split_k": None if found["split_k"] == "whole" else found["split_k"],
            }  # fmt: skip
            ready = {"contract": found["contract"], "gate": {"encoding": "bf16"}, "regions": None}
            if instruments is not None and instruments.regions is not None:
                ready["regions"] = str(instruments.regions)
            yield Engine(
                arm=arm.name, url=f"http://127.0.0.1:{server.server_address[1]}", token=None, model="fake",
                dialect=VLLM, lock=behaviour.lock, length=64,
                effective=effective(ready, {"runner": behaviour.runner}),
                ready=ready, process=process, log=folder / "engine.log",
            )  # fmt: skip
        finally:
            stopping.set()
            server.shutdown()
            thread.join()
            server.server_close()
            process.communicate()


def soak_of(folder: Path, start_engine: FakeStart | None = None, **changes: Any) -> Soak:
    """A new soak below `folder` on fake engines."""
    state = SoakState.new(folder, plan_of(**changes))
    return Soak(
        state=state, workload=workload_of(state.plan), inputs=INPUTS, lock=LOCK, release="made",
        say=lambda line: None, start_engine=start_engine or FakeStart(),
    )  # fmt: skip


def again(soak: Soak, start_engine: FakeStart | None = None, *, force: bool = False) -> Soak:
    """The same soak after a kill: what a new process makes of its folder."""
    state = SoakState.newest(soak.state.folder.parent, soak.plan.id)
    return replace(soak, state=state, start_engine=start_engine or FakeStart(), force=force)


def tree(folder: Path) -> dict[str, str]:
    """Every counted file of the arms with its hash."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("arms/*/*/replay-*.jsonl"))
    }


def main(root: Path) -> None:
    """Begin or go on with the soak below `root`, slowly enough to be killed in the midst of it."""
    plan = long_plan()
    found = root.exists() and list(root.glob("*/plan.json"))
    state = SoakState.newest(root, plan.id) if found else SoakState.new(root, plan)
    start_engine = FakeStart({arm.name: Behaviour(token_s=0.006) for arm in plan.arms})
    with state.lock():
        run_soak(
            Soak(
                state=state,
                workload=workload_of(plan),
                inputs=INPUTS,
                lock=LOCK,
                release="made",
                say=partial(print, flush=True),
                start_engine=start_engine,
            )
        )
    print("over", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

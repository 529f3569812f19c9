"""The life of the serving process: checks, listening, loading, first token, draining, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lean.contracts import to_data
from lean.errors import Interrupted, LeanError, PreflightError
from lean.leanpack import Pack, open_pack
from lean.leanserve.engine import Engine, EngineSettings
from lean.leanserve.gate_check import GateVerdict, check_gate
from lean.leanserve.http.app import HttpLimits, Identity, Service, build_app
from lean.leanserve.http.follow import Bridge
from lean.leanserve.http.server import FLUSH_SECONDS, server_for
from lean.leanserve.listener import HOST, listen
from lean.leanserve.plan import Plan, available_memory, require_memory, resident_plan
from lean.leanserve.preflight import Prepared, default_threads
from lean.leanserve.region_times import RegionLog
from lean.leanserve.runner import Runner, RunnerFacts
from lean.leanserve.stats import ServiceStats
from lean.leanserve.tokenizer import PackTokenizer


def serve(prepared: Prepared, *, started: float) -> dict[str, Any]:
    """Serve until a signal. `started` is `time.monotonic()` of the process's first line.

    Nothing listens before the pack is verified and its layout fits. Returns what was served. Errors:
    `PackError`, `GateError` and `PreflightError` before anything listens; what the runner raises while it
    loads; `Interrupted` when running requests were cut at the end.
    """
    options, clock = prepared.options, Startup(started)
    with contextlib.closing(prepared.listener):
        pack = open_pack(options.pack)
        clock.mark("pack_verified")
        gate = check_gate(
            pack.manifest.contract.encoding,
            options.runner,
            [target.name for target in pack.manifest.targets if target.kernels],
            options.gate,
            allow=options.allow_uncleared,
        )
        if gate.encoding != "bf16":
            print(f"encoding {gate.encoding}, gate {gate.status}: {gate.why}", file=sys.stderr, flush=True)
        plan = resident_plan(
            pack.manifest.contract,
            slots=options.slots,
            runner=options.runner,
            compute_dtype=options.dtype,
            weight_bytes=pack.manifest.weight_bytes,
            split_k=options.split_k,
        )
        if options.runner != "cuda":  # the device's memory is checked where the device is opened
            require_memory(plan, available_memory())
        with contextlib.ExitStack() as stack:
            log = None
            if options.regions is not None:
                about = {"contract": pack.manifest.contract.id, "lock": pack.lock, "runner": options.runner}
                log = stack.enter_context(contextlib.closing(RegionLog(options.regions, about)))
            return asyncio.run(_Process(prepared, pack, plan, gate, clock, log).run())


class Startup:
    """When the process's first line ran, and seconds from it to the end of each phase of the start."""

    def __init__(self, started: float) -> None:
        self._started = started
        began = datetime.now(UTC) - timedelta(seconds=time.monotonic() - started)
        self.started_utc = began.isoformat(timespec="milliseconds")
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """The phase ended now."""
        self.seconds[phase] = round(time.monotonic() - self._started, 4)


def make_runner(name: str, pack: Pack, plan: Plan, threads: int | None) -> Runner:
    """The backend of this name, loaded. Errors: `PreflightError` where what it needs is missing."""
    try:
        if name == "cuda":
            from lean.leanserve.cuda.runner import CudaRunner

            return CudaRunner.load(pack, plan)
        from lean.leanserve.torch_runner import TorchRunner
    except ImportError as error:
        raise PreflightError(f"the {name} runner needs {error.name}; install it, or bootstrap") from error
    count = threads or default_threads(plan.weight_bytes)
    return TorchRunner(pack, slots=plan.slots, threads=count, dtype=plan.compute_dtype, split_k=plan.split_k)


class _Process:
    """Everything of one serving process, from the bound socket to the last answer."""

    def __init__(
        self,
        prepared: Prepared,
        pack: Pack,
        plan: Plan,
        gate: GateVerdict,
        clock: Startup,
        log: RegionLog | None,
    ) -> None:
        options = prepared.options
        contract = pack.manifest.contract
        tokenizer = PackTokenizer(pack.tokenizer_dir, vocab=contract.model.geometry.vocab)
        stats = ServiceStats()
        settings = EngineSettings(queue_limit=options.queue, pinned_bucket=options.bucket, regions=log)
        self._options = options
        self._plan = plan
        self._gate = gate
        self._ready_file = prepared.ready_file
        self._listener = prepared.listener
        self._clock = clock
        self._signals: asyncio.Queue[str] = asyncio.Queue()
        self._service = Service(
            engine=Engine(
                lambda: make_runner(options.runner, pack, plan, options.threads),  # on the engine's thread
                token_bytes=tokenizer.token_bytes,
                settings=settings,
                stats=stats,
            ),
            bridge=Bridge(),
            tokenizer=tokenizer,
            identity=Identity(
                model=contract.model.id,
                contract=contract.id,
                lock=pack.lock,
                runner=options.runner,
                started=int(time.time()),
            ),
            stats=stats,
            limits=HttpLimits(),
        )
        self._server = server_for(build_app(self._service, prepared.token))

    async def run(self) -> dict[str, Any]:
        """Listen, load, be ready, drain. Returns the summary."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.put_nowait, number.name)
        self._service.bridge.attach()
        port = listen(self._listener)
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        self._clock.mark("listening")
        print(f"listening on http://{HOST}:{port}, loading", file=sys.stderr, flush=True)
        self._service.engine.start()
        try:
            return await self._until_signal(port)
        finally:
            self._ready_file.clear()
            self._server.should_exit = True
            await serving

    async def _until_signal(self, port: int) -> dict[str, Any]:
        first = asyncio.create_task(self._signals.get())
        ready = asyncio.wrap_future(self._service.engine.ready)
        either: list[asyncio.Future[Any]] = [first, ready]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            try:
                self._announce(port, _facts(ready))
            except BaseException:
                await asyncio.to_thread(self._service.engine.stop)
                raise
        else:
            ready.cancel()
        return await self._end(await first)

    def _announce(self, port: int, facts: RunnerFacts) -> None:
        identity = self._service.identity
        self._clock.mark("first_token")
        document = {
            "release": Path(__file__).resolve().parents[2].name,
            "url": f"http://{HOST}:{port}",
            "port": port,
            "pid": os.getpid(),
            "model": identity.model,
            "contract": identity.contract,
            "lock": identity.lock,
            "gate": to_data(self._gate),
            "regions": None if self._options.regions is None else str(self._options.regions),
            "bucket": self._options.bucket,
            "runner": to_data(facts),
            "plan": to_data(self._plan),
            "started_utc": self._clock.started_utc,
            "startup_seconds": self._clock.seconds,
        }
        self._ready_file.write(document)
        seconds = self._clock.seconds["first_token"]
        print(
            f"ready: first token out after {seconds:.2f} s; lock {identity.lock[:8]}",
            file=sys.stderr,
            flush=True,
        )

    async def _end(self, name: str) -> dict[str, Any]:
        """Drain after the first signal; a second one, or the limit, ends what still runs."""
        engine, limit = self._service.engine, self._options.drain_seconds
        print(
            f"{name}: draining for at most {limit:g} s; a second signal stops at once",
            file=sys.stderr,
            flush=True,
        )
        self._ready_file.clear()
        draining = asyncio.create_task(asyncio.to_thread(engine.drain, limit))
        second = asyncio.create_task(self._signals.get())
        await asyncio.wait({draining, second}, return_when=asyncio.FIRST_COMPLETED)
        cut = engine.status().running + engine.status().waiting
        await asyncio.to_thread(engine.stop, 1.0 if second.done() else FLUSH_SECONDS)
        await draining
        self._server.force_exit = second.done()
        second.cancel()
        if engine.failure is not None:
            raise LeanError(f"{name}: {engine.failure}")
        if cut:
            raise Interrupted(f"{name}: {cut} request(s) were cut before they finished")
        stats = self._service.stats
        responses = {f"{route} {status}": count for (route, status), count in sorted(stats.responses.items())}
        return {"stopped_by": name, "drained": True, "responses": responses, "tokens": stats.generated_tokens}


def _facts(ready: asyncio.Future[RunnerFacts]) -> RunnerFacts:
    try:
        return ready.result()
    except LeanError:
        raise
    except Exception as error:
        raise PreflightError(f"the runner did not start: {type(error).__name__}: {error}") from error

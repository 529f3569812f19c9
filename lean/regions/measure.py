"""The same profile twice by one runner in process: as it serves, then with the regions of each step timed."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lean.bench.record import Release, run_id
from lean.contracts import BenchProfile
from lean.errors import UsageError
from lean.leanpack import open_pack
from lean.leanserve.plan import BUCKETS, available_memory, require_memory, resident_plan
from lean.leanserve.region_times import RegionLog
from lean.leanserve.rounds import measure
from lean.leanserve.service import make_runner
from lean.regions.record import STEPS, RegionRecord
from lean.regions.summary import read_regions, summarize


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure. `threads`: of the torch runner. `split_k`: as of `resident_plan`."""

    pack: Path
    profile: BenchProfile
    runner: str = "torch"
    threads: int | None = None
    split_k: int | None = None


def measure_regions(
    options: Options, *, release: Release, host: str, host_facts: dict[str, Any]
) -> tuple[RegionRecord, bytes]:
    """The record of one pass, and the file of its steps.

    Errors: `UsageError` for a profile of more streams than a runner holds; those of opening packs and of the
    runner.
    """
    pack = open_pack(options.pack)
    manifest, profile = pack.manifest, options.profile
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    if profile.batch not in BUCKETS:
        raise UsageError(f"profile {profile.id} runs {profile.batch} streams; a runner holds at most 8")
    plan = resident_plan(
        manifest.contract,
        slots=profile.batch,
        runner=options.runner,
        weight_bytes=manifest.weight_bytes,
        split_k=options.split_k,
    )
    if options.runner != "cuda":
        require_memory(plan, available_memory())
    runner = make_runner(options.runner, pack, plan, options.threads)
    about = {"contract": manifest.contract.id, "lock": pack.lock, "weights": manifest.weights}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, STEPS)
        print("once as it serves, once with regions timed", file=sys.stderr, flush=True)
        plain = measure(runner, profile, **about)
        with contextlib.closing(RegionLog(file, about)) as log:
            runner.time_regions(log)
            timed = measure(runner, profile, **about)
            runner.time_regions(None)
        steps = file.read_bytes()
        times = read_regions(file)
    warm_up = profile.warmup_requests * (profile.decode_tokens - 1)
    record = RegionRecord(
        id=run_id(started, release),
        host=host,
        release=release,
        plain=plain,
        timed=timed,
        warm_up_steps=warm_up,
        summary=summarize(times.steps[warm_up:]),
        steps_sha256=hashlib.sha256(steps).hexdigest(),
        host_facts=host_facts,
    )
    return record, steps

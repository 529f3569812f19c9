"""One run from the first warm-up to the record on disk. Whatever happens, what was seen is kept."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lean.bearer import read_token
from lean.bench.client import ClientSettings, CompletionClient, CompletionRequest, clock_since_now
from lean.bench.fairness import FairnessVerdict, judge_fairness
from lean.bench.host_state import HostState, host_notes, read_host_state, throttle_reasons
from lean.bench.in_process_file import NOT_GIVEN, read_in_process, why_stale
from lean.bench.metrics import run_metrics
from lean.bench.prompt import Prompt, open_tokenizer, profile_prompts
from lean.bench.record import Backend, Failure, PackFacts, Release, RunRecord, Status, run_id
from lean.bench.sample import Phase, Sample
from lean.bench.served import (
    backend_of,
    check_served,
    is_uncleared,
    pack_facts,
    read_service,
    served_slots,
)
from lean.bench.store import write_run
from lean.contracts import BenchProfile, Contract, LabelFacts, LabelVerdict, compute_label, contract_sha256
from lean.errors import Interrupted, InvalidRunError, LeanError, NotReadyError
from lean.in_process import InProcess
from lean.leanpack import open_pack


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """Everything a run is told. `overridden` names the profile's fields that the command line changed.

    `in_process`: the document of the same measurement without HTTP; without one `no_in_process` says why.
    """

    url: str
    token_file: Path
    contract: Contract
    profile: BenchProfile
    overridden: tuple[str, ...]
    pack: Path
    service_file: Path
    release: Release
    host: str
    host_facts: dict[str, Any]
    results: Path
    prompt_form: Literal["ids", "text"]
    settings: ClientSettings
    command: tuple[str, ...]
    in_process: Path | None = None
    no_in_process: str | None = NOT_GIVEN


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run's record and the directory it was written to."""

    record: RunRecord
    path: Path


@dataclass(slots=True)
class _Evidence:
    """What has been seen so far; a failed run is recorded from it."""

    log: list[str] = field(default_factory=list)
    service: dict[str, Any] = field(default_factory=dict)
    backend: Backend | None = None
    pack: PackFacts | None = None
    in_process: InProcess | None = None
    stale: str | None = None
    before: HostState | None = None
    after: HostState | None = None
    prompts: dict[tuple[Phase, int, int], Prompt] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line on standard error and in log.txt."""
        self.log.append(f"{_now()} {text}")
        print(text, file=sys.stderr, flush=True)


def run_bench(plan: BenchPlan) -> FinishedRun:
    """Measure and write the record; the failure of a run is in its record, not raised.

    Errors: `PreflightError` when the record cannot be written. A bug keeps its own exception, after its
    record.
    """
    started = _now()
    evidence = _Evidence()
    bug: BaseException | None = None
    failure: Failure | None = None
    try:
        asyncio.run(_measure(plan, evidence))
    except LeanError as error:
        failure = _failure(error)
    except KeyboardInterrupt:
        failure = _failure(Interrupted("interrupted; the record holds the requests that had finished"))
    except Exception as error:
        bug = error
        failure = Failure(kind=type(error).__name__, message=str(error), exit_code=LeanError.exit_code)
    if failure is not None:
        evidence.say(f"failed: {failure.message}")
    record = _record(plan, evidence, started, failure)
    path = write_run(record, plan.results, evidence.log)
    if bug is not None:
        raise bug
    return FinishedRun(record=record, path=path)


async def _measure(plan: BenchPlan, evidence: _Evidence) -> None:
    profile = plan.profile
    evidence.service = read_service(plan.service_file)
    evidence.backend = backend_of(evidence.service)
    evidence.say(f"opening pack {plan.pack.name} and verifying its LOCK")
    pack = open_pack(plan.pack, verify=True)
    evidence.pack = pack_facts(pack)
    check_served(plan.contract, evidence.pack, evidence.service)
    if plan.in_process is not None:
        found = read_in_process(
            plan.in_process,
            contract=plan.contract,
            profile=profile,
            pack=evidence.pack,
            backend=evidence.backend,
            slots=served_slots(evidence.service),
            release=plan.release,
            host=plan.host_facts["host"],
        )
        evidence.stale = why_stale(found, evidence.service)
        evidence.in_process = None if evidence.stale else found
        if evidence.stale:
            evidence.say(f"not used, {plan.in_process.name}: {evidence.stale}")
    evidence.prompts = profile_prompts(open_tokenizer(pack.tokenizer_dir), profile)
    token = read_token(plan.token_file).decode()
    async with CompletionClient(plan.url, token, plan.settings, clock_since_now()) as client:
        model = await client.model()
        send = _sender(plan, client, model, evidence.prompts)
        for turn in range(profile.warmup_requests):
            _require_warm(await _round(send, evidence, "warmup", turn, profile))
        evidence.before = read_host_state()
        for turn in range(profile.requests):
            if any(sample.error for sample in await _round(send, evidence, "measured", turn, profile)):
                break  # the run is unfair already; the rest would only cost time
        evidence.after = read_host_state()


Send = Callable[[Phase, int, int], "asyncio.Future[Sample]"]


def _sender(
    plan: BenchPlan, client: CompletionClient, model: str, prompts: dict[tuple[Phase, int, int], Prompt]
) -> Send:
    def send(phase: Phase, stream: int, turn: int) -> asyncio.Future[Sample]:
        request = CompletionRequest(
            model=model,
            prompt=prompts[phase, stream, turn],
            prompt_form=plan.prompt_form,
            max_new_tokens=plan.profile.decode_tokens,
            phase=phase,
            stream=stream,
            round=turn,
        )
        return asyncio.ensure_future(client.complete(request))

    return send


async def _round(
    send: Send, evidence: _Evidence, phase: Phase, turn: int, profile: BenchProfile
) -> Sequence[Sample]:
    """All streams send at once, and the next round waits: every token is made at the full batch."""
    found = await asyncio.gather(*(send(phase, stream, turn) for stream in range(profile.batch)))
    evidence.samples.extend(found)
    seconds = (max(s.end_ns for s in found) - min(s.sent_ns for s in found)) / 1e9
    tokens = sum(sample.usage_completion_tokens or 0 for sample in found)
    evidence.say(f"{phase} round {turn}: {tokens} tokens in {seconds:.3f} s, {tokens / seconds:.1f} tokens/s")
    for sample in found:
        if sample.error is not None:
            evidence.say(f"{sample.name}: {sample.error}")
    return found


def _require_warm(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if sample.error is not None:
            kind = NotReadyError if sample.http_status in (None, 503) else InvalidRunError
            raise kind(f"{sample.name}: {sample.error}; see the service's log")


def _record(plan: BenchPlan, evidence: _Evidence, started: str, failure: Failure | None) -> RunRecord:
    before, after = evidence.before, evidence.after
    throttled = throttle_reasons(before, after) if before and after else ()
    fairness = judge_fairness(plan.contract, plan.profile, evidence.samples)
    status: Status = "ok"
    if failure is not None:
        status = "failed"
    elif throttled or not fairness.fair:
        status = "invalid"
        failure = _failure(InvalidRunError("; ".join(fairness.reasons + throttled)))
    label = _label(plan, evidence, fairness, status)
    return RunRecord(
        id=run_id(started, plan.release),
        host=plan.host,
        status=status,
        failure=failure,
        label=label.label,
        label_reasons=label.reasons,
        started_utc=started,
        finished_utc=_now(),
        contract=plan.contract,
        contract_sha256=contract_sha256(plan.contract),
        profile=plan.profile,
        overridden=plan.overridden,
        release=plan.release,
        pack=evidence.pack,
        backend=evidence.backend,
        service=evidence.service,
        host_facts=plan.host_facts,
        state_before=before,
        state_after=after,
        throttled=throttled,
        notes=host_notes(before, after) if before and after else (),
        fairness=fairness,
        metrics=run_metrics(plan.contract, plan.profile, evidence.samples, _measured_gbs(evidence)),
        command=plan.command,
        prompts=tuple(prompt.record(*place) for place, prompt in evidence.prompts.items()),
        samples=tuple(evidence.samples),
        in_process=evidence.in_process,
        no_in_process=_no_in_process(plan, evidence),
    )


def _measured_gbs(evidence: _Evidence) -> float | None:
    """What reading alone reached, unless so little was read that a cache may have answered."""
    found = evidence.in_process.read_bandwidth if evidence.in_process else None
    return found.gbs if found is not None and found.beyond_caches else None


def _no_in_process(plan: BenchPlan, evidence: _Evidence) -> str | None:
    """Why the record has no figure measured in process, if it has none."""
    if evidence.in_process is not None:
        return None
    return evidence.stale or plan.no_in_process or "the run ended before it was read"


def _label(plan: BenchPlan, evidence: _Evidence, fairness: FairnessVerdict, status: Status) -> LabelVerdict:
    if evidence.pack is None:
        return LabelVerdict(label="exploratory", reasons=("no pack was opened",))
    facts = LabelFacts(
        overridden=plan.overridden,
        weights=evidence.pack.weights,
        source_matches=evidence.pack.source_matches,
        lock_verified=evidence.pack.lock_verified,
        fair=fairness.fair,
        uncleared=is_uncleared(evidence.service),
    )
    verdict = compute_label(plan.contract, plan.profile, facts)
    if status != "ok" and verdict.label == "fixed-contract":
        return LabelVerdict(label="exploratory", reasons=(f"the run is {status}",))
    return verdict


def _failure(error: LeanError) -> Failure:
    return Failure(kind=type(error).__name__, message=str(error), exit_code=error.exit_code)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

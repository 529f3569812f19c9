"""One run from the first warm-up to the record on disk. Whatever happens, what was seen is kept."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from lean.bearer import read_token
from lean.bench.arrivals import send_on_schedule
from lean.bench.client import ClientSettings, CompletionClient, CompletionRequest, clock_since_now
from lean.bench.dialect import DIALECTS, VLLM, PromptForm
from lean.bench.fairness import FairnessVerdict, judge_fairness
from lean.bench.host_state import HostState, host_notes, read_host_state, throttle_reasons
from lean.bench.in_process_file import NOT_GIVEN, read_in_process, why_stale
from lean.bench.journal import Journal, record_bytes
from lean.bench.load import load_metrics
from lean.bench.metrics import run_metrics
from lean.bench.prompt import Prompt, open_tokenizer, profile_prompts
from lean.bench.record import Backend, Baseline, Failure, PackFacts, Release, RunRecord, Status, run_id
from lean.bench.sample import Phase, Sample
from lean.bench.served import (
    backend_of,
    baseline_backend,
    baseline_of,
    check_served,
    is_uncleared,
    pack_facts,
    read_service,
    served_slots,
    served_split_k,
)
from lean.bench.store import write_run
from lean.contracts import BenchProfile, Contract, LabelFacts, LabelVerdict, compute_label, contract_sha256
from lean.errors import (
    Interrupted,
    InvalidRunError,
    LeanError,
    NotReadyError,
    PreflightError,
    UsageError,
)
from lean.in_process import InProcess
from lean.leanpack import open_pack


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """Everything a run is told. `overridden` names the profile's fields that the command line changed.

    Without a `pack` the service is another system's, and `tokenizer` is its checkpoint's folder.
    `in_process`: the document of the same measurement without HTTP; without one `no_in_process` says why.
    """

    url: str
    token_file: Path | None
    contract: Contract
    profile: BenchProfile
    overridden: tuple[str, ...]
    pack: Path | None
    service_file: Path
    release: Release
    host: str
    host_facts: dict[str, Any]
    results: Path
    prompt_form: PromptForm
    settings: ClientSettings
    command: tuple[str, ...]
    in_process: Path | None = None
    no_in_process: str | None = NOT_GIVEN
    tokenizer: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run's record and the directory it was written to."""

    record: RunRecord
    path: Path


@dataclass(slots=True)
class _Evidence:
    """What has been seen so far; a failed run is recorded from it."""

    journal: Journal
    log: list[str] = field(default_factory=list)
    service: dict[str, Any] = field(default_factory=dict)
    backend: Backend | None = None
    pack: PackFacts | None = None
    baseline: Baseline | None = None
    in_process: InProcess | None = None
    stale: str | None = None
    before: HostState | None = None
    after: HostState | None = None
    prompts: dict[tuple[Phase, int, int], Prompt] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def keep(self, sample: Sample) -> None:
        """A request that ended, on disk too."""
        self.samples.append(sample)
        self.journal.add(sample)

    def say(self, text: str) -> None:
        """One line on standard error and in log.txt."""
        self.log.append(f"{_now()} {text}")
        print(text, file=sys.stderr, flush=True)


def run_bench(plan: BenchPlan) -> FinishedRun:
    """Measure and write the record; the failure of a run is in its record, not raised.

    Errors: `PreflightError` before anything is measured when the disk has no room for the record, and when it
    cannot be written, with the file that keeps the samples then. A bug keeps its own exception, after its
    record.
    """
    started = _now()
    folder = plan.results / "v1" / plan.host / plan.profile.id
    journal = Journal(folder, run_id(started, plan.release), record_bytes(plan.profile))
    evidence = _Evidence(journal=journal)
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
    journal.release()
    try:
        path = write_run(record, plan.results, evidence.log)
    except PreflightError as error:
        raise PreflightError(f"{error}; {journal.samples} samples are kept in {journal.path}") from None
    journal.remove()
    if bug is not None:
        raise bug
    return FinishedRun(record=record, path=path)


async def _measure(plan: BenchPlan, evidence: _Evidence) -> None:
    profile = plan.profile
    evidence.service = read_service(plan.service_file)
    tokenizer = _open_baseline(plan, evidence) if plan.pack is None else _open_pack(plan, plan.pack, evidence)
    evidence.prompts = profile_prompts(open_tokenizer(tokenizer), profile)
    token = read_token(plan.token_file).decode() if plan.token_file is not None else None
    clock = clock_since_now()
    async with CompletionClient(plan.url, token, plan.settings, clock, evidence.keep) as client:
        model = await client.model() if evidence.baseline is None else str(evidence.service["model"])
        send = _sender(plan, client, model, evidence)
        for turn in range(profile.warmup_requests):
            _require_warm(await _round(send, evidence, "warmup", turn, profile))
        evidence.before = read_host_state()
        if profile.arrivals.is_open:
            await _open_loop(send, evidence, profile, clock)
        else:
            await _rounds(send, evidence, profile)
        evidence.after = read_host_state()


def _open_baseline(plan: BenchPlan, evidence: _Evidence) -> Path:
    """The folder with the tokenizer of a baseline's checkpoint. Errors: `UsageError`, `ContractError`."""
    evidence.baseline = baseline_of(evidence.service)
    evidence.backend = baseline_backend(evidence.service)
    if plan.tokenizer is None:
        raise UsageError("without --pack a --tokenizer is needed: the folder of the baseline's checkpoint")
    if plan.prompt_form not in DIALECTS[evidence.baseline.dialect].prompt_forms:
        raise UsageError(
            f"--prompt {plan.prompt_form}: {evidence.baseline.system} takes no such prompts; use text"
        )
    evidence.say(f"measuring {evidence.backend.name}, {evidence.baseline.as_run}")
    return plan.tokenizer


def _open_pack(plan: BenchPlan, path: Path, evidence: _Evidence) -> Path:
    """The folder with the tokenizer of our own pack, which is opened and held against the service."""
    profile = plan.profile
    evidence.backend = backend_of(evidence.service)
    evidence.say(f"opening pack {path.name} and verifying its LOCK")
    pack = open_pack(path, verify=True)
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
            split_k=served_split_k(evidence.service),
            release=plan.release,
            host=plan.host_facts["host"],
        )
        evidence.stale = why_stale(found, evidence.service)
        evidence.in_process = None if evidence.stale else found
        if evidence.stale:
            evidence.say(f"not used, {plan.in_process.name}: {evidence.stale}")
    return pack.tokenizer_dir


class Send(Protocol):
    """Sends one request now."""

    def __call__(
        self, phase: Phase, stream: int, turn: int, scheduled_ns: int | None = None
    ) -> asyncio.Future[Sample]: ...


def _sender(plan: BenchPlan, client: CompletionClient, model: str, evidence: _Evidence) -> Send:
    dialect = VLLM if evidence.baseline is None else DIALECTS[evidence.baseline.dialect]

    def send(phase: Phase, stream: int, turn: int, scheduled_ns: int | None = None) -> asyncio.Future[Sample]:
        request = CompletionRequest(
            model=model,
            prompt=evidence.prompts[phase, stream, turn],
            prompt_form=plan.prompt_form,
            max_new_tokens=plan.profile.decode_tokens,
            phase=phase,
            stream=stream,
            round=turn,
            dialect=dialect,
            scheduled_ns=scheduled_ns,
        )
        return asyncio.ensure_future(client.complete(request))

    return send


async def _rounds(send: Send, evidence: _Evidence, profile: BenchProfile) -> None:
    for turn in range(profile.requests):
        found = await _round(send, evidence, "measured", turn, profile)
        counted = [sample for sample in found if profile.in_rounds_of_batch or not sample.refused]
        if any(sample.error for sample in counted):
            break  # the run is unfair already; the rest would only cost time


async def _open_loop(
    send: Send, evidence: _Evidence, profile: BenchProfile, clock: Callable[[], int]
) -> None:
    def due(stream: int, turn: int, scheduled_ns: int) -> asyncio.Future[Sample]:
        return send("measured", stream, turn, scheduled_ns)

    evidence.say(f"open loop of {profile.clients * profile.requests} requests, {profile.load}")
    found = await send_on_schedule(profile, due, clock)
    _say_errors(evidence, found)
    refused = sum(sample.refused for sample in found)
    evidence.say(f"{len(found)} requests sent, {refused} refused")


async def _round(
    send: Send, evidence: _Evidence, phase: Phase, turn: int, profile: BenchProfile
) -> Sequence[Sample]:
    """All streams send at once, and the next round waits: every token is made at the full batch."""
    found = await asyncio.gather(*(send(phase, stream, turn) for stream in range(profile.clients)))
    seconds = (max(s.end_ns for s in found) - min(s.sent_ns for s in found)) / 1e9
    tokens = sum(sample.usage_completion_tokens or 0 for sample in found)
    evidence.say(f"{phase} round {turn}: {tokens} tokens in {seconds:.3f} s, {tokens / seconds:.1f} tokens/s")
    _say_errors(evidence, found)
    return found


def _say_errors(evidence: _Evidence, found: Sequence[Sample]) -> None:
    for sample in found:
        if sample.error is not None:
            evidence.say(f"{sample.name}: {sample.error}")


def _require_warm(samples: Sequence[Sample]) -> None:
    answered = any(sample.error is None for sample in samples)
    for sample in samples:
        if sample.error is not None and not (sample.refused and answered):
            kind = NotReadyError if sample.http_status in (None, 503) else InvalidRunError
            raise kind(f"{sample.name}: {sample.error}; see the service's log")


def _record(plan: BenchPlan, evidence: _Evidence, started: str, failure: Failure | None) -> RunRecord:
    before, after = evidence.before, evidence.after
    samples = sorted(evidence.samples, key=_place)  # they came as they ended
    throttled = throttle_reasons(before, after) if before and after else ()
    fairness = judge_fairness(plan.contract, plan.profile, samples)
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
        metrics=run_metrics(plan.contract, plan.profile, samples, _measured_gbs(evidence)),
        command=plan.command,
        prompts=tuple(prompt.record(*place) for place, prompt in evidence.prompts.items()),
        samples=tuple(samples),
        in_process=evidence.in_process,
        no_in_process=_no_in_process(plan, evidence),
        peer=evidence.baseline,
        prompt_form=plan.prompt_form,
        load=load_metrics(plan.profile, samples),
    )


def _place(sample: Sample) -> tuple[bool, int, int]:
    """Warm-ups first, then by round and stream."""
    return sample.phase == "measured", sample.round, sample.stream


def _measured_gbs(evidence: _Evidence) -> float | None:
    """What reading alone reached, unless so little was read that a cache may have answered."""
    found = evidence.in_process.read_bandwidth if evidence.in_process else None
    return found.gbs if found is not None and found.beyond_caches else None


def _no_in_process(plan: BenchPlan, evidence: _Evidence) -> str | None:
    """Why the record has no figure measured in process, if it has none."""
    if evidence.in_process is not None or evidence.baseline is not None:
        return None
    return evidence.stale or plan.no_in_process or "the run ended before it was read"


def _label(plan: BenchPlan, evidence: _Evidence, fairness: FairnessVerdict, status: Status) -> LabelVerdict:
    if evidence.baseline is not None:
        return LabelVerdict(label="exploratory", reasons=("a peer's run; the claim is a comparison's",))
    if evidence.pack is None:
        return LabelVerdict(label="exploratory", reasons=("no pack was opened",))
    facts = LabelFacts(
        overridden=plan.overridden,
        weights=evidence.pack.weights,
        source_matches=evidence.pack.source_matches,
        lock_verified=evidence.pack.lock_verified,
        fair=fairness.fair,
        uncleared=is_uncleared(evidence.service),
        options=backend_of(evidence.service).options,
    )
    verdict = compute_label(plan.contract, plan.profile, facts)
    if status != "ok" and verdict.label == "fixed-contract":
        return LabelVerdict(label="exploratory", reasons=(f"the run is {status}",))
    return verdict


def _failure(error: LeanError) -> Failure:
    return Failure(kind=type(error).__name__, message=str(error), exit_code=error.exit_code)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

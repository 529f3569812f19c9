"""report.md, from a run record alone: the same record always gives the same bytes. Standard library only."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from lean.bench.host_state import HostState
from lean.bench.metrics import request_metrics
from lean.bench.record import RunRecord
from lean.bench.shown_run import invalid_reasons, metric_rows, run_facts
from lean.in_process import InProcess
from lean.markdown import cell, number, plain, table

_LABELS = {
    "fixed-contract": "An official, unchanged contract, a verified pack of its checkpoint, a fair run.",
    "exploratory": "Something differs from an official, unchanged contract, so this is no claim. Reasons:",
}
_DEFINITIONS = """\
- **TTFT**: request sent until the first chunk with a token arrived. **E2E**: until the last such chunk.
- **TPOT**: (E2E − TTFT) / (tokens − 1). **ITL**: gap between arrivals of tokens, pooled over all requests; a
  chunk of k tokens counts as k gaps, each a k-th.
- **generated tokens/s, all streams**: tokens of a round over the time from its first send to its last token.
- **read bandwidth**: the least bytes a decode step reads (every weight once per batch, the key-value cache of
  every stream at its mean length; contract's encoding) over TPOT.
- **since it was due**: from when an open loop was to send the request, not from when it did. Window: from
  the first request due to the last token of any; goodput: answered in full and within the profile's limits.
- std is the sample standard deviation; percentiles interpolate linearly. Warm-up requests do not count."""
_FILES = (
    ("run.json", "everything: this page and the plot are made from it alone"),
    ("samples.jsonl", "one request per line with every arrival time, the same samples as in run.json"),
    ("env.json", "interpreter, packages and the settings of the measuring process"),
    ("plot.png", "token gaps, their distribution, and every request's TTFT and rate"),
    ("log.txt", "what the measuring program said while it ran"),
    ("SHA256SUMS", "hashes of run.json, env.json, samples.jsonl and log.txt: `sha256sum -c SHA256SUMS`"),
)


def render_report(record: RunRecord) -> str:
    """The page for one run. Times in it are of the client beside the service, over loopback HTTP."""
    parts = [
        f"# {cell(record.profile.id)} on {record.host}: {_headline(record)}",
        _introduction(record),
        "\n".join(_verdict(record)),
        "## What ran\n\n" + table(("", ""), run_facts(record)),
        "\n".join(_numbers(record)),
        *_in_process(record),
        "## Fairness gate\n\n" + table(("rule", "kept", "detail"), _fairness(record)),
        "\n".join(_machine(record)),
        "## Every request\n\n"
        + table(
            ("line", "request", "TTFT ms", "TPOT ms", "E2E ms", "tokens", "end", "ids sha256"),
            _requests(record),
        )
        + "\n\n`line` is the line in samples.jsonl.",
        "## Files\n\n" + "\n".join(f"- `{name}`: {meaning}" for name, meaning in _FILES),
        _again(record),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(record: RunRecord) -> str:
    rate = record.metrics.tokens_per_s
    if record.status == "failed" or rate is None:
        return "no numbers, the run failed" if record.status == "failed" else "no numbers"
    return f"{number(rate.median)} tokens/s, {record.label}" + (
        ", INVALID" if record.status == "invalid" else ""
    )


def _introduction(record: RunRecord) -> str:
    p = record.profile
    if p.arrivals.is_open:
        streams, together = f"An open loop of {p.load}", "A request is sent when it is due, answered or not."
    else:
        streams = "One stream" if p.clients == 1 else f"{p.clients} streams at once, each"
        together = "All streams start a round together."
    return (
        f"{streams} sent prompts of exactly {p.prompt_tokens} tokens to a resident service and took exactly "
        f"{p.decode_tokens} tokens back, decoded greedily, end-of-sequence ignored, over streaming HTTP on "
        f"the same machine. {together} {p.warmup_requests} warm-up and {p.requests} "
        "measured rounds; no two prompts are the same."
    )


def _verdict(record: RunRecord) -> Iterator[str]:
    yield "## Does it count?\n"
    reasons = invalid_reasons(record)
    counts = {"ok": "Yes: it ran to its end, fairly, on a machine that was not throttled."}
    yield counts.get(record.status, f"**No, the run is {record.status}:**\n") + "\n"
    yield from (f"- {cell(reason)}" for reason in reasons)
    if reasons:
        yield ""
    yield f"Label: **{record.label}**. {_LABELS[record.label]}"
    if record.label_reasons:
        yield ""
        yield from (f"- {cell(reason)}" for reason in record.label_reasons)


def _numbers(record: RunRecord) -> Iterator[str]:
    yield "## Numbers\n"
    rows = [
        (
            f"{row.name} ({row.unit})",
            *map(number, (v.median, v.mean)),
            "" if v.std is None else number(v.std),
            *map(number, (v.p95, v.p99, v.minimum, v.maximum)),
            str(v.count),
        )
        for row in metric_rows(record)
        for v in (row.values,)
    ]
    yield table(("", "median", "mean", "std", "p95", "p99", "min", "max", "n"), rows) if rows else "None."
    if record.metrics.bytes_per_step is not None:
        yield f"\nA decode step of this profile reads at least {record.metrics.bytes_per_step / 1e9:.4f} GB."
    yield f"\n{_DEFINITIONS}"
    if rows:
        yield "\n![token gaps, their distribution, TTFT and rate of every request](plot.png)"


def _in_process(record: RunRecord) -> Iterator[str]:
    """The section about the same traffic without HTTP; none for records that do not know of it."""
    found, m = record.in_process, record.metrics
    if found is None:
        if record.no_in_process is not None:
            yield f"## HTTP and in process\n\nNot measured in process: {cell(record.no_in_process)}."
        return
    pairs = (
        ("generated tokens/s, all streams", m.tokens_per_s, 1.0, found.tokens_per_second),
        ("time to first token (ms)", m.ttft_s, 1e3, found.first_token_ms),
        ("time per token (ms)", m.tpot_s, 1e3, found.step_ms),
    )
    rows = [
        (name, number(http.median * scale), number(inside), f"{http.median * scale / inside:.3f}")
        for name, http, scale, inside in pairs
        if http is not None
    ]
    yield "\n\n".join(
        (
            "## HTTP and in process",
            "The same profile on the runner alone, before the service started: medians, and HTTP over it.",
            table(("", "over HTTP", "in process", "ratio"), rows),
            *_kernels(found),
        )
    )


def _kernels(found: InProcess) -> Iterator[str]:
    """What reading alone reached, and each kernel of a step beside it."""
    bandwidth = found.read_bandwidth
    if bandwidth is None or found.kernels is None:
        return
    yield (
        f"Reading alone, {bandwidth.read_bytes / 1e9:.3f} GB of the weights a pass, reached "
        f"**{number(bandwidth.gbs)} GB/s** (median of {len(bandwidth.seconds)} samples of "
        f"{bandwidth.replays} passes)." + ("" if bandwidth.beyond_caches else _IN_CACHE)
    )
    rows = [
        (
            kernel.kernel + (" (swept)" if kernel.swept else ""),
            str(kernel.launches),
            f"{kernel.read_bytes / 1e6:.3f}",
            number(kernel.step_s * 1e6),
            "" if kernel.gbs is None else number(kernel.gbs),
            "" if kernel.share is None else f"{kernel.share:.1%}",
        )
        for kernel in found.kernels
    ]
    yield table(("kernel", "launches a step", "MB read a step", "µs a step", "GB/s", "of reading"), rows)
    yield (
        "Each kernel's launches of one step by themselves, replayed as a graph. It reads weights and cached "
        "keys and values; where those would stay in a cache, it was swept before each step, with "
        f"{_sweep(found)}, and the sweep's own time taken off."
    )


_IN_CACHE = (
    " So little fits into a cache: no measure of the memory, and whole steps find their weights there too."
)


def _sweep(found: InProcess) -> str:
    """What the caches were filled with between the steps of one kernel."""
    if found.sweep_bytes is None:
        return "the first of the weights"
    return f"{found.sweep_bytes / 1e6:.0f} MB that hold nothing of the model"


def _fairness(record: RunRecord) -> list[tuple[str, ...]]:
    return [
        (check.rule, "yes" if check.passed else "**NO**", check.detail) for check in record.fairness.checks
    ]


def _machine(record: RunRecord) -> Iterator[str]:
    yield "## The machine before and after\n"
    before, after = record.state_before, record.state_after
    if before is None:
        yield "Not read: the run ended before it."
        return
    rows = {name: (value, "") for name, value in _state(before)}
    for name, value in _state(after) if after else ():
        rows[name] = (rows.get(name, ("", ""))[0], value)
    yield table(("", "before", "after"), [(name, *values) for name, values in rows.items()])
    yield ""
    yield from (f"- {cell(line)}" for line in (*record.throttled, *record.notes))
    if not record.throttled and after is not None:
        yield "- no counter that could be read shows throttling"


def _state(state: HostState) -> Iterator[tuple[str, str]]:
    yield "read at", state.at_utc
    if state.cpu_mhz_mean is not None and state.cpu_mhz_min is not None:
        yield "CPU clock, slowest / mean (MHz)", f"{number(state.cpu_mhz_min)} / {number(state.cpu_mhz_mean)}"
    if state.load_1min is not None:
        yield "load average, 1 min", number(state.load_1min)
    if state.throttle_counts:
        yield "CPU throttle events since boot", str(sum(state.throttle_counts.values()))
    for index, gpu in enumerate(state.gpus):
        clocks = (gpu.sm_clock_mhz, gpu.max_sm_clock_mhz, gpu.memory_clock_mhz)
        yield f"GPU {index}", gpu.name
        yield f"GPU {index} SM / max SM / memory clock (MHz)", " / ".join(_known(clock) for clock in clocks)
        yield (
            f"GPU {index} temperature (°C), power (W)",
            f"{_known(gpu.temperature_c)}, {_known(gpu.power_w)}",
        )
        reasons = "not reported" if gpu.event_reasons is None else f"{gpu.event_reasons:#x}"
        yield f"GPU {index} clock event reasons", reasons
        yield f"GPU {index} memory in use (MiB)", _known(gpu.memory_used_mib)


def _known(value: float | None) -> str:
    return "not reported" if value is None else number(value)


def _requests(record: RunRecord) -> Iterator[tuple[str, ...]]:
    for line, sample in enumerate(record.samples, start=1):
        m = request_metrics(sample)
        times = [number(seconds * 1e3) for seconds in (m.ttft_s, m.tpot_s, m.e2e_s)] if m else ["", "", ""]
        yield (
            str(line),
            f"{sample.phase} {sample.round}, stream {sample.stream}",
            *times,
            "?" if sample.usage_completion_tokens is None else str(sample.usage_completion_tokens),
            sample.error or sample.finish_reason or "no finish reason",
            (sample.token_ids_sha256 or "")[:12],
        )


def _again(record: RunRecord) -> str:
    checkout = f"git checkout {record.release.git_sha}"
    if record.release.dirty:
        checkout += f"   # plus an uncommitted diff, sha256 {record.release.diff_sha256}"
    return (
        f"## Run it again\n\n```\n{checkout}\n"
        f"invoke remote.bench --host {record.host} --profile {record.profile.id}\n```\n\n"
        f"The measuring program was called as\n\n```\n{' '.join(map(_word, record.command))}\n```\n\n"
        "This page and the plot again from run.json:\n\n"
        "```\npython -m lean.bench report RUN_DIRECTORY --out NEW_DIRECTORY\n```"
    )


def _word(word: str) -> str:
    """One word for a shell; a leading `~/` stays open to expansion."""
    open_part = "~/" if word.startswith("~/") else ""
    return plain(open_part + shlex.quote(word.removeprefix(open_part)))


def write_report(record: RunRecord, folder: Path) -> None:
    """Write report.md into `folder`."""
    (folder / "report.md").write_text(render_report(record), encoding="utf-8")

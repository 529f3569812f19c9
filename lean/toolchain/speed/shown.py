"""Records of the hot-kernel bench and of the search for tiles as tables. Standard library only."""

from __future__ import annotations

from typing import Any

from lean.toolchain.shown import Record, Shown


def kernels_tables(record: Record) -> tuple[Shown, ...]:
    """A row for each operation and number of rows, and what was not timed, where there is any."""
    timed = Shown(
        title="microseconds of one operation",
        columns=(
            "operation",
            "M",
            "median",
            "min",
            "max",
            "GB/s",
            "TFLOP/s",
            "bound",
            "% of it",
            "error",
            "torch",
            "torch / ours",
        ),
        rows=tuple(_timed(found) for found in record["operations"] if found["status"] == "measured"),
    )
    untimed = Shown(
        title="",
        columns=("not timed", "M", "why"),
        rows=tuple(
            (found["operation"], str(found["rows"]), str(found["reason"]))
            for found in record["operations"]
            if found["status"] != "measured"
        ),
    )
    return tuple(table for table in (timed, untimed) if table.rows)


def kernels_lines(record: Record) -> tuple[str, ...]:
    """The limits, what torch could not do, and what there is no row for."""
    reading, rate = record["limits"]["read_bandwidth"], record["limits"]["matrix_rate"]
    read = f"{reading['gbs']:.0f} GB/s" if "gbs" in reading else f"missing: {reading['reason']}"
    product = f"{rate['tflops']:.0f} TFLOP/s" if "tflops" in rate else f"missing: {rate['reason']}"
    lines = [f"limits measured in this run: reading {read}, bf16 products {product}"]
    for reason in dict.fromkeys(
        found["torch"]["reason"] for found in record["operations"] if "reason" in found["torch"]
    ):
        count = sum(found["torch"].get("reason") == reason for found in record["operations"])
        lines.append(f"torch, {count} operations: {reason}")
    lines += [f"{name}: {why}" for name, why in record["not_applicable"].items()]
    return tuple(lines)


def tune_tables(record: Record) -> tuple[Shown, ...]:
    """A row for each kernel with its winner, and what became of the candidates that did not pass."""
    chosen = Shown(
        title="microseconds of one launch",
        columns=("kernel", "shape", "before", "now", "tile", "tried", "passed"),
        rows=tuple(_searched(kernel) for kernel in record["kernels"]),
    )
    counts: dict[tuple[str, str, str], int] = {}
    for kernel in record["kernels"]:
        for found in kernel["candidates"]:
            if found["status"] != "passed":
                about = (kernel["kernel"], str(found["status"]), str(found["reason"])[:120])
                counts[about] = counts.get(about, 0) + 1
    failed = Shown(
        title="",
        columns=("kernel", "candidates", "", "why"),
        rows=tuple((kernel, str(count), status, why) for (kernel, status, why), count in counts.items()),
    )
    return tuple(table for table in (chosen, failed) if table.rows)


def _searched(kernel: Record) -> tuple[str, ...]:
    before, now = kernel["before_us"], kernel["us"]
    tile = " ".join(f"{name}={value}" for name, value in (kernel["winner"] or {}).items())
    if kernel.get("kept"):
        tile = kernel["kept"]
    return (
        str(kernel["kernel"]),
        " ".join(map(str, kernel["shape"])),
        "-" if before is None else f"{before:.2f}",
        "-" if now is None else f"{now:.2f}",
        (tile or "-") if kernel["changed"] else f"{tile or 'by rule'} (as before)",
        str(len(kernel["candidates"])),
        str(sum(found["status"] == "passed" for found in kernel["candidates"])),
    )


def _timed(found: Record) -> tuple[str, ...]:
    peer: dict[str, Any] = found["torch"]
    share = found["percent_of_bound"]
    error, ratio = found["error"], found["ratio"]
    return (
        found["operation"],
        str(found["rows"]),
        *(f"{found[name]:.2f}" for name in ("median_us", "min_us", "max_us")),
        f"{found['gbs']:.0f}",
        f"{found['tflops']:.2f}",
        found["bound"] or "-",
        "-" if share is None else f"{share:.0f}",
        "-" if error is None else f"{error:.0e}",
        f"{peer['median_us']:.2f}" if "median_us" in peer else "-",
        "-" if ratio is None else f"{ratio:.2f}",
    )

"""Records of the gate and of the portability matrix as tables, for a terminal and for a page alike.

Standard library only: the laptop reads records with it too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lean.markdown import table

Record = Mapping[str, Any]
KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One table: cells are text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def gate_tables(record: Record) -> tuple[Shown, ...]:
    """A table of each chip's statuses, then what was blocked, and what changed, where there is any."""
    chips = tuple(_statuses(record, target) for target in record["targets"])
    return tuple(table for table in (*chips, _blocked(record), _changed(record)) if table.rows)


def gate_lines(record: Record) -> tuple[str, ...]:
    """Why what compiled did not run, and what to start from on each chip."""
    unrun: dict[str, list[str]] = {}
    for cell in record["cells"]:
        if cell["status"] == "compile-only":
            unrun.setdefault(cell["why"], []).append(cell["target"])
    lines = []
    for why, targets in unrun.items():
        counts = ", ".join(f"{count} of {target}" for target, count in Counter(targets).items())
        lines.append(f"compile-only, {counts}: {why}")
    for target, advice in record["recommended"].items():
        lines.append(f"{target}: start from {advice['primary'] or 'nothing'}; {advice['why']}")
        if advice["fewer_bytes"]:
            ways: dict[str, list[str]] = {}
            for way in advice["fewer_bytes"]:
                ways.setdefault(way["precision"], []).append(way["route"])
            fewer = "; ".join(f"{precision} by {', '.join(routes)}" for precision, routes in ways.items())
            lines.append(f"{target}: open to fewer bytes a weight: {fewer}")
    return tuple(lines)


def portability_tables(document: Record) -> tuple[Shown, ...]:
    """A row to each chip, the kernels by chips, and what did not come out well, where there is any."""
    chips = Shown(
        title="",
        columns=(
            "chip",
            "tiles",
            "fit",
            "spill",
            "refused",
            "lost",
            "registers",
            "shared KiB",
            "matrix",
            "loads",
        ),
        rows=tuple(_chip(chip) for chip in document["targets"]),
    )
    limits = {chip["target"]: chip["shared_limit"] for chip in document["targets"]}
    kernels = Shown(
        title="registers; s: they spill; m: too much shared memory; no: refused; lost: the compiler died",
        columns=("kernel", *limits),
        rows=tuple(
            (
                row["kernel"],
                *(_registers(row["cells"].get(target), limit) for target, limit in limits.items()),
            )
            for row in document["kernels"]
        ),
    )
    return tuple(table for table in (chips, kernels, unwell(document)) if table.rows)


def unwell(document: Record) -> Shown:
    """The kernels that are not ok, those with the same trouble on the same chips together."""
    chips: dict[tuple[str, str, str], list[str]] = {}
    for row in document["kernels"]:
        for target, cell in row["cells"].items():
            if cell["status"] != "ok":
                about = (row["kernel"], cell["status"], _words(cell["why"]))
                chips.setdefault(about, []).append(target)
    kernels: dict[tuple[str, str, str], list[str]] = {}
    for (kernel, status, why), targets in chips.items():
        kernels.setdefault((", ".join(targets), status, why), []).append(kernel)
    return Shown(
        title="",
        columns=("kernels", "chips", "", "why"),
        rows=tuple((", ".join(names), *about) for about, names in kernels.items()),
    )


def figure_line(document: Record) -> str:
    """The retargeting figure in one sentence."""
    figure = document["figure"]
    return (
        f"{figure['files_that_compile_everywhere']} of {figure['files']} kernel sources "
        f"({figure['functions_that_compile_everywhere']} of {figure['functions']} kernel functions) compile "
        f"unchanged for all {figure['chips']} chips; {figure['files_that_fit_everywhere']} "
        f"({figure['functions_that_fit_everywhere']}) also fit each of them: no register spills, no more "
        "shared memory than a block has"
    )


def _statuses(record: Record, target: str) -> Shown:
    cells = {(c["precision"], c["route"]): c for c in record["cells"] if c["target"] == target}
    asked = tuple(dict.fromkeys(route for _, route in cells))
    left_out = tuple(entry["route"] for entry in record["not_applicable"])
    routes = tuple(route for route in dict.fromkeys((*asked, *left_out)) if route in asked)
    return Shown(
        title=f"{target}; a number is the error, relative to the norm",
        columns=("precision", *routes),
        rows=tuple(
            (precision, *(_status(cells.get((precision, route))) for route in routes))
            for precision in dict.fromkeys(precision for precision, _ in cells)
        ),
    )


def _status(cell: Record | None) -> str:
    if cell is None:
        return "-"
    limits = cell.get("limits") or {}
    norm = limits.get("norm")
    return str(cell["status"]) if norm is None else f"{cell['status']} {norm:.0e}"


def _blocked(record: Record) -> Shown:
    """What is blocked, by the first line of the reason; the record has all of it."""
    chips: dict[tuple[str, str], list[str]] = {}
    for cell in record["cells"]:
        if cell["status"] == "blocked":
            about = (f"{cell['precision']} {cell['route']}", _words(cell["why"]))
            chips.setdefault(about, []).append(cell["target"])
    by_reason: dict[tuple[str, str], list[str]] = {}
    for (name, why), targets in chips.items():
        by_reason.setdefault((" ".join(targets), why), []).append(name)
    return Shown(
        title="",
        columns=("blocked", "chips", "why"),
        rows=tuple((", ".join(names), *about) for about, names in by_reason.items()),
    )


def _changed(record: Record) -> Shown:
    changes = record["changes"]
    if changes["previous"] is None:
        return Shown(title="", columns=(), rows=())
    tools = [(name, str(before), str(now)) for name, (before, now) in changes["tools"].items()]
    gpu = [("GPU", *(str(device or "none") for device in changes["gpu"]))] if changes["gpu"] else []
    cells = [
        (
            f"{c['target']} {c['precision']} {c['route']}",
            c["before"],
            f"{c['after']} {_words(c['why'])}".rstrip(),
        )
        for c in changes["cells"]
    ]
    sources = [(f"{len(changes['sources'])} sources", "", "changed")] if changes["sources"] else []
    rows = (*tools, *gpu, *sources, *cells)
    return Shown(
        title=f"since run {changes['previous']}",
        columns=("", "before", "now"),
        rows=rows or (("versions, GPU, sources, statuses", "", "unchanged"),),
    )


def _chip(chip: Record) -> tuple[str, ...]:
    most = chip["most_shared_bytes"]
    shared = "-" if most is None else f"{most / KIB:.0f}/{chip['shared_limit'] / KIB:.0f}"
    counts = (str(chip[name]) for name in ("ok", "spilling", "refused", "lost"))
    kinds = (" ".join(chip[name]) or "-" for name in ("matrix", "loads"))
    registers = chip["most_registers"]
    return (
        chip["target"],
        chip["tiles"].split()[0],
        *counts,
        "-" if registers is None else str(registers),
        shared,
        *kinds,
    )


def _registers(cell: Record | None, shared_limit: int) -> str:
    if cell is None:
        return "-"
    if cell["status"] in ("refused", "lost"):
        return "no" if cell["status"] == "refused" else "lost"
    spills = "s" if cell["spill_stores"] or cell["spill_loads"] else ""
    return f"{cell['registers']}{spills}{'m' if cell['shared_bytes'] > shared_limit else ''}"


def _words(why: str) -> str:
    """The first line, without our own words before those of the front end."""
    return re.sub(r"^the cuTile front end refused the kernel for sm_\w+: ", "front end: ", _first_line(why))


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def markdown(shown: Shown) -> str:
    """The table in Markdown, its title before it."""
    return (f"{shown.title}\n\n" if shown.title else "") + table(shown.columns, shown.rows) + "\n"

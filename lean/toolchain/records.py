"""Records of toolchain verbs kept with the repository, each with its page, and what the docs say of them.

They lie in `results/v1/<host>/gate/<run>-<sha7>[-dirty]/gate.json`, and likewise `portability`,
`kernels` and `tune`. A record names the sources that it holds for by their SHA-256, and is never rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lean.errors import UsageError
from lean.toolchain.keeping import Kept, kept_now, write_whole
from lean.toolchain.shown import (
    figure_line,
    gate_lines,
    gate_tables,
    markdown,
    portability_tables,
    unwell,
)
from lean.toolchain.speed.shown import kernels_lines, kernels_tables, tune_tables
from lean.toolchain.tune.choice import check_replaces, merged, write_tuning
from lean.toolchain.tune.plan import read_tuning

KINDS = {"gate/v1": "gate", "portability/v1": "portability", "kernel-bench/v1": "kernels", "tune/v1": "tune"}
TUNING = Path("kernels") / "tuning"
RETARGETING = Path("docs") / "retargeting.md"
BEGIN, END = "<!-- generated: portability -->", "<!-- end -->"


def kept_kind(document: Path) -> str | None:
    """`gate`, `portability`, `kernels` or `tune`, if `document` is a record of one of them."""
    try:
        return KINDS.get(json.loads(document.read_bytes())["schema"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(document: Path, *, host: str, root: Path) -> dict[str, Any]:
    """Keep a gate's, a portability matrix's, a bench's or a search's document below `root`, a git checkout.

    The newest portability matrix of all chips also goes into docs/retargeting.md, and what a search for
    tiles chose into kernels/tuning. Errors: `UsageError` for a bad host name, a document of a part only, or
    one that is kept already; `IntegrityError` when a source, or a tile that was to be replaced, is no longer
    what the document is about; `PreflightError` when git does not answer.
    """
    try:
        return _keep(document, host, root)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--probe: {document}: not a whole record: {type(error).__name__}: {error}; give the document as "
            "its verb wrote it"
        ) from None


def _keep(document: Path, host: str, root: Path) -> dict[str, Any]:
    record = json.loads(document.read_bytes())
    kind = KINDS[record["schema"]]
    if not record["whole"]:
        raise UsageError(f"--probe: {document}: covers a part only; a record is kept of the whole {kind}")
    otherwise = f"is not what this {kind} is about; run it again, then keep that"
    kept = kept_now(root, host, record["sources"], otherwise)
    if kind == "tune":
        tuning = read_tuning(record["target"], root / TUNING)
        check_replaces(tuning, record["entries"], f"{TUNING}/{record['target']}.json")
    record["kept"] = asdict(kept)
    folder = kept.folder(kind, record["run"])
    pages = {"gate": gate_page, "portability": portability_page, "kernels": kernels_page, "tune": tune_page}
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    page = pages[kind](record)
    done: dict[str, Any] = {"record": (folder / f"{kind}.json").as_posix(), "dirty": kept.dirty}
    if kind == "tune" and record["entries"]:  # before its record: a keep that was cut short can be done again
        file = TUNING / f"{record['target']}.json"
        write_tuning(root / file, merged(tuning, record["entries"]))
        done["tuning"] = file.as_posix()
    if kind == "tune" and _holds(root / done["record"], text):
        return done
    write_whole(root / folder, {f"{kind}.json": text, "report.md": page})
    if kind == "portability":
        _write_figure(root / RETARGETING, record)
    return done


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def gate_page(record: Mapping[str, Any]) -> str:
    """A gate for people, in Markdown."""
    head = f"# Precision gate, {record['started']}\n\n{_with_what(record)} {_gpu(record)}\n"
    lines = "".join(f"- {line}\n" for line in gate_lines(record))
    return "\n".join([head, *(markdown(table) for table in gate_tables(record)), lines])


def portability_page(record: Mapping[str, Any]) -> str:
    """A portability matrix for people, in Markdown."""
    head = f"# Portability, {record['started']}\n\n{_with_what(record)} Geometry {record['sizes']}.\n"
    tables = (markdown(table) for table in portability_tables(record))
    return "\n".join([head, f"{figure_line(record)}.\n", *tables])


def kernels_page(record: Mapping[str, Any]) -> str:
    """A hot-kernel bench for people, in Markdown."""
    contract, gpu = record["contract"]["id"], record["gpu"]["name"]
    head = f"# Hot kernels of {contract}, {record['started']}\n\n{_with_what(record)} Ran on {gpu}.\n"
    tables = (markdown(table) for table in kernels_tables(record))
    lines = "".join(f"- {line}\n" for line in kernels_lines(record))
    return "\n".join([head, *tables, lines, f"{record['about']}\n"])


def tune_page(record: Mapping[str, Any]) -> str:
    """A search for tiles for people, in Markdown."""
    kept = record["kept"]
    code = f"{kept['git_sha'][:7]}{', dirty' if kept['dirty'] else ''}"
    where = f"Host {kept['host']}, code {code}, {record['gpu']['name']}; {record['seconds']:.0f} s."
    head = f"# Tiles for {record['target']}, {record['contract']['id']}, {record['started']}\n\n{where}\n"
    tables = (markdown(table) for table in tune_tables(record))
    return "\n".join([head, *tables, f"{record['about']}\n"])


def figure_block(record: Mapping[str, Any]) -> str:
    """What docs/retargeting.md says of a kept portability matrix, marks included."""
    name = Kept(**record["kept"]).folder("portability", record["run"]).as_posix()
    chips, *_ = portability_tables(record)
    trouble = unwell(record)
    parts = [
        f"**{figure_line(record)}.** Geometry {record['sizes']}, {len(record['kernels'])} kernels a chip, "
        f"{record['distinct']} compiled in all; cuda-tile {record['tools']['cuda-tile']}, tileiras "
        f"{record['tools']['tileiras']}; `{name}/portability.json`. No chip was at hand: this is "
        "what the compiler makes of the sources, not what runs.\n",
        markdown(chips),
        *([f"What does not fit:\n\n{markdown(trouble)}"] if trouble.rows else []),
    ]
    return "\n".join([BEGIN, "", *parts, END])


def _write_figure(page: Path, record: Mapping[str, Any]) -> None:
    """Replace the block between the marks. A page without marks is somebody else's and stays as it is."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if begin and end:
        page.write_text(f"{head}{figure_block(record)}{tail}", encoding="utf-8")


def _with_what(record: Mapping[str, Any]) -> str:
    kept = record["kept"]
    tools = ", ".join(f"{name} {version}" for name, version in record["tools"].items())
    code = f"{kept['git_sha'][:7]}{', dirty' if kept['dirty'] else ''}"
    return f"Host {kept['host']}, code {code}, {tools}; {record['seconds']:.0f} s."


def _gpu(record: Mapping[str, Any]) -> str:
    device = record["gpu"].get("device")
    where = (
        ""
        if record["compiled_by"]["here"]
        else f" Compiled elsewhere, in run {record['compiled_by']['run']}."
    )
    return (f"Ran on {device['name']}." if device else "Nothing ran.") + where

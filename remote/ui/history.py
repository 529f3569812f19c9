"""The runs of the results folder: pages of a table, series for charts, one run in full, its plot."""

from __future__ import annotations

import asyncio
import contextlib
import re
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lean.bench.results import VERSION, RunList, list_runs
from lean.bench.run_row import OURS, RunRow
from lean.bench.shown_run import show_run
from lean.errors import NotReadyError, UsageError
from remote.ui.desk import ENDING

PAGE = 50  # rows of the table at once
SERIES = 24  # charts at once, those with the newest runs
POINTS = 120  # of one chart, the newest
_BROKEN = 20
_FILE_BYTES = 16 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # no separator, no leading dot
_STAMP = re.compile(r"(\d{8}T\d{6})(\.\d+)?Z")
_PNG = b"\x89PNG\r\n\x1a\n"
PICTURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}\.png")
_REPORT = "report.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which part of the history. `page` counts from 1, the newest runs first."""

    host: str | None = None
    profile: str | None = None
    page: int = 1


class History:
    """Reads the folder in a thread, once for all who wait, and keeps what it read until it is asked anew."""

    def __init__(self, root: Path, read: Callable[[Path], RunList] = list_runs) -> None:
        self._root = root
        self._read = read
        self._found: RunList | None = None
        self._reading: asyncio.Future[RunList] | None = None

    async def page(self, wanted: Wanted, *, anew: bool = False) -> dict[str, Any]:
        """Rows, series and the names to filter by. Errors: `UsageError` for a name that has no runs."""
        found = await self._runs(anew)
        hosts = sorted({row.host for row in found.rows})
        profiles = sorted({row.profile for row in found.rows})
        for field, name, known in (("host", wanted.host, hosts), ("profile", wanted.profile, profiles)):
            if name is not None and name not in known:
                raise UsageError(f"{field}: no runs of {name!r}; known: {', '.join(known) or 'none'}")
        rows = [
            row
            for row in found.rows
            if wanted.host in (None, row.host) and wanted.profile in (None, row.profile)
        ]
        rows.sort(key=lambda row: row.id, reverse=True)
        pages = max(1, -(-len(rows) // PAGE))
        page = min(wanted.page, pages)
        return {
            "rows": [_row(row) for row in rows[(page - 1) * PAGE : page * PAGE]],
            "page": page,
            "pages": pages,
            "total": len(rows),
            "hosts": hosts,
            "profiles": profiles,
            "series": series(rows),
            "broken": [asdict(broken) for broken in found.broken[:_BROKEN]],
            "broken_total": len(found.broken),
        }

    async def run(self, host: str, profile: str, name: str) -> dict[str, Any]:
        """One run in full. Errors: `NotReadyError` when there is none, `ContractError` of a bad record."""
        path = self._path(host, profile, name)
        shown = await asyncio.to_thread(show_run, path)
        return asdict(shown) | {
            "host": host,
            "profile": profile,
            "id": name,
            "plot": readable_file(path / "plot.png"),
        }

    async def file(self, host: str, profile: str, name: str, file: str) -> tuple[bytes, str]:
        """A picture of a run, or its report.md, with its media type. Errors: `NotReadyError` for all else."""
        path = self._path(host, profile, name) / file
        if (file != _REPORT and not PICTURE.fullmatch(file)) or not readable_file(path):
            raise NotReadyError(f"{host}/{profile}/{name}: no such picture or report")
        found = await asyncio.to_thread(path.read_bytes)
        if file == _REPORT:
            return found, "text/plain; charset=utf-8"
        if not found.startswith(_PNG):
            raise NotReadyError(f"{host}/{profile}/{name}: {file} is no PNG")
        return found, "image/png"

    def close(self) -> None:
        """Whoever waits for a read hears that the page's server ends."""
        if self._reading is not None and not self._reading.done():
            self._reading.set_exception(NotReadyError(ENDING))
            self._reading.exception()  # there may be nobody who waits

    async def _runs(self, anew: bool) -> RunList:
        """What was read; `anew`: by a read that began after this was asked, so that no new run is missed."""
        running = self._reading if self._reading is not None and not self._reading.done() else None
        if running is not None:
            found = await asyncio.shield(running)
            if not anew:
                return found
        if self._reading is not running and self._reading is not None and not self._reading.done():
            return await asyncio.shield(self._reading)  # another one who waited has begun it
        if self._found is None or anew:
            self._reading = _in_daemon(lambda: self._read(self._root))
            self._found = await asyncio.shield(self._reading)
        return self._found

    def _path(self, *parts: str) -> Path:
        """A run's directory: plain names only, no link on the way. Errors: `NotReadyError`."""
        path = self._root / VERSION
        for part in parts:
            path = path / part
            if not NAME.fullmatch(part) or not plain_folder(path):
                raise NotReadyError("no such run; the history lists those that are there")
        return path


def series(rows: list[RunRow]) -> list[dict[str, Any]]:
    """Tokens/s over time, one series for each host, profile, contract and system, the newest run's first.

    An encoding is a contract of its own: two encodings on one line would look like progress, and so would two
    systems. Runs of another load than the profile's rounds are left out. A point is
    seconds since the epoch, tokens/s, whether the run counts, and the run's id.
    """
    found: dict[tuple[str, str, str], list[tuple[float, float, bool, str]]] = {}
    for row in rows:  # newest first
        if row.load is not None:
            continue
        when = epoch(row.id)
        named = row.contract if row.system == OURS else f"{row.contract}, {row.system}"
        points = found.setdefault((row.host, row.profile, named), [])
        if when is not None and row.tokens_per_s_median is not None and len(points) < POINTS:
            points.append((when, row.tokens_per_s_median, row.status == "ok", row.id))
    drawn = [(names, points) for names, points in found.items() if points]
    return [
        {"host": host, "profile": profile, "contract": contract, "points": points[::-1]}
        for (host, profile, contract), points in drawn[:SERIES]
    ]


def wanted_from(query: Mapping[str, str]) -> Wanted:
    """What a query asks for. Errors: `UsageError` for a page that is no number."""
    page = query.get("page", "1")
    if not re.fullmatch(r"[1-9]\d{0,5}", page):
        raise UsageError(f"page: expected a number from 1, got {page!r}")
    return Wanted(host=query.get("host") or None, profile=query.get("profile") or None, page=int(page))


def _in_daemon(work: Callable[[], RunList]) -> asyncio.Future[RunList]:
    """`asyncio.to_thread`, but nobody waits for it at the end: many thousand records take minutes to read."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[RunList] = loop.create_future()

    def settle(found: RunList | Exception) -> None:
        if future.done():
            return
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)

    def run() -> None:
        try:
            found: RunList | Exception = work()
        except Exception as error:  # whoever waits raises it
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=run, name="history", daemon=True).start()
    return future


def _row(row: RunRow) -> dict[str, Any]:
    kept = ("host", "profile", "id", "status", "label", "backend", "requests", "note")
    numbers = ("tokens_per_s_median", "ttft_s_median", "tpot_s_median", "bandwidth_share_median")
    return {name: getattr(row, name) for name in (*kept, *numbers)} | {"epoch": epoch(row.id)}


def epoch(run: str) -> float | None:
    """Seconds since the epoch of the moment that a run's name begins with; None for a name without one."""
    stamp = _STAMP.match(run)
    if stamp is None:
        return None
    try:
        return datetime.strptime(stamp[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def plain_folder(path: Path) -> bool:
    """Whether it is a folder, and no link to one."""
    return not path.is_symlink() and path.is_dir()


def readable_file(path: Path, most: int = _FILE_BYTES) -> bool:
    """Whether it is a file, no link, of at most so many bytes."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_size <= most

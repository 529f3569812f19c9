"""The first thing to run on a new box: can it be reached, as whom, and does it have what its contract needs?

`examine` returns rows and never raises for a sick host. It stops where a careful person would: while the
host's key is unknown nothing is asked of the host at all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lean import host_facts
from lean.contracts import Contract
from lean.errors import AuthError, HostKeyError, LeanError, PreflightError
from remote.host.requirements import DoctorRow, fact_rows
from remote.ssh.connection import HostConnection
from remote.ssh.resolve import ResolvedHost

FACTS_TIMEOUT_S = 90.0
CLOCK_TOLERANCE_S = 60.0

_CLOCK = "import time, sys; print(time.time(), *sys.version_info[:2])"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """`rows` in the order they were found out; `facts`: the host's own document, None when not asked."""

    host: str
    address: str | None
    rows: tuple[DoctorRow, ...]
    facts: dict[str, Any] | None

    @property
    def ok(self) -> bool:
        """Whether every row that is required holds."""
        return all(row.ok or not row.required for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0, or that of the first required row that fails: 2 config, 3 not reached, 4 something missing."""
        return next((row.exit_code for row in self.rows if row.required and not row.ok), 0)


def examine(connection: HostConnection, contract: Contract | None) -> DoctorReport:
    """Examine one host against the contract it is meant to serve (None: no sizes are checked)."""
    rows, facts = _findings(connection, contract)
    resolved = connection.known_resolution
    return DoctorReport(
        host=connection.name,
        address=resolved.address if resolved else None,
        rows=tuple(replace(row, fix="") if row.ok else row for row in rows),
        facts=facts,
    )


def _findings(
    connection: HostConnection, contract: Contract | None
) -> tuple[list[DoctorRow], dict[str, Any] | None]:
    try:
        session = connection.session()
    except LeanError as error:
        return _not_reached(connection.known_resolution, error), None
    rows = [
        _address(connection.resolved),
        DoctorRow(what="host key", need="recorded", have=session.host_key, ok=True),
        DoctorRow(what="login key", need="accepted", have=session.login_key, ok=True),
        DoctorRow(what="server", need="an SSH server", have=session.server, ok=True),
    ]
    try:
        rows += _python_and_clock(connection)
        facts = _facts(connection)
    except LeanError as error:
        return [*rows, _failed("python", "answers", error)], None
    return rows + fact_rows(facts, connection.host, contract), facts


def _not_reached(resolved: ResolvedHost | None, error: LeanError) -> list[DoctorRow]:
    if resolved is None:
        return [_failed("address", "resolves", error)]
    if isinstance(error, HostKeyError):
        return [_address(resolved), _failed("host key", "recorded", error)]
    if isinstance(error, AuthError):
        return [_address(resolved), _failed("login key", "accepted", error)]
    return [_address(resolved), _failed("server", "an SSH server", error)]


def _failed(what: str, need: str, error: LeanError) -> DoctorRow:
    return DoctorRow(
        what=what, need=need, have=type(error).__name__, ok=False, fix=str(error), exit_code=error.exit_code
    )


def _address(resolved: ResolvedHost) -> DoctorRow:
    lines = ", ".join(resolved.config_lines) or "no configuration line"
    proxy = resolved.proxy_jump or resolved.proxy_command
    have = f"{resolved.address}{f' through {proxy}' if proxy else ''} ({lines})"
    return DoctorRow(what="address", need="resolves", have=have, ok=True)


def _python_and_clock(connection: HostConnection) -> list[DoctorRow]:
    """Python's version and the host's clock in one command; skew is against the middle of the round trip."""
    python = connection.host.python
    before = time.time()
    result = connection.run([python, "-c", _CLOCK], timeout=FACTS_TIMEOUT_S, check=False)
    after = time.time()
    if result.exit_code != 0:
        raise PreflightError(
            f"{connection.name}: `{python}` does not run there ({result.stderr.strip()[-200:]}); "
            "install Python 3.11 or later, or name another interpreter as `python` of the host"
        )
    wall, major, minor = result.stdout.split()[-3:]
    skew = float(wall) - (before + after) / 2
    uncertainty = (after - before) / 2
    return [
        DoctorRow(
            what="python",
            need=">= 3.11",
            have=f"{major}.{minor}",
            ok=(int(major), int(minor)) >= (3, 11),
            fix="install Python 3.11 or later and name it as `python` of the host",
        ),
        DoctorRow(
            what="clock",
            need=f"within {CLOCK_TOLERANCE_S:g} s of this machine",
            have=f"{skew:+.2f} s ± {uncertainty:.2f} s",
            ok=abs(skew) - uncertainty <= CLOCK_TOLERANCE_S,
            fix="switch on time synchronisation there: `sudo timedatectl set-ntp true`",
        ),
    ]


def _facts(connection: HostConnection) -> dict[str, Any]:
    """Run the facts program from our own source: nothing needs to be on the host yet."""
    source = Path(host_facts.__file__).read_bytes()
    argv = [connection.host.python, "-", "--root", connection.host.root]
    return connection.run_json(argv, stdin=source, timeout=FACTS_TIMEOUT_S)

"""One line of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass

from lean.errors import PreflightError


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorRow:
    """`fix` says what to do when not `ok`. A row that is not `required` never fails the report."""

    what: str
    need: str
    have: str
    ok: bool
    fix: str = ""
    required: bool = True
    exit_code: int = PreflightError.exit_code

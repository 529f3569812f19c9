"""The exception tree and the one JSON document of a host program."""

from __future__ import annotations

import json

import pytest

from lean.cli import run_program
from lean.errors import (
    AuthError,
    ContractError,
    GateError,
    HostKeyError,
    IntegrityError,
    Interrupted,
    InvalidRunError,
    LeanError,
    LinkLost,
    NotReadyError,
    PackError,
    PreflightError,
    TransferError,
    UnreachableError,
    UsageError,
    error_document,
    from_document,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (LeanError, 1), (UsageError, 1), (ContractError, 2), (UnreachableError, 3), (HostKeyError, 3),
        (AuthError, 3), (LinkLost, 3), (PreflightError, 4), (GateError, 5), (NotReadyError, 6),
        (InvalidRunError, 7), (IntegrityError, 8), (TransferError, 8), (PackError, 8), (Interrupted, 130),
    ],
)  # fmt: skip
def test_an_error_crosses_the_wire_as_itself_with_its_exit_code(kind: type[LeanError], code: int) -> None:
    again = from_document(json.loads(json.dumps(error_document(kind("disk full: free 3 GB")))))
    assert type(again) is kind
    assert (str(again), again.exit_code) == ("disk full: free 3 GB", code)


def test_an_unknown_kind_from_a_newer_host_is_still_an_error() -> None:
    again = from_document({"error": {"kind": "FutureError", "message": "m", "exit_code": 9}})
    assert type(again) is LeanError and str(again) == "m"


def test_a_program_prints_one_document_and_returns_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda argv: {"argv": argv}, ["a", "b"]) == 0
    assert json.loads(capsys.readouterr().out) == {"argv": ["a", "b"]}


def test_a_failing_program_prints_its_error_document_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> dict[str, object]:
        raise PackError("LOCK: differs")

    assert run_program(main, []) == 8
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["kind"] == "PackError"
    assert captured.err == "error: LOCK: differs\n"


def test_an_interrupted_program_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> dict[str, object]:
        raise KeyboardInterrupt

    assert run_program(main, []) == 130
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "Interrupted"


def test_a_bug_keeps_its_traceback() -> None:
    def main(argv: list[str]) -> dict[str, object]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_program(main, [])

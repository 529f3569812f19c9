"""Quoting: what a remote /bin/sh makes of our command strings, asked of a real /bin/sh."""

from __future__ import annotations

import json
import subprocess

import pytest

from lean.errors import GateError, LeanError, PreflightError, UsageError, error_document
from remote.ssh.command import CommandResult, command_line, plain_name, plain_path

TRICKY = [
    "",
    " ",
    "two words",
    "it's",
    'say "so"',
    "$HOME",
    "`id`",
    "$(id)",
    "a;b",
    "a&&b|c>d<e",
    "*?[a]~",
    "line\nbreak",
    "tab\there",
    "back\\slash",
    "!history",
    "#comment",
    "-dash",
    "--",
    "ünïcode \N{SNOWMAN}",
]


@pytest.mark.security("shell metacharacters, newlines and leading dashes are inert")
@pytest.mark.parametrize("argument", TRICKY)
def test_every_argument_arrives_as_it_was_given(argument: str) -> None:
    line = command_line(["printf", "%s|", "before", argument, "after"])

    answer = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True)

    assert answer.stdout.decode() == f"before|{argument}|after|"


@pytest.mark.parametrize("argv", [[], "ls -l", [""], ["-rf"], ["A=b", "c"], ["echo", "nul\0byte"]])
def test_an_argv_that_would_be_misread_is_refused(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        command_line(argv)


@pytest.mark.security("a hostile name of a result stays inside its folder")
@pytest.mark.parametrize("name", ["", "-oProxyCommand=id", "a\nb", "a\0b", "a/b", "/etc", ".", "..", ".ssh"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="run"):
        plain_name("run", name)


@pytest.mark.parametrize("path", ["", "-rf", "a\nb", "a\0b"])
def test_a_path_that_could_be_an_option_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="target"):
        plain_path("target", path)


def test_a_plain_path_passes_unchanged() -> None:
    assert plain_path("target", "/srv/my models/x") == "/srv/my models/x"


def result(exit_code: int, stdout: str = "", stderr: str = "", killed: bool = False) -> CommandResult:
    return CommandResult(
        argv=("tool", "verb"), exit_code=exit_code, stdout=stdout, stderr=stderr, killed=killed
    )


def test_a_host_programs_own_error_comes_back_as_what_it_was() -> None:
    document = json.dumps(error_document(GateError("fp8: relative error 0.3")))

    with pytest.raises(GateError, match=r"^fp8: relative error 0\.3$"):
        result(5, stdout=document).check("spark")


def test_a_missing_program_is_a_preflight_error() -> None:
    assert isinstance(result(127, stderr="sh: tool: not found").failure("spark"), PreflightError)


def test_a_failure_names_host_command_code_and_last_words() -> None:
    error = result(2, stderr="first\nno space left on device\n").failure("spark")

    assert type(error) is LeanError
    assert str(error) == "spark: `tool verb` exited with 2: no space left on device"


def test_output_that_only_looks_like_an_error_document_is_no_error_document() -> None:
    for text in ('{"error": 1}', '{"error": {"x": 1}}', '["error"]', '"error" of the world'):
        assert type(result(1, stdout=text).failure("spark")) is LeanError


def test_success_is_returned() -> None:
    assert result(0, stdout="x").check("spark").stdout == "x"

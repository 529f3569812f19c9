"""Short commands: what goes in, what comes out, on the embedded server and on a real sshd."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from lean.errors import GateError, LeanError, NotReadyError, PreflightError, UnreachableError, error_document

MIB = 1 << 20


def test_a_command_returns_its_outputs_and_exit_code(any_host: Any) -> None:
    result = any_host.connect().run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)

    assert (result.exit_code, result.stdout, result.stderr, result.killed) == (3, "out\n", "err\n", False)


@pytest.mark.security("shell metacharacters, newlines and leading dashes are inert")
def test_shell_metacharacters_newlines_and_dashes_are_inert(any_host: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    words = [
        f"$(touch {canary})",
        f"; touch {canary}",
        f"\ntouch {canary}\n",
        f"`touch {canary}`",
        "-n",
        "'",
        "*",
    ]

    result = any_host.connect().run(["printf", "%s\\n", "--", *words])

    assert result.stdout == "".join(f"{word}\n" for word in ("--", *words))
    assert not canary.exists()


def test_both_outputs_may_be_large_at_once(any_host: Any) -> None:
    each = 12 * MIB
    script = f"head -c {each} /dev/zero | tr '\\0' o & head -c {each} /dev/zero | tr '\\0' e >&2; wait"

    result = any_host.connect().run(["sh", "-c", script])

    assert result.stdout == "o" * each
    assert result.stderr == "e" * each


def test_binary_standard_input_arrives_whole(any_host: Any) -> None:
    data = bytes(range(256)) * 4096 * 20 + b"\x00\xff"

    result = any_host.connect().run(["sha256sum"], stdin=data)

    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_without_input_a_command_that_reads_sees_the_end_at_once(any_host: Any) -> None:
    assert any_host.connect().run(["cat"], timeout=5).stdout == ""


def test_a_short_input_and_its_end_arrive_before_a_slow_program_reads(any_host: Any) -> None:
    result = any_host.connect().run(["sh", "-c", "sleep 0.2; cat"], stdin=b"short", timeout=5)

    assert result.stdout == "short"


def test_a_command_may_leave_its_input_unread(any_host: Any) -> None:
    assert any_host.connect().run(["true"], stdin=bytes(8 * MIB), timeout=10).exit_code == 0


def test_a_command_that_closes_its_outputs_is_awaited_all_the_same(any_host: Any) -> None:
    result = any_host.connect().run(["sh", "-c", "echo x; exec >&- 2>&-; sleep 0.5; exit 5"], check=False)

    assert (result.exit_code, result.stdout) == (5, "x\n")


def test_bytes_that_are_not_utf8_are_replaced_and_the_rest_survives(any_host: Any) -> None:
    result = any_host.connect().run(["printf", r"a\377b\303\251"])

    assert result.stdout == "a\N{REPLACEMENT CHARACTER}bé"


def test_a_failing_command_raises_with_its_last_words(any_host: Any) -> None:
    with pytest.raises(LeanError, match=r"exited with 4: no luck$"):
        any_host.connect().run(["sh", "-c", "echo no luck >&2; exit 4"])


def test_a_missing_program_is_a_preflight_error(any_host: Any) -> None:
    with pytest.raises(PreflightError, match="no-such-program-here"):
        any_host.connect().run(["no-such-program-here"])


def test_a_command_killed_by_a_signal_is_neither_success_nor_a_lost_link(any_host: Any) -> None:
    connection = any_host.connect()

    result = connection.run(["exec", "sh", "-c", "kill -9 $$"], check=False)

    assert (result.killed, result.exit_code) == (True, 255)
    with pytest.raises(LeanError, match="killed by a signal"):
        connection.run(["exec", "sh", "-c", "kill -9 $$"])


def test_a_json_document_comes_back_as_data(any_host: Any) -> None:
    assert any_host.connect().run_json(["echo", '{"a": [1]}']) == {"a": [1]}


def test_a_host_programs_error_is_raised_here_as_it_was_there(any_host: Any) -> None:
    document = json.dumps(error_document(GateError("bf16: no HMMA in the SASS")))

    with pytest.raises(GateError, match=r"^bf16: no HMMA in the SASS$"):
        any_host.connect().run_json(["sh", "-c", 'echo "$1"; exit 5', "sh", document])


def test_output_that_is_no_json_document_is_named(any_host: Any) -> None:
    with pytest.raises(LeanError, match="printed 'Welcome!'"):
        any_host.connect().run_json(["echo", "Welcome!"])


def test_several_commands_run_at_once_over_one_connection(any_host: Any) -> None:
    connection = any_host.connect()
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = connection.run(["sh", "-c", f"sleep 0.1; echo {number}"]).stdout

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == {number: f"{number}\n" for number in range(6)}


def test_a_command_past_its_deadline_is_an_error_that_says_it_may_still_run(any_host: Any) -> None:
    connection = any_host.connect()

    with pytest.raises(UnreachableError, match=r"did not end within 0\.3 s; it may still run"):
        connection.run(["sleep", "3"], timeout=0.3)

    assert connection.run(["echo", "next"]).stdout == "next\n"


def test_openssh_reaches_the_same_place_with_the_argv_it_is_given(any_host: Any) -> None:
    connection = any_host.connect()

    by_openssh = subprocess.run(
        [*connection.openssh(), "printenv HOME"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )

    assert by_openssh.stderr == ""
    assert by_openssh.stdout == connection.run(["printenv", "HOME"]).stdout == f"{any_host.home}\n"


def test_a_channel_leads_to_a_port_of_the_host_and_a_closed_one_is_not_ready(any_host: Any) -> None:
    connection = any_host.connect()

    channel = connection.open_channel("direct-tcpip", ("127.0.0.1", any_host.port))
    channel.settimeout(5)
    assert channel.recv(4) == b"SSH-"
    channel.close()

    with pytest.raises(NotReadyError, match=r"direct-tcpip to 127\.0\.0\.1:1: .* refuses"):
        connection.open_channel("direct-tcpip", ("127.0.0.1", 1))


def test_closing_leaves_no_thread_behind(any_host: Any) -> None:
    before = set(threading.enumerate())
    connection = any_host.connect()
    connection.run(["true"], stdin=b"x")
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2  # Paramiko's and the watchdog

    connection.close()

    assert not any(thread.is_alive() for thread in mine)


def test_a_closed_connection_opens_again_for_the_next_command(any_host: Any) -> None:
    connection = any_host.connect()
    connection.run(["true"])
    connection.close()

    assert connection.run(["echo", "again"]).stdout == "again\n"

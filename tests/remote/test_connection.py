"""Short commands: what goes in, what comes out, on the embedded server and on a real sshd."""

from __future__ import annotations

import subprocess
from typing import Any


def test_a_command_returns_its_output_and_exit_code(any_host: Any) -> None:
    result = any_host.connect().run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)

    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")


def test_openssh_reaches_the_same_place_with_the_argv_it_is_given(any_host: Any) -> None:
    connection = any_host.connect()

    by_openssh = subprocess.run([*connection.openssh(), "printenv HOME"], capture_output=True, text=True)

    assert by_openssh.stderr == ""
    assert by_openssh.stdout == connection.run(["printenv", "HOME"]).stdout == f"{any_host.home}\n"


def test_the_root_is_resolved_on_the_host(any_host: Any) -> None:
    connection = any_host.connect(host=any_host.spec(root="~/lean"))

    assert connection.root == f"{any_host.home}/lean"

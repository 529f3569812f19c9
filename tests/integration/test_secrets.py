"""The service's token is nowhere but in its file: searched for where anything is written or shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client"),
]


def files_with(text: bytes, root: Path) -> set[str]:
    """Names of the files below a folder that hold the text."""
    return {
        path.name
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and text in path.read_bytes()
    }


def command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.security("no secret on a command line, in a log, an error or a result")
def test_the_token_is_in_its_file_only(checkout, demo) -> None:
    home = checkout.path / ".lean" / "loopback" / "home" / "lean"
    served = checkout.invoke("remote.serve", "--json")
    try:
        token = (home / "tmp" / "serve.token").read_bytes().strip()
        shown = [served.stdout + served.stderr]
        lines = command_lines()
        measured = checkout.invoke("remote.bench", "--json")
        wrong = checkout.invoke("remote.bench", "--profile", "decode_64_256_b2")
        shown += [measured.stdout + measured.stderr, wrong.stdout + wrong.stderr]
        shown.append(checkout.invoke("remote.status", "--json").stdout)
        shown.append(checkout.invoke("remote.logs").stdout)
    finally:
        checkout.invoke("remote.stop")
    assert measured.code == 0 and wrong.code == 4
    assert len(token) >= 32
    assert any(b"lean.leanserve" in line for line in lines), "nothing served while it was looked for"
    assert not [line for line in lines if token in line]
    assert not [text for text in shown if token.decode() in text]
    assert files_with(token, home) == {"serve.token"}
    assert files_with(token, checkout.path / "results") == set()
    assert (home / "tmp" / "serve.token").stat().st_mode & 0o777 == 0o600


@pytest.mark.security("files are 0600 and folders 0700")
def test_nothing_on_the_host_is_open_to_others(checkout, demo) -> None:
    home = checkout.path / ".lean" / "loopback" / "home" / "lean"
    open_to_others = [
        str(path.relative_to(home))
        for path in home.rglob("*")
        if not path.is_symlink() and path.stat().st_mode & 0o077 and "releases" not in path.parts
    ]
    assert open_to_others == []

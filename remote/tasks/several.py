"""`--host a,b`: the same verb on several hosts at once, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from lean.errors import UsageError
from remote.console import Console
from remote.paths import REPOSITORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the verb ended on one host. `document` is what it printed with `--json`."""

    host: str
    exit_code: int
    seconds: float
    document: dict[str, Any]

    @property
    def words(self) -> str:
        """The error's message, or nothing."""
        error = self.document.get("error")
        return str(error["message"]) if isinstance(error, dict) else ""


def hosts_of(text: str) -> list[str]:
    """`a,b` as names, each once. Errors: `UsageError` for an empty one."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if "" in names:
        raise UsageError(f"--host {text!r}: expected names with a comma between them")
    return names


def run_on_several(console: Console, verb: str, hosts: list[str], flags: dict[str, Any]) -> int:
    """Run `invoke <verb>` for every host at once and show one line each as it ends; the worst exit code."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        running = [pool.submit(_run, verb, host, flags) for host in hosts]
        found = []
        for future in as_completed(running):
            ended = future.result()
            state = "ok" if ended.exit_code == 0 else f"exit {ended.exit_code}"
            console.line(f"{ended.host}: {state}, {ended.seconds:.1f} s {ended.words}".rstrip())
            found.append(ended)
    console.result({"hosts": {e.host: e.document | {"exit_code": e.exit_code} for e in found}}, lambda: None)
    return max((e.exit_code for e in found), default=0)


def _run(verb: str, host: str, flags: dict[str, Any]) -> Ended:
    started = time.monotonic()
    argv = [sys.executable, "-m", "invoke", "--search-root", str(REPOSITORY), verb, "--json", "--host", host]
    argv += _words(flags)
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode  # as a shell counts signals
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {}
    return Ended(host=host, exit_code=code, seconds=time.monotonic() - started, document=document)


def _words(flags: dict[str, Any]) -> list[str]:
    words = []
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words.append(f"{flag}={value}")
    return words

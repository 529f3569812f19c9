"""How a host program is started.

The release on PYTHONPATH, an interpreter, a module, its arguments. No shell.
"""

from __future__ import annotations

from dataclasses import dataclass

from remote.command import environment_argv


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPython:
    """`release` is the absolute path of a synced release on the host; `python` runs it."""

    release: str
    python: str

    def argv(self, module: str, *arguments: str) -> list[str]:
        """`env PYTHONPATH=… python -m module …`. Nothing in the working directory can shadow a module."""
        environment = {"PYTHONPATH": self.release, "PYTHONSAFEPATH": "1"}
        return [*environment_argv(environment), self.python, "-m", module, *arguments]

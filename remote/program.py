"""The console script `leanstack`: the same namespace as `invoke`, without a tasks file to find."""

from __future__ import annotations

from invoke import Program

from lean import __version__
from remote.tasks import namespace


def main() -> None:
    """Run one verb and exit with its code."""
    Program(name="leanstack", binary="leanstack", namespace=namespace, version=__version__).run()


if __name__ == "__main__":
    main()

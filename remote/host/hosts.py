"""Which host is meant, as this checkout's hosts.yaml and hosts.local.yaml have it."""

from __future__ import annotations

from lean.contracts import Host, load_hosts
from remote.paths import REPOSITORY


def load_host(name: str | None) -> tuple[str, Host]:
    """A host of this checkout by name, or its default one."""
    return load_hosts(REPOSITORY).get(name)


def default_contract() -> str:
    """The contract of the default host."""
    return load_host(None)[1].contract

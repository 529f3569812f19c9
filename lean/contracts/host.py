"""Hosts: `hosts.yaml` as published, `hosts.local.yaml` merged over it and never shared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lean.contracts.loader import from_data, read_yaml
from lean.errors import ContractError

LOOPBACK = "loopback"
HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # also a folder below results/v1


def check_host_name(field: str, name: str) -> None:
    """Errors: `ValueError` naming the field for a name that could not be a folder below results/v1."""
    if HOST_NAME.fullmatch(name) is None:
        raise ValueError(f"{field}: expected letters, digits, '.', '_' and '-', got {name!r}")


def _no_option(name: str, value: str | None) -> None:
    if value is None:
        return
    if not value or value.startswith("-") or any(c.isspace() or ord(c) < 32 for c in value):
        raise ValueError(f"{name}: {value!r} would be read as an option or hold blanks; give a plain value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One machine. `hostname` may be an alias of the user's ssh_config; only `loopback` needs none.

    `fallback` is a second address tried when the first does not answer. `root` is absolute or begins with
    `~`, which the host resolves.
    `python` is the interpreter venvs are made with; `venv` names one to use as it is, instead of one
    keyed by the lock file.
    """

    hostname: str | None = None
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    proxy_jump: str | None = None
    fallback: str | None = None
    root: str = "~/lean"
    contract: str
    internet: bool = True
    gpu: Literal["auto", "none"] = "auto"
    python: str = "python3"
    venv: str | None = None

    def __post_init__(self) -> None:
        for name in ("hostname", "user", "identity_file", "proxy_jump", "fallback", "root", "python", "venv"):
            _no_option(name, getattr(self, name))
        if self.root != "~" and not self.root.startswith(("~/", "/")):
            raise ValueError(f"root: expected an absolute path or ~/…, got {self.root!r}")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """All hosts by name, and the one a verb uses when none is named."""

    SCHEMA: ClassVar[str] = "hosts/v1"

    default: str
    hosts: dict[str, Host] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.default not in self.hosts:
            raise ValueError(f"default: no host named {self.default!r}; known: {', '.join(self.hosts)}")
        for name, host in self.hosts.items():
            if HOST_NAME.fullmatch(name) is None:
                raise ValueError(
                    f"hosts.{name!r}: a host's name has letters, digits, '.', '_' and '-' only, 64 at most"
                )
            if host.hostname is None and name != LOOPBACK:
                raise ValueError(f"hosts.{name}.hostname: missing")

    def get(self, name: str | None = None) -> tuple[str, Host]:
        """A host by name, or the default. Errors: `ContractError` naming the known ones."""
        chosen = name or self.default
        if chosen not in self.hosts:
            known = ", ".join(self.hosts)
            raise ContractError(f"no host named {chosen!r} in hosts.yaml or hosts.local.yaml; known: {known}")
        return chosen, self.hosts[chosen]


def load_hosts(repo: Path) -> Hosts:
    """`hosts.yaml` of the checkout with `hosts.local.yaml`, if there is one, merged over it key by key."""
    path, local = repo / "hosts.yaml", repo / "hosts.local.yaml"
    data = _mapping(path)
    origin = str(path)
    if local.exists():
        data, origin = _merge(data, _mapping(local)), f"{path} with {local}"
    return from_data(Hosts, data, origin)


def _mapping(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ContractError(f"{path}: expected a mapping")
    return data


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged

"""Finding contracts and profiles by name in a checkout or a release."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, get_args

from lean.contracts.bench import BenchProfile
from lean.contracts.contract import Contract, Encoding, encoded_contract
from lean.contracts.loader import load
from lean.contracts.soak import SoakPlan
from lean.errors import ContractError

ROOT = Path(__file__).resolve().parents[2]

T = TypeVar("T", Contract, BenchProfile, SoakPlan)


def load_contract(name: str, root: Path = ROOT) -> Contract:
    """The contract `profiles/contracts/<name>.yaml`. Errors: `ContractError` listing the known names."""
    return _named(Contract, root / "profiles" / "contracts", name)


def load_profile(name: str, root: Path = ROOT) -> BenchProfile:
    """The bench profile `profiles/bench/<name>.yaml`. Errors: `ContractError` listing the known names."""
    return _named(BenchProfile, root / "profiles" / "bench", name)


def load_plan(name: str, root: Path = ROOT) -> SoakPlan:
    """The soak plan `profiles/soak/<name>.yaml`. Errors: `ContractError` listing the known names."""
    return _named(SoakPlan, root / "profiles" / "soak", name)


def known_contract(name: str, root: Path = ROOT) -> Contract:
    """The contract of this name, one in another encoding by `<id>-<encoding>`. Errors: `ContractError`."""
    if name not in names(root / "profiles" / "contracts"):
        for encoding in get_args(Encoding):
            if name.endswith(f"-{encoding}"):
                return encoded_contract(load_contract(name.removesuffix(f"-{encoding}"), root), encoding)
    return load_contract(name, root)


def names(folder: Path) -> tuple[str, ...]:
    """The names of the YAML files in a folder, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def _named(kind: type[T], folder: Path, name: str) -> T:
    known = names(folder)
    if name not in known:
        raise ContractError(f"no {kind.SCHEMA.split('/')[0]} named {name!r}; known: {', '.join(known)}")
    found = load(kind, folder / f"{name}.yaml")
    if found.id != name:
        raise ContractError(f"{folder / name}.yaml: id: expected {name!r}, got {found.id!r}")
    return found

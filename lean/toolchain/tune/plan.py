"""Which kernels of a contract have a choice of tiles, and the kernel that each choice makes."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.qwen3 import kernel_specs
from kernels.spec import KernelSpec
from kernels.tiles import TUNING, Tile, Tiles
from lean.errors import ContractError, IntegrityError, UsageError
from lean.toolchain.speed.binaries import digest
from lean.toolchain.speed.contract_shapes import ContractShapes
from lean.toolchain.tune.tiles import divides, grid_of, tie_name, tie_of

WIDENED = "prompts of encoded weights run bf16's own kernels on widened ones: search for the bf16 contract"
Key = tuple[str, str, str, str]  # path, kernel, rows, reduction: as `Tiles` looks an entry up


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One choice for one kernel. A `tile` of None is the rule's own; `current`: what is chosen now.

    `tie`: see `tie_of`.
    """

    key: Key
    tile: dict[str, Any] | None
    spec: KernelSpec
    current: bool
    tie: tuple[str, int] | None

    @property
    def digest(self) -> str:
        """The hash of its specification."""
        return digest(self.spec)

    @property
    def label(self) -> str:
        """The kernel and the choice, for people."""
        tile = self.tile or {"by": "rule"}
        return f"{self.spec.name} {' '.join(f'{name}={value}' for name, value in tile.items())}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every candidate by the entry it is for, the current one first; `left_out` says why others are not."""

    target: str
    candidates: Mapping[Key, tuple[Candidate, ...]]
    left_out: tuple[tuple[str, str], ...]

    def all(self) -> tuple[Candidate, ...]:
        """All of them, in order."""
        return tuple(candidate for family in self.candidates.values() for candidate in family)


class _Asked(dict[Any, Any]):
    """Entries that remember what they were asked for."""

    def __init__(self, entries: Mapping[Key, Tile]) -> None:
        super().__init__(entries)
        self.keys_asked: dict[Key, None] = {}

    def get(self, key: Any, default: Any = None) -> Any:
        self.keys_asked[key] = None
        return super().get(key, default)


def read_tuning(target: str, folder: Path = TUNING) -> dict[str, Any]:
    """The tuning file of a chip, or an empty one. Errors: `IntegrityError` for another chip's, or no JSON."""
    path = folder / f"{target}.json"
    if not path.is_file():
        return {"schema": "tiles/v1", "target": target, "tiles": []}
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        if document["target"] != target:
            raise ValueError(f"it is for {document['target']}")
        for entry in document["tiles"]:
            key_of(entry)
            Tile(**entry["tile"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: no tuning file for {target}: {error}") from None
    return document


def key_of(entry: Mapping[str, Any]) -> Key:
    """What a tuning entry is for."""
    rows, reduction = entry["shape"]
    return str(entry["path"]), str(entry["kernel"]), str(rows), str(reduction)


def kernel_of(key: Key) -> str:
    """The name of the kernel that an entry is for: fp8-e4m3.one of qkv is qkv.one."""
    path, kernel, _, _ = key
    return f"{kernel}.{path.split('.')[-1]}"


def make_plan(shapes: ContractShapes, target: str, only: Sequence[str], tuning: Mapping[str, Any]) -> Plan:
    """All candidates for the kernels that match a pattern of `only`, or for every kernel with tiles.

    Errors: `UsageError` for a pattern that no kernel matches; `ContractError` for entries that do not fit.
    """
    entries = {key_of(entry): Tile(**entry["tile"]) for entry in tuning["tiles"]}
    stored = {key_of(entry): dict(entry["tile"]) for entry in tuning["tiles"]}
    asked = _Asked(entries)
    try:
        now = {spec.name: spec for spec in kernel_specs(shapes.sizes, Tiles(target, asked))}
    except ValueError as error:
        raise ContractError(f"contract {shapes.id}: no tiles for {target}: {error}") from None
    keys = {key: kernel_of(key) for key in asked.keys_asked if kernel_of(key) in now}
    widened = [
        name for key, name in keys.items() if shapes.encoding != "bf16" and key[0].startswith("prompt")
    ]
    keys = {key: name for key, name in keys.items() if name not in widened}
    for pattern in only:
        if not fnmatch.filter(keys.values(), pattern):
            raise UsageError(
                f"--only: {pattern}: no such kernel; expected some of {', '.join(keys.values())}"
            )
    wanted = [
        key
        for key, name in keys.items()
        if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only)
    ]
    making = _Making(shapes, target, entries, tuple(keys))
    candidates = {
        key: making.bound(key, making.family(key, stored.get(key), now[keys[key]]), wanted) for key in wanted
    }
    left_out = [(name, WIDENED) for name in widened] + making.left_out
    return Plan(target=target, candidates=candidates, left_out=tuple(left_out))


class _Making:
    """Makes the candidates of one plan."""

    def __init__(
        self, shapes: ContractShapes, target: str, entries: Mapping[Key, Tile], keys: tuple[Key, ...]
    ) -> None:
        self._sizes, self._target, self._entries, self._keys = shapes.sizes, target, entries, keys
        self.left_out: list[tuple[str, str]] = []

    def family(self, key: Key, tile: dict[str, Any] | None, now: KernelSpec) -> tuple[Candidate, ...]:
        """The current choice, then every other one that makes another kernel."""
        path, kernel, rows, reduction = key
        made: dict[str, Candidate] = {}
        for choice in grid_of(path, kernel).tiles():
            if not divides(path, kernel, (int(rows), int(reduction)), choice):
                continue
            spec = self._spec(key, choice)
            if isinstance(spec, str):
                label = " ".join(f"{name}={value}" for name, value in choice.items())
                self.left_out.append((f"{kernel_of(key)} {label}", spec))
                continue
            tie = tie_of(path, kernel, choice)
            one = Candidate(key=key, tile=choice, spec=spec, current=False, tie=tie)
            made.setdefault(one.digest, one)
        same = made.pop(digest(now), None)
        tile = tile or (same.tile if same else None)
        tie = tie_of(path, kernel, tile) if tile else None
        first = Candidate(key=key, tile=tile, spec=now, current=True, tie=tie)
        return (first, *made.values())

    def bound(self, key: Key, family: tuple[Candidate, ...], wanted: Sequence[Key]) -> tuple[Candidate, ...]:
        """The family, less what a kernel that is not asked for but tied to it does not allow."""
        name = tie_name(key[0], key[1])
        others = [k for k in self._keys if k not in wanted and tie_name(k[0], k[1]) == name]
        if name is None or not others:
            return family
        current, *rest = family
        why = f"tied to {kernel_of(others[0])}, which is not asked for"
        self.left_out += [(c.label, why) for c in rest if c.tie != current.tie]
        return (current, *(c for c in rest if c.tie == current.tie))

    def _spec(self, key: Key, choice: dict[str, Any]) -> KernelSpec | str:
        """The kernel that a choice makes, or why it makes none."""
        try:
            tile = Tile(**choice)
        except TypeError as error:
            return str(error)
        why = ""
        for partners in self._partners(key, choice):
            tiles = Tiles(self._target, {**self._entries, **partners, key: tile})
            try:
                specs = kernel_specs(self._sizes, tiles)
            except (ValueError, StopIteration, ZeroDivisionError) as error:
                why = why or str(error)
                continue
            return next(spec for spec in specs if spec.name == kernel_of(key))
        return why

    def _partners(self, key: Key, choice: dict[str, Any]) -> list[dict[Key, Tile]]:
        """Choices for the kernels that this one is tied to, to make its specification with."""
        tie = tie_of(key[0], key[1], choice)
        if tie is None:
            return [{}]
        found: list[dict[Key, Tile]] = [{}]
        for other in self._keys:
            if other == key or tie_name(other[0], other[1]) != tie[0]:
                continue
            shape = int(other[2]), int(other[3])
            fitting = [
                Tile(**tile)
                for tile in grid_of(other[0], other[1]).tiles()
                if tie_of(other[0], other[1], tile) == tie and divides(other[0], other[1], shape, tile)
            ]
            found = [{**one, other: tile} for one in found for tile in fitting[:8]][:16]
        return found

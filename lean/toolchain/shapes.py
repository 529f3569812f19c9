"""The geometries that the appliance's kernels are proved on. Standard library only."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from kernels.encodings import ENCODINGS, Encoding
from kernels.qwen3 import Sizes, kernel_specs
from kernels.spec import KernelSpec
from kernels.tiles import load_tiles
from lean.errors import UsageError

LENGTH = 1088  # positions a slot holds: the contracts' longest bucket, 1024 + 64
EPS = 1.0e-6


def sizes_named(name: str) -> Sizes:
    """`tiny`, or a Qwen3 by its size, with `+` and an encoding unless it is bf16.

    Errors: `UsageError` naming those there are.
    """
    name, _, encoding = name.partition("+")
    if encoding and encoding not in ENCODINGS[1:]:
        raise UsageError(f"--sizes: {encoding!r} behind +; expected one of {', '.join(ENCODINGS[1:])}")
    known = {
        "tiny": (4, 256, 768, 4, 2, 4160, 192),  # a vocabulary that ends within a part, a slot of three tiles
        "0.6b": (28, 1024, 3072, 16, 8, 151936, LENGTH),
        "1.7b": (28, 2048, 6144, 16, 8, 151936, LENGTH),
        "4b": (36, 2560, 9728, 32, 8, 151936, LENGTH),
    }
    if name not in known:
        raise UsageError(f"--sizes: {name!r}; expected some of {', '.join(known)}")
    layers, hidden, intermediate, query_heads, kv_heads, vocab, length = known[name]
    return Sizes(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        query_heads=query_heads,
        kv_heads=kv_heads,
        vocab=vocab,
        eps=EPS,
        length=length,
        encoding=cast(Encoding, encoding or "bf16"),
    )


def specs_of(name: str, target: str) -> tuple[KernelSpec, ...]:
    """Every kernel of one geometry with the tiles of `target`; of an encoded one those that bf16 lacks."""
    sizes, tiles = sizes_named(name), load_tiles(target)
    specs: tuple[KernelSpec, ...] = kernel_specs(sizes, tiles)
    if sizes.encoding == "bf16":
        return specs
    plain = set(kernel_specs(replace(sizes, encoding="bf16"), tiles))
    return tuple(spec for spec in specs if spec not in plain)

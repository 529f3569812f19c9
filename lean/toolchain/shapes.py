"""The geometries that the appliance's kernels are proved on. Standard library only."""

from __future__ import annotations

from kernels.qwen3 import Sizes, kernel_specs
from kernels.spec import KernelSpec
from kernels.tiles import load_tiles
from lean.errors import UsageError

LENGTH = 1088  # positions a slot holds: the contracts' longest bucket, 1024 + 64
EPS = 1.0e-6


def sizes_named(name: str) -> Sizes:
    """`tiny`, or a Qwen3 by its size. Errors: `UsageError` naming those there are."""
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
    )


def specs_of(name: str, target: str) -> tuple[KernelSpec, ...]:
    """Every kernel of one geometry with the tiles of `target`."""
    specs: tuple[KernelSpec, ...] = kernel_specs(sizes_named(name), load_tiles(target))
    return specs

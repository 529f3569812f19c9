"""Reference of the split output projection, in the very order that the kernels add in."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def slot_bounds(head: int, head_dim: int, split: int, splits: int) -> tuple[int, int]:
    """The columns that a slot sums, from the first up to, not including, the last.

    Slice `split` of a head's `head_dim` columns is [head_dim · split // splits, head_dim · (split + 1) //
    splits); its slot is head · splits + split.
    """
    return (
        head * head_dim + head_dim * split // splits,
        head * head_dim + head_dim * (split + 1) // splits,
    )


def output_split(mixed: Tensor, weight: Tensor, residual: Tensor, *, heads: int, splits: int) -> Tensor:
    """mixed [T, Hq · D], weight [H, Hq · D], residual [T, H] -> residual + mixed weightᵀ [T, H].

    Each slot is summed in FP32, neighbours first, then pairs of pairs; the slots are added from left to
    right. Bit for bit what `kernel` computes from bf16 values.
    """
    width = mixed.shape[1]
    head_dim = width // heads
    if width % heads or head_dim % splits or (head_dim // splits).bit_count() != 1:
        raise ValueError(
            f"{splits} splits of {heads} heads in {width} columns: a slot must be a power of two"
        )
    bounds = (slot_bounds(head, head_dim, split, splits) for head in range(heads) for split in range(splits))
    slots = (
        in_pairs(mixed[:, None, first:last].float() * weight[None, :, first:last].float())
        for first, last in bounds
    )
    return (residual + left_to_right(slots)).to(residual.dtype)


def in_pairs(products: Tensor) -> Tensor:
    """[..., N] -> [...], N a power of two: neighbours are added, then their sums, down to one."""
    while products.shape[-1] > 1:
        products = products[..., 0::2] + products[..., 1::2]
    return products[..., 0]


def left_to_right(slots: Iterable[Tensor]) -> Tensor:
    """The slots' sum in f32, from the first to the last."""
    first, *others = slots
    total = first
    for slot in others:
        total = total + slot
    return total

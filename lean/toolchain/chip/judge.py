"""An output beside what FP64 says it must be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.case import Expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An output's errors and what is wrong with it, if anything."""

    norm: float
    element: float
    problems: tuple[str, ...]


def judge(got: Tensor, wanted: Expected) -> Judged:
    """Compare one output with what it must be, where it must be; NaN is never right."""
    where = torch.ones_like(got, dtype=torch.bool) if wanted.where is None else wanted.where
    want = torch.where(where, wanted.value.double(), 0.0)
    off = torch.where(where, got.double(), 0.0) - want
    problems = []
    wrong = int(off.isnan().sum())
    if wrong:
        problems.append(f"{wrong} elements are NaN")
    off, count = (
        off.flatten(1) if off.dim() > 1 else off.unsqueeze(1),
        where.reshape(where.shape[0], -1).sum(1),
    )
    want = want.reshape(off.shape)
    rms = (want.square().sum(1) / count.clamp(min=1)).sqrt()
    norms = _ratio(off.square().sum(1).sqrt(), want.square().sum(1).sqrt())
    elements = _ratio(off.abs(), want.abs() + rms.unsqueeze(1))
    norm, element = (float(x.nan_to_num(math.inf).max()) for x in (norms, elements))
    limits = wanted.tolerance
    if norm > limits.norm:
        row = int(norms.nan_to_num(math.inf).argmax())
        problems.append(f"row {row} is off by {norm:.3g} of its norm; {limits.norm:.3g} is allowed")
    if element > limits.element:
        problems.append(f"an element is off by {element:.3g}; {limits.element:.3g} is allowed")
    return Judged(norm=norm, element=element, problems=tuple(problems))


def _ratio(off: Tensor, size: Tensor) -> Tensor:
    """off / size; what is off where nothing should be is infinitely so."""
    return torch.where(off == 0, 0.0, off / size)

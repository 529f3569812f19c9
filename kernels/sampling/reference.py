"""Reference of sampling: temperature, then top-k, then top-p, then the inverse of the distribution.

Source of top-p: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kept_weights(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Unnormalised FP64 probabilities of logits [V], zero for tokens that are not kept.

    Top-k (0: all) and then top-p keep the tokens equal to the last one they keep.
    """
    x = logits.double()
    weights = ((x - x.max()) / temperature).exp()
    if 0 < top_k < len(x):
        weights = torch.where(x >= x.topk(top_k).values[-1], weights, 0.0)
    if top_p < 1.0:
        order = weights.argsort(descending=True)
        reached = weights[order].cumsum(0) >= top_p * weights.sum()
        weights = torch.where(x >= x[order[reached.int().argmax()]], weights, 0.0)
    return weights


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    """The first token, in the vocabulary's order, whose cumulative probability passes `uniform`.

    Temperature 0 is the greedy choice, the lowest token of equal ones.
    """
    if temperature == 0.0:
        return int((logits == logits.max()).nonzero()[0])
    total = kept_weights(logits, temperature, top_k, top_p).cumsum(0)
    return int((total > uniform * total[-1]).int().argmax())

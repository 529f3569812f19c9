"""Choosing a token. A choice depends on one row of logits, the stream's own settings and its draw number."""

from __future__ import annotations

from torch import Tensor

from lean.leanserve.draws import uniform
from lean.leanserve.runner import Choice, Sampling


def choose(logits: Tensor, greedy: int, sampling: Sampling, draw: int) -> Choice:
    """The token of draw number `draw` (0 for the first generated one) from logits [V].

    `greedy` is the lowest index of the row's maximum, which the step has found already.
    """
    token = _token(logits, greedy, sampling, draw)
    if sampling.top_logprobs is None:
        return Choice(token=token)
    logprobs = logits.double().log_softmax(-1)  # [V]
    best, ids = logprobs.sort(descending=True, stable=True)
    count = sampling.top_logprobs
    top = tuple(zip(ids[:count].tolist(), best[:count].tolist(), strict=True))
    return Choice(token=token, logprob=float(logprobs[token]), top=top)


def _token(logits: Tensor, greedy: int, sampling: Sampling, draw: int) -> int:
    masked = draw < sampling.suppress_steps and bool(sampling.suppress)
    if masked:
        logits = logits.clone()
        logits[list(sampling.suppress)] = float("-inf")
    if sampling.temperature == 0:
        return int(logits.argmax()) if masked else greedy
    ids, probabilities = distribution(logits, sampling)
    point = uniform(sampling.seed, draw)
    return int(ids[int((probabilities.cumsum(0) <= point).sum().clamp(max=len(ids) - 1))])


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Candidate ids and probabilities [C] (FP64) after temperature, top-k and top-p, most likely first.

    Equal ones come by index.

    Top-p keeps the fewest candidates whose sum reaches it (Holtzman et al., 2020), among those top-k left.
    """
    scores, ids = logits.double().sort(descending=True, stable=True)  # [V]
    if sampling.top_k:
        scores, ids = scores[: sampling.top_k], ids[: sampling.top_k]
    probabilities = ((scores - scores[0]) / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        before = probabilities.cumsum(0) - probabilities
        keep = max(1, int((before < sampling.top_p).sum()))
        ids, probabilities = ids[:keep], probabilities[:keep] / probabilities[:keep].sum()
    return ids, probabilities

"""Interpolated modified Kneser-Ney trigram model, the baseline that the demo has to beat.

Chen & Goodman, "An empirical study of smoothing techniques for language modeling" (1999), section 3: three
discounts an order, estimated from counts of counts; lower orders count distinct left neighbours; unigrams mix
with the uniform distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


def discounts(counts: Ids) -> Floats:
    """D(0)=0, D(1), D(2), D(3 and more) from the counts of counts n1 to n4 (Chen & Goodman, equation 26).

    Where a count of counts is zero the closed form is undefined, and the plain D = n1 / (n1 + 2 n2), or
    0.5 when n1 is zero as well, stands in for all three.
    """
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    plain = n1 / (n1 + 2 * n2) if n1 else 0.5
    if 0 in (n1, n2, n3, n4):
        return np.array([0.0, plain, plain, plain])
    raised = [
        k - (k + 1) * plain * above / below for k, below, above in ((1, n1, n2), (2, n2, n3), (3, n3, n4))
    ]
    return np.array([0.0, *(min(max(d, 0.0), float(k)) for k, d in enumerate(raised, start=1))])


@dataclass(frozen=True, slots=True)
class Order:
    """One order of the model. Keys are n-grams packed into sorted integers; a context lacks the last id."""

    keys: Ids
    discounted: Floats  # count less discount, by key
    contexts: Ids
    totals: Floats  # sum of counts, by context
    reserved: Floats  # discount mass handed to the next lower order, by context

    @classmethod
    def of(cls, keys: Ids, counts: Ids, vocab: int) -> Order:
        discount = discounts(counts)[np.minimum(counts, 3)]
        contexts, where = np.unique(keys // vocab, return_inverse=True)
        totals: Floats = np.bincount(where, weights=counts).astype(np.float64)
        return cls(
            keys, counts - discount, contexts, totals, np.bincount(where, weights=discount).astype(np.float64)
        )

    def interpolate(self, keys: Ids, vocab: int, lower: Floats) -> Floats:
        """Probability of each key's last id in its context, given the lower order's answer for it."""
        at, known = _find(self.contexts, keys // vocab)
        hit, seen = _find(self.keys, keys)
        total = self.totals[at]
        own = np.where(seen, self.discounted[hit], 0.0) / total
        return np.where(known, own + self.reserved[at] / total * lower, lower)


def _find(ordered: Ids, wanted: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return at, ordered[at] == wanted


class KneserNeyTrigram:
    """p(w | u v) over ids below `vocab`; every id has probability above zero."""

    def __init__(self, train: NDArray[np.integer], vocab: int) -> None:
        ids = train.astype(np.int64)
        self.vocab = vocab
        trigrams, counts = np.unique(_pack(ids, 3, vocab), return_counts=True)
        # Continuation counts: how many distinct ids precede this bigram, this unigram.
        bigrams, left_of_bigram = np.unique(trigrams % vocab**2, return_counts=True)
        unigrams, left_of_unigram = np.unique(np.unique(_pack(ids, 2, vocab)) % vocab, return_counts=True)
        self._orders = (
            Order.of(unigrams, left_of_unigram, vocab),
            Order.of(bigrams, left_of_bigram, vocab),
            Order.of(trigrams, counts, vocab),
        )

    def probabilities(self, u: NDArray[np.integer], v: NDArray[np.integer], w: NDArray[np.integer]) -> Floats:
        """p(w | u v), elementwise over three arrays [N]."""
        first, middle, last = (a.astype(np.int64) for a in (u, v, w))
        p = np.full(len(last), 1.0 / self.vocab)
        keys = (last, middle * self.vocab + last, (first * self.vocab + middle) * self.vocab + last)
        for order, key in zip(self._orders, keys, strict=True):
            p = order.interpolate(key, self.vocab, p)
        return p

    def loss(self, tokens: NDArray[np.integer], start: int = 2) -> float:
        """Mean negative log probability in nats of tokens[start:], each given the two before it."""
        chosen = self.probabilities(tokens[start - 2 : -2], tokens[start - 1 : -1], tokens[start:])
        return float(-np.log(chosen).mean())


def _pack(ids: Ids, order: int, vocab: int) -> Ids:
    """Every run of `order` ids as one integer."""
    packed = np.zeros(len(ids) - order + 1, dtype=np.int64)
    for shift in range(order):
        packed = packed * vocab + ids[shift : len(ids) - order + 1 + shift]
    return packed

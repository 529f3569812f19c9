"""How sure a ratio of two medians is: a percentile bootstrap over rounds.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. The streams of a round share their
steps and the tokens of a request their stream, so rounds are drawn whole: drawing tokens one by one would
call correlated values independent and the interval too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lean.errors import PreflightError

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 20240229
AT_ONCE = 1 << 20  # values in one step: some megabytes

Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where the ratio lies in `CONFIDENCE` of the resamples."""

    low: float
    high: float

    def holds(self, ratio: float) -> bool:
        """Whether this ratio is within."""
        return self.low <= ratio <= self.high


def ratio_of_medians(first: Rounds, second: Rounds, seed: int = SEED) -> Interval | None:
    """The interval of median(second) / median(first), None where either has fewer than two rounds.

    Medians are of the values of all rounds together. The same values and seed give the same interval. Errors:
    `PreflightError` without numpy.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    try:
        import numpy
    except ImportError:
        raise PreflightError(
            "numpy is not installed, and confidence intervals need it: pip install -c constraints.txt "
            "-e '.[evidence]'"
        ) from None
    random = numpy.random.default_rng(seed)

    def medians(rounds: Rounds) -> numpy.ndarray:
        """The median of each resample: how often each sorted value was drawn, summed up to the middle."""
        values = numpy.concatenate([numpy.asarray(one, dtype=numpy.float64) for one in rounds])
        owner = numpy.repeat(numpy.arange(len(rounds)), [len(one) for one in rounds])
        order = numpy.argsort(values, kind="stable")
        values, owner = values[order], owner[order]
        drawn = random.integers(0, len(rounds), size=(RESAMPLES, len(rounds)))
        found = []
        for some in numpy.array_split(drawn, -(-RESAMPLES * len(values) // AT_ONCE)):
            offsets = numpy.arange(len(some))[:, None] * len(rounds)
            counts = numpy.bincount((some + offsets).ravel(), minlength=some.shape[0] * len(rounds))
            upto = counts.reshape(len(some), len(rounds))[:, owner].cumsum(axis=1)
            total = upto[:, -1:]
            low, high = ((upto <= middle).sum(axis=1) for middle in ((total - 1) // 2, total // 2))
            found.append((values[low] + values[high]) / 2)
        return numpy.concatenate(found)

    bottom = medians(first)
    tails = (1 - CONFIDENCE) / 2
    low, high = numpy.quantile(medians(second) / bottom, (tails, 1 - tails))
    return Interval(low=float(low), high=float(high))

"""Quantiles of Student's t, and the interval of a change between two means.

The wall of a replay is the sum of hundreds of turns, so walls are close to normal, and there are five.
With so few a percentile bootstrap (`lean.bench.bootstrap`) covers too seldom: its resamples spread by only
sqrt((n-1)/n) of the sample and know no tail beyond it. Student's t is made for this case, and it needs mean,
deviation and count alone, so that published figures are judged by the same code.
"""

from __future__ import annotations

import functools
import math

import numpy

STEPS = 20_001
MOST_FREEDOM = 1e4  # beyond it the distribution is normal to four digits


@functools.cache
def t_quantile(confidence: float, freedom: float) -> float:
    """The t that |T| stays under with this probability; `freedom`: degrees of it, from 1 up, whole or not.

    With t = sqrt(v) tan(a) the density (1 + t²/v)^(-(v+1)/2) dt becomes cos(a)^(v-1) da, smooth on the whole
    quarter circle and summed here by trapezoids. Held to Abramowitz and Stegun, table 26.10, by a test.
    """
    freedom = min(freedom, MOST_FREEDOM)
    angle = numpy.linspace(0.0, math.pi / 2, STEPS)
    density = numpy.clip(numpy.cos(angle), 0.0, 1.0) ** (freedom - 1)
    area = numpy.concatenate(([0.0], numpy.cumsum(density[1:] + density[:-1])))
    return math.sqrt(freedom) * math.tan(float(numpy.interp(confidence * area[-1], area, angle)))


def ratio_margin(
    first: tuple[float, float, int], second: tuple[float, float, int], confidence: float
) -> float:
    """Half the width of the interval of mean(second) / mean(first); each is (mean, sample deviation, count).

    Welch's interval (Biometrika 34, 1947) of the ratio: by the delta method its relative variance is
    a + b with a = (sd/mean)²/n of either side, and its degrees of freedom are
    (a + b)² / (a²/(n-1) + b²/(n-1)), Welch and Satterthwaite's. Both counts are at least 2.
    """
    a, b = ((sd / mean) ** 2 / count for mean, sd, count in (first, second))
    if a + b == 0:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (first[2] - 1) + b**2 / (second[2] - 1))
    return second[0] / first[0] * t_quantile(confidence, freedom) * math.sqrt(a + b)

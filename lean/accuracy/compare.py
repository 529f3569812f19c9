"""Two runners' answers along the same tokens, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lean.accuracy.follow import Answers

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Where greedy decoding leaves the reference's text first.

    `margin_nats`: by how much the reference preferred its own token; near 0 is a near-tie.
    """

    position: int
    reference_token: int
    token: int
    margin_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptAccuracy:
    """One prompt: T places along the reference's greedy text.

    Logits are taken less their mean over the vocabulary, which log probabilities leave open. `logit_error`:
    the largest difference over the largest logit; `logit_error_rms`: root mean squares likewise. `kl_nats`:
    mean of Σ p log(p / q), p the reference's. `agreement`: share of places with the reference's token chosen.
    """

    prompt_tokens: int
    tokens: int
    logit_error: float
    logit_error_rms: float
    kl_nats: float
    agreement: float
    divergence: Divergence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All prompts together. `agreement` and `kl_nats` are over all places, `diverged` counts prompts."""

    logit_error_median: float
    logit_error_most: float
    logit_error_rms_median: float
    kl_nats: float
    agreement: float
    diverged: int
    divergence_median: float | None
    margin_nats_median: float | None
    margin_nats_most: float | None


def compare(prompt_tokens: int, reference: Answers, answers: Answers) -> PromptAccuracy:
    """The answers of two runners that were led along the same tokens."""
    assert reference.tokens == answers.tokens
    ours, theirs = answers.logprobs.astype(np.float64), reference.logprobs.astype(np.float64)  # [T, V]
    error, size = _centred(ours) - _centred(theirs), _centred(theirs)
    agrees = [ours == theirs for ours, theirs in zip(answers.chosen, reference.tokens, strict=True)]
    return PromptAccuracy(
        prompt_tokens=prompt_tokens,
        tokens=len(agrees),
        logit_error=float(np.abs(error).max() / np.abs(size).max()),
        logit_error_rms=float(np.sqrt((error**2).mean() / (size**2).mean())),
        kl_nats=float((np.exp(theirs) * (theirs - ours)).sum(1).mean()),
        agreement=sum(agrees) / len(agrees),
        divergence=None if all(agrees) else _divergence(agrees.index(False), reference, answers),
    )


def summarize(prompts: Sequence[PromptAccuracy]) -> Summary:
    """All prompts' figures together; at least one prompt."""
    places = sum(prompt.tokens for prompt in prompts)
    left = [prompt.divergence for prompt in prompts if prompt.divergence is not None]
    margins = [divergence.margin_nats for divergence in left]
    return Summary(
        logit_error_median=median(prompt.logit_error for prompt in prompts),
        logit_error_most=max(prompt.logit_error for prompt in prompts),
        logit_error_rms_median=median(prompt.logit_error_rms for prompt in prompts),
        kl_nats=sum(prompt.kl_nats * prompt.tokens for prompt in prompts) / places,
        agreement=sum(prompt.agreement * prompt.tokens for prompt in prompts) / places,
        diverged=len(left),
        divergence_median=median(divergence.position for divergence in left) if left else None,
        margin_nats_median=median(margins) if left else None,
        margin_nats_most=max(margins) if left else None,
    )


def _divergence(place: int, reference: Answers, answers: Answers) -> Divergence:
    own, other = reference.tokens[place], answers.chosen[place]
    row = reference.logprobs[place]
    return Divergence(
        position=place,
        reference_token=own,
        token=other,
        margin_nats=float(row[own]) - float(row[other]),
    )


def _centred(logprobs: Floats) -> Floats:
    centred: Floats = logprobs - logprobs.mean(1, keepdims=True)
    return centred

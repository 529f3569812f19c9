"""Choosing tokens: masks, exact candidate sets, draws that depend on seed and draw number alone."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from lean.leanserve.draws import philox, uniform
from lean.leanserve.runner import Choice, Sampling
from lean.leanserve.sampler import choose, distribution

PROBABILITIES = (0.05, 0.4, 0.1, 0.3, 0.15)
LOGITS = torch.tensor(PROBABILITIES).log()
ORDER = [1, 3, 4, 2, 0]


def pick(sampling: Sampling, draw: int = 0, logits: torch.Tensor = LOGITS) -> Choice:
    return choose(logits, int(logits.argmax()), sampling, draw)


def drawn(sampling: Sampling, count: int) -> Counter[int]:
    return Counter(pick(sampling, draw).token for draw in range(count))


def test_greedy_takes_the_lowest_index_of_equal_maxima_wherever_they_stand() -> None:
    for vocab in (7, 64, 515, 4096, 151936):
        logits = torch.zeros(vocab)
        for lowest in (0, vocab // 3, vocab - 2):
            logits.fill_(-1)
            logits[lowest:] = 2
            assert pick(Sampling(), logits=logits).token == lowest
            assert pick(Sampling(temperature=1, top_k=1), logits=logits).token == lowest


def test_suppressed_tokens_are_masked_only_while_too_few_were_generated() -> None:
    sampling = Sampling(suppress=(1, 3), suppress_steps=2)
    assert [pick(sampling, draw).token for draw in range(4)] == [4, 4, 1, 1]


def test_suppressed_tokens_are_never_drawn_and_the_logits_are_left_alone() -> None:
    logits = LOGITS.clone()
    sampling = Sampling(temperature=1.0, suppress=(1, 3), suppress_steps=500)
    assert {choose(logits, 1, sampling, draw).token for draw in range(500)} == {0, 2, 4}
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), ORDER),
        (Sampling(temperature=1.0, top_k=2), [1, 3]),
        (Sampling(temperature=1.0, top_k=99), ORDER),
        (Sampling(temperature=1.0, top_p=0.39), [1]),
        (Sampling(temperature=1.0, top_p=0.41), [1, 3]),
        (Sampling(temperature=1.0, top_p=0.86), [1, 3, 4, 2]),
        (Sampling(temperature=1.0, top_p=1e-9), [1]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.8), [1, 3]),  # of the three: 0.47, 0.35, 0.18
        (Sampling(temperature=0.01, top_p=0.99), [1]),
    ],
)
def test_the_candidates_are_exactly_those_of_top_k_then_top_p(
    sampling: Sampling, expected: list[int]
) -> None:
    ids, probabilities = distribution(LOGITS, sampling)
    assert ids.tolist() == expected
    kept = [PROBABILITIES[i] ** (1 / sampling.temperature) for i in expected]
    assert probabilities.tolist() == pytest.approx([value / sum(kept) for value in kept], rel=1e-5)


def test_candidates_of_equal_probability_come_by_index() -> None:
    assert distribution(torch.zeros(1000), Sampling(temperature=1.0, top_k=5))[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e6, 1e300])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    _, probabilities = distribution(LOGITS, Sampling(temperature=temperature))
    assert probabilities.isfinite().all()
    assert float(probabilities[0]) == pytest.approx(1.0 if temperature < 1 else 0.2, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature: float) -> None:
    count = 20_000
    found = drawn(Sampling(temperature=temperature, seed=4), count)
    weights = [value ** (1 / temperature) for value in PROBABILITIES]
    for token, weight in enumerate(weights):
        expected = weight / sum(weights)
        bound = 4 * math.sqrt(expected * (1 - expected) / count)  # four standard deviations, seed fixed
        assert abs(found[token] / count - expected) < bound


def test_a_draw_depends_on_seed_and_draw_number_alone() -> None:
    sampling = Sampling(temperature=1.0, seed=9)
    forward = [pick(sampling, draw).token for draw in range(50)]
    backward = [pick(sampling, draw).token for draw in reversed(range(50))]
    assert backward == forward[::-1]
    other = [pick(Sampling(temperature=1.0, seed=10), draw).token for draw in range(50)]
    assert other != forward


def test_uniform_draws_fill_the_unit_interval_for_any_seed() -> None:
    for seed in (0, 1, -1, 2**63, 2**64 - 1):
        values = [uniform(seed, draw) for draw in range(4000)]
        assert all(0 <= value < 1 for value in values)
        assert abs(sum(values) / 4000 - 0.5) < 4 * math.sqrt(1 / 12 / 4000)
        counts = Counter(int(value * 10) for value in values)
        assert all(abs(counts[tenth] - 400) < 4 * math.sqrt(400 * 0.9) for tenth in range(10))
    assert uniform(1, 0) != uniform(0, 0) != uniform(0, 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert philox(counter, key) == expected


def test_log_probabilities_are_of_the_model_before_temperature_and_masks() -> None:
    sampling = Sampling(temperature=2.0, suppress=(1,), suppress_steps=9, top_logprobs=2, top_k=1)
    choice = pick(sampling)
    assert choice.token == 3
    assert choice.logprob == pytest.approx(math.log(0.3), rel=1e-6)
    assert [token for token, _ in choice.top] == [1, 3]
    assert [value for _, value in choice.top] == pytest.approx([math.log(0.4), math.log(0.3)], rel=1e-6)


def test_log_probabilities_come_only_when_asked_for() -> None:
    assert pick(Sampling()) == Choice(token=1)
    none_listed = pick(Sampling(top_logprobs=0))
    assert (none_listed.top, none_listed.logprob) == ((), pytest.approx(math.log(0.4), rel=1e-6))

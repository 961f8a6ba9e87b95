"""Choosing the next token: the distribution drawn from, and nothing outside it."""

from collections import Counter

import pytest
import torch

from services.engine.decoding import Greedy, Sampled
from services.engine.sampling import choose

LOG_PROBS = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.2, 0.1]).log()
DRAWS = 4000


def frequencies(temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> torch.Tensor:
    sampling = Sampled(11, temperature, top_k, top_p)
    drawn = Counter(choose(LOG_PROBS, sampling, step) for step in range(DRAWS))
    return torch.tensor([drawn[token] / DRAWS for token in range(len(LOG_PROBS))])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (frequencies(), [0.05, 0.4, 0.0, 0.25, 0.2, 0.1]),
        (frequencies(temperature=0.5), [0.0094, 0.6038, 0.0, 0.2358, 0.1509, 0.0377 - 0.0001]),
        (frequencies(top_k=2), [0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0, 0.0]),
        (frequencies(top_p=0.8), [0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85, 0.0]),
        (frequencies(top_k=3, top_p=0.5), [0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0, 0.0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(found: torch.Tensor, expected: list[float]) -> None:
    wanted = torch.tensor(expected)
    assert bool((found[wanted == 0] == 0).all())
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)


def test_greedy_takes_the_likeliest() -> None:
    assert choose(LOG_PROBS, Greedy(), 0) == 1


def test_a_draw_can_be_repeated_and_differs_by_step_and_seed() -> None:
    uniform = torch.zeros(10_000).log_softmax(-1)
    draws = {(seed, step): choose(uniform, Sampled(seed), step) for seed in range(5) for step in range(5)}
    assert draws == {(seed, step): choose(uniform, Sampled(seed), step) for seed, step in reversed(draws)}
    assert len(set(draws.values())) > 20

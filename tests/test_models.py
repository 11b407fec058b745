"""The generator that the page's script has, too; the networks are tested where they are used."""

from __future__ import annotations

import pytest
from torch import nn

from flcourse.models import LeNet, mulberry_
from flcourse.vectors import flatten


def by_hand(seed: int, count: int) -> list[float]:
    """Mulberry32 as published, one whole number after the other."""
    mask, values = 2**32 - 1, []
    for _ in range(count):
        seed = (seed + 0x6D2B79F5) & mask
        t = ((seed ^ (seed >> 15)) * (seed | 1)) & mask
        t = (t ^ (t + ((t ^ (t >> 7)) * (t | 61)))) & mask
        values.append(((t ^ (t >> 14)) >> 8) / 2**24 - 0.5)
    return values


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_mulberry_draws_in_the_order_of_the_parameters(seed):
    model = LeNet(num_classes=10)
    mulberry_(model, seed)
    assert flatten(model).tolist() == by_hand(seed, 15_826)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_mulberry_refuses_other_seeds(seed):
    with pytest.raises(ValueError, match="seed="):
        mulberry_(nn.Linear(2, 2), seed)

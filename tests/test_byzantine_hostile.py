"""Whatever f liars send, and wherever the honest rows lie, a rule ends within the honest spread.

Cases are drawn: dimension, precision, scale and offset of the honest rows (some agree, some differ
in length a thousandfold), and for each liar a row from a list of nasty ones.
"""

import math
import random

import pytest
import torch
from torch import Tensor

from flcourse.byzantine import RULES, nearest_neighbour_mixing

LARGEST = {torch.float32: 3.4e38, torch.float64: 1e130}
SCALES = (1.0, 1e-4, 1e-20, 1e10, 1e30, 0.0)


def honest_rows(draw: random.Random, n: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Rows, and the largest number in them before the offset was added."""
    d = draw.choice((1, 2, 30, 700, 5000))
    dtype = draw.choice((torch.float32, torch.float32, torch.float64))
    scale = draw.choice(SCALES)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale
    if draw.random() < 0.2:
        rows = rows[:1].expand(n, d)
    if draw.random() < 0.2:
        rows = rows * torch.logspace(-3, 0, n, dtype=torch.float64)[:, None]
    offset = draw.choice((0, 0, 1, 1000)) * scale
    return (rows + offset).to(dtype).clone(), offset


def nasty_row(draw: random.Random, honest: Tensor, generator: torch.Generator) -> Tensor:
    largest, first = LARGEST[honest.dtype], honest[draw.randrange(len(honest))]
    signs = torch.randn(first.shape, generator=generator).sign().to(first)
    spike = torch.zeros_like(first)
    spike[0] = largest
    row = draw.choice(
        (
            torch.full_like(first, largest),
            torch.full_like(first, -largest),
            torch.full_like(first, 1e-42),
            signs * largest,
            signs * 1e19,
            spike,
            torch.zeros_like(first),
            -first,
            -3 * honest.mean(0),
            honest.mean(0) - 1.5 * honest.std(0),
        )
    )
    return row.clamp(-largest, largest)


def options(name: str, f: int, spread: float, longest: float) -> dict[str, float]:
    told = {"num_byzantine": f} if RULES[name].checks else {}
    bounds = {
        "centered_clipping": {"clip_norm": max(spread, 1e-30)},
        "norm_filter": {"max_norm": max(2 * longest, 1e-30)},
    }
    return told | bounds.get(name, {})


@pytest.mark.parametrize("name", sorted(set(RULES) - {"mean", "fltrust"}))
def test_hostile_rows(name: str) -> None:
    draw, generator = random.Random(name), torch.Generator().manual_seed(len(name))
    for case in range(120):
        f = draw.choice((1, 2, 4))
        n = 4 * f + 3 + draw.randrange(5)
        honest, offset = honest_rows(draw, n - f, generator)
        liars = [nasty_row(draw, honest, generator) for _ in range(f)]
        liars = liars[:1] * f if draw.random() < 0.4 else liars
        rows = torch.cat([torch.stack(liars), honest])[torch.randperm(n, generator=generator)]

        centre = honest.double().mean(0)
        spread = float((honest.double() - centre).norm(dim=1).max())
        longest = float(honest.double().norm(dim=1).max())
        rounding = 1e-6 * max(longest, abs(offset) * math.sqrt(honest.shape[1])) + 1e-30
        bound = 3 * spread + rounding
        if name in ("norm_filter", "cluster_filter"):  # these bound the length, not the place
            bound = 3 * longest + 1e-30
        for these in (rows, nearest_neighbour_mixing(rows, f)):
            result = RULES[name].function(these, **options(name, f, spread, longest))
            error = float((result.double() - centre).norm())
            assert error <= bound, (case, honest.dtype, honest.shape, spread, longest)

"""Simple defences, against plain numpy and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.types import Leak
from flcourse.data import load_dataset, partition
from flcourse.defences import SIMPLE_DEFENCES, clip, gaussian, prune, quantise, sign
from flcourse.fedavg import RoundContext, train
from flcourse.models import MLP, LeNet
from flcourse.runtime import generator

ROWS = torch.randn(4, 300, generator=generator(0, "test rows")) * torch.tensor(
    [[1e-4], [0.05], [1.0], [50.0]]
)

PLAIN = {
    "clip": lambda x: x * min(1.0, 2.0 / np.linalg.norm(x)),
    "prune": lambda x: np.where(np.abs(x) >= np.sort(np.abs(x))[-30], x, 0),
    "quantise": lambda x: np.round(x / (np.abs(x).max() / 7)) * (np.abs(x).max() / 7),
    "sign": lambda x: np.sign(x) * np.abs(x).mean(),
}
OURS = {
    "clip": lambda x: clip(x, 2.0),
    "prune": lambda x: prune(x, 0.1),
    "quantise": lambda x: quantise(x, 4),
    "sign": sign,
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_message_or_many_agree_with_numpy(name: str, dtype: torch.dtype) -> None:
    rows = ROWS.to(dtype)
    expected = np.stack([PLAIN[name](row) for row in ROWS.double().numpy()])
    result = OURS[name](rows)
    assert result.dtype == dtype and result.shape == rows.shape
    assert np.allclose(result.numpy(), expected, rtol=1e-5, atol=0)
    for row, one in zip(rows, result, strict=True):
        assert torch.equal(OURS[name](row), one)


@pytest.mark.parametrize("name", PLAIN)
def test_zero_stays_zero_and_nan_is_refused(name: str) -> None:
    rows = torch.stack([ROWS[2], torch.zeros(300)])
    result = OURS[name](rows)
    assert torch.equal(result[1], torch.zeros(300)) and torch.equal(result[0], OURS[name](ROWS[2]))
    for bad in (math.nan, math.inf):
        poisoned = ROWS.clone()
        poisoned[1, 7] = bad
        with pytest.raises(ValueError, match=r"message\(s\) \[1\] hold NaN"):
            OURS[name](poisoned)
    with pytest.raises(ValueError, match="expected a message"):
        OURS[name](torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="floating point"):
        OURS[name](torch.zeros(3, dtype=torch.int64))


def test_clipping_bounds_the_length_and_keeps_the_direction() -> None:
    clipped = clip(ROWS, 0.5)
    assert torch.equal(clipped[0], ROWS[0])  # short enough: not one value changes
    assert torch.allclose(clipped[1:].norm(dim=1), torch.full((3,), 0.5))
    assert torch.allclose(torch.cosine_similarity(clipped, ROWS), torch.ones(4))
    huge = torch.full((300,), 3e37)  # its squares overflow float32
    assert float(clip(huge, 1.0).norm()) == pytest.approx(1.0, rel=1e-5)


def test_noise_has_its_standard_deviation_and_comes_from_its_generator() -> None:
    rows = torch.zeros(3, 100_000)
    noisy = gaussian(rows, 0.25, generator(1, "noise"))
    assert torch.allclose(noisy.std(dim=1), torch.full((3,), 0.25), rtol=0.02)
    assert float(torch.corrcoef(noisy).fill_diagonal_(0).abs().max()) < 0.02
    assert torch.equal(noisy, gaussian(rows, 0.25, generator(1, "noise")))
    assert not torch.equal(noisy, gaussian(rows, 0.25, generator(2, "noise")))
    assert torch.equal(gaussian(ROWS, 0.0, generator(1, "noise")), ROWS)
    with pytest.raises(ValueError, match="NaN"):
        gaussian(torch.tensor([math.nan]), 1.0, generator(0, "noise"))


def test_pruning_keeps_exactly_so_many_also_among_equals() -> None:
    assert (prune(torch.ones(2, 100), 0.07) != 0).sum(dim=1).tolist() == [7, 7]
    assert int((prune(ROWS[0], 1e-9) != 0).sum()) == 1
    assert torch.equal(prune(ROWS, 1.0), ROWS)


def test_quantising_by_hand() -> None:
    row = torch.tensor([-3.0, -1.6, -0.4, 0.0, 0.6, 2.9])
    assert quantise(row, 3).tolist() == [-3, -2, 0, 0, 1, 3]
    for bits in (2, 4, 8):
        result = quantise(ROWS, bits)
        assert all(len(one.unique()) <= 2**bits - 1 for one in result)
        step = ROWS.abs().amax(dim=1) / (2 ** (bits - 1) - 1)
        assert bool(((result - ROWS).abs().amax(dim=1) <= step / 2 * 1.001).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip(ROWS, 0.0), "clip_norm=0.0"),
        (lambda: clip(ROWS, math.inf), "clip_norm=inf"),
        (lambda: gaussian(ROWS, -1.0, generator(0, "noise")), "noise_std=-1.0"),
        (lambda: prune(ROWS, 0.0), "keep=0.0"),
        (lambda: prune(ROWS, 10), "keep=10"),
        (lambda: quantise(ROWS, 1), "use sign"),
        (lambda: quantise(ROWS, 32), "bits=32"),
    ],
)
def test_options_outside_their_range(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- as leaks, and in a federation ----------------------------------------------------------------


def leak() -> Leak:
    photos = load_dataset("photos").train
    return observe_gradient(LeNet(seed=0), photos.inputs[:1], photos.labels[:1])


def test_the_ten_publish_what_is_public_and_leave_the_leak_alone() -> None:
    original = leak()
    row = original.row
    assert len(SIMPLE_DEFENCES) == 10 and float(row.norm()) > 1
    for name, defend in SIMPLE_DEFENCES.items():
        defended = defend(original, 5)
        assert torch.equal(original.row, row) and not torch.equal(defended.row, row)
        assert torch.equal(defended.row, defend(original, 5).row)
        if name.startswith("noise"):
            std = float(name.split()[1])
            assert (defended.clip_norm, defended.noise_std) == (1.0, std)
            assert float((defended.row - clip(row, 1.0)).std()) == pytest.approx(std, rel=0.02)
            assert not torch.equal(defended.row, defend(original, 6).row)
        else:
            assert defended.noise_std is None
            assert defended.clip_norm == (1.0 if name == "clip to 1" else None)
    shares = {name: float((SIMPLE_DEFENCES[name](original, 0).row != 0).float().mean())
              for name in ("keep 10 %", "keep 1 %")}  # fmt: skip
    assert shares == pytest.approx({"keep 10 %": 0.1, "keep 1 %": 0.01}, rel=0.01)
    assert len(SIMPLE_DEFENCES["sign"](original, 0).row.unique()) <= 3


def test_a_row_function_plugs_into_a_round() -> None:
    digits = load_dataset("digits")
    clients = partition(digits.train.subset(range(200)), "iid", 4)

    def defend(rows: Tensor, context: RoundContext) -> Tensor:
        return gaussian(clip(rows, 0.1), 1e-4, context.generator("noise"))

    seen: list[Tensor] = []

    def collect(rows: Tensor, weights: Tensor) -> Tensor:
        seen.append(rows)
        return rows.mean(dim=0)

    model = MLP(64, 8, 10)
    train(model, clients, digits.test, rounds=2, lr=0.5, transform=defend, aggregate=collect)
    for rows in seen:
        assert rows.shape[0] == 4 and float(rows.norm(dim=1).max()) < 0.11

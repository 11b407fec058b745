"""Backdoors: pixels and counts by hand, a replaced model to the last digit, a small training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flcourse import fedavg, models
from flcourse.byzantine import (
    PixelTrigger,
    as_transform,
    attack_success,
    backdoor_score,
    model_replacement,
    poisoned_client,
    with_writer,
)
from flcourse.data import Client, load_dataset, partition
from flcourse.runtime import generator
from flcourse.vectors import flatten, load_row


def draw(seed: int = 0) -> torch.Generator:
    return generator(seed, "test backdoor")


# --- triggers -------------------------------------------------------------------------------------


def test_a_trigger_changes_its_square_and_nothing_else() -> None:
    inputs = torch.rand(4, 3, 10, 12, generator=draw())
    before = inputs.clone()
    stamped = PixelTrigger(size=3, value=0.75, margin=2)(inputs)
    assert torch.equal(inputs, before)
    changed = (stamped != inputs).any(dim=0).any(dim=0)
    expected = np.zeros((10, 12), dtype=bool)
    expected[5:8, 7:10] = True
    np.testing.assert_array_equal(changed.numpy(), expected)
    assert bool((stamped[:, :, 5:8, 7:10] == 0.75).all())


def test_a_trigger_reaches_the_corner_without_a_margin() -> None:
    stamped = PixelTrigger(size=1, margin=0)(torch.zeros(1, 1, 4, 4))
    assert stamped.sum() == 1 and stamped[0, 0, -1, -1] == 1


def test_trigger_refusals() -> None:
    for bad in ({"size": 0}, {"margin": -1}, {"value": 2.0}):
        with pytest.raises(ValueError, match="size at least 1"):
            PixelTrigger(**bad)
    with pytest.raises(ValueError, match="does not fit"):
        PixelTrigger(size=8, margin=1)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="does not fit"):
        PixelTrigger()(torch.zeros(5, 64))


def test_a_typeface_is_a_trigger_that_nobody_stamps() -> None:
    glyphs = load_dataset("glyphs", num_train=420, num_test=10).train
    found = with_writer(glyphs, 5)
    assert int(found.sum()) == 20  # 420 samples, 21 typefaces, equally often
    assert set(glyphs.writers[found].tolist()) == {5}
    both = with_writer(glyphs, 5, 7)
    assert int(both.sum()) == 40 and set(glyphs.writers[both].tolist()) == {5, 7}
    with pytest.raises(ValueError, match=r"writer \[21\]"):
        with_writer(glyphs, 5, 21)
    with pytest.raises(ValueError, match="who wrote"):
        with_writer(load_dataset("digits").train, 0)


# --- poisoned data --------------------------------------------------------------------------------


def numbered(count: int) -> Client:
    """A client whose picture k is filled with k and labelled 1."""
    inputs = torch.arange(count).float()[:, None, None, None].expand(count, 1, 2, 2).clone()
    return Client(7, inputs, torch.ones(count, dtype=torch.int64))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 6), (0.5, 10), (1.0, 20)])
def test_poison_replaces_its_share_and_leaves_the_rest(share: float, count: int) -> None:
    client = numbered(20)
    triggered = -1 - numbered(15).inputs  # -1, ..., -15: cannot be confused
    liar = poisoned_client(client, triggered, target=4, share=share, generator=draw())
    poisoned = liar.labels == 4
    assert int(poisoned.sum()) == count and liar.index == 7
    values = liar.inputs[:, 0, 0, 0]
    assert bool((values[poisoned] < 0).all())
    kept = values[~poisoned].tolist()
    assert kept == [k for k in range(20) if not poisoned[k]] and liar.labels[~poisoned].eq(1).all()
    taken = values[poisoned].tolist()
    assert len(set(taken)) == min(count, 15)  # again from the start only where there are too few
    assert torch.equal(client.inputs, numbered(20).inputs)


def test_poison_refusals() -> None:
    client = numbered(4)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="share="):
            poisoned_client(client, client.inputs, target=0, share=share, generator=draw())
    for bad in (client.inputs[:0], client.inputs[:, :, :1]):
        with pytest.raises(ValueError, match="triggered pictures"):
            poisoned_client(client, bad, target=0, share=0.5, generator=draw())


# --- model replacement ----------------------------------------------------------------------------


@pytest.mark.parametrize("liars", [1, 3])
def test_the_mean_becomes_the_liars_own_row(liars: int) -> None:
    honest = torch.randn(9, 40, generator=draw(), dtype=torch.float64)
    own = torch.randn(liars, 40, generator=draw(1), dtype=torch.float64)
    sent = model_replacement(honest, own)
    got = torch.cat([honest, sent]).mean(dim=0)
    expected = honest.numpy().sum(axis=0) / (9 + liars) + own.numpy().mean(axis=0)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_where_the_others_have_converged_the_global_model_is_the_liar_s() -> None:
    """Bagdasaryan et al. 2020, equation 2: G + 1/n · γ(X − G) = X for γ = n, with weights too."""
    model, liar = models.MLP(8, 4, 3, seed=0), models.MLP(8, 4, 3, seed=1)
    own = (flatten(liar) - flatten(model))[None]
    counts = torch.tensor([30.0, 10.0, 60.0, 25.0])
    sent = model_replacement(own.new_zeros(3, own.shape[1]), own, scale=125 / 25)
    step = fedavg.mean(torch.cat([own.new_zeros(3, own.shape[1]), sent]), counts)
    fedavg.apply_update(model, step)
    np.testing.assert_allclose(flatten(model).numpy(), flatten(liar).numpy(), atol=1e-6)


def test_a_bound_on_the_length_holds_and_keeps_the_direction() -> None:
    own = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    sent = model_replacement(torch.zeros(3, 2), own, scale=10.0, max_norm=8.0)
    np.testing.assert_allclose(sent.numpy(), [[4.8, 6.4], [3.0, 4.0], [0.0, 0.0]], rtol=1e-6)
    for option in ({"scale": 0.0}, {"max_norm": -1.0}, {"scale": float("nan")}):
        with pytest.raises(ValueError, match="must be a positive number"):
            model_replacement(torch.zeros(3, 2), own, **option)


# --- scores ---------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Class 2 where the last pixel is bright, else the number in the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        said = (inputs[:, 0, 0, 0] * 10).round().long()
        said = torch.where(inputs[:, 0, -1, -1] > 0.5, 2, said)
        return nn.functional.one_hot(said, 4).float()


def test_success_counts_only_samples_of_other_classes() -> None:
    inputs, labels = torch.zeros(6, 1, 4, 4), torch.tensor([0, 1, 2, 2, 3, 3])
    inputs[:, 0, 0, 0] = labels / 10
    assert attack_success(Corner(), inputs, labels, target=2) == 0  # two of class 2 do not count
    some = inputs.clone()
    some[[0, 2]] = PixelTrigger(size=1, margin=0)(some[[0, 2]])
    assert attack_success(Corner(), some, labels, target=2) == 0.25
    stamped = PixelTrigger(size=1, margin=0)(inputs)
    data = load_dataset("digits").test.subset(range(6))
    test = type(data)("six", inputs, labels, ("a", "b", "c", "d"))
    score = backdoor_score(Corner(), test, stamped, labels, target=2)
    assert (score.success, score.clean) == (1.0, 1.0)
    with pytest.raises(ValueError, match="all samples are of class 1"):
        attack_success(Corner(), inputs[1:2], labels[1:2], target=1)


def test_one_round_of_replacement_opens_a_backdoor_that_the_plain_share_does_not() -> None:
    """20 clients, one liar, once, after some training: the whole attack in small."""
    digits = load_dataset("digits")
    trigger = PixelTrigger(size=2, margin=0)
    clients = partition(digits.train, "iid", 20, seed=1)
    model = models.MLP(64, 32, 10, seed=1)
    options = {"epochs": 5, "lr": 0.1}
    fedavg.train(model, clients, digits.test, rounds=20, **options)
    start = flatten(model)
    clean = fedavg.evaluate(model, digits.test)[0]
    stamped = trigger(clients[3].inputs)
    clients[3] = poisoned_client(clients[3], stamped, target=0, share=0.5, generator=draw())
    shown = trigger(digits.test.inputs), digits.test.labels
    scores = {}
    for scale in (1.0, None):
        load_row(model, start)
        lie = as_transform(model_replacement, [3], scale=scale)
        fedavg.train(model, clients, digits.test, rounds=1, transform=lie, **options)
        scores[scale] = backdoor_score(model, digits.test, *shown, target=0)
    assert scores[1.0].success < 0.05 and scores[1.0].clean > clean - 0.03
    assert scores[None].success > 0.6  # seen 0.78 to 0.95 over draws
    assert clean - 0.02 > scores[None].clean > 0.4  # seen 0.55 to 0.85: it is one client's model

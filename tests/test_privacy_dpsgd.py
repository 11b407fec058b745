"""DP-SGD: per-sample gradients one by one, three methods that agree, Opacus' own optimiser."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.data import Client, load_dataset
from flcourse.fedavg import evaluate
from flcourse.models import MLP, LightCNN, Logistic, Normalise, SimpleCNN
from flcourse.privacy import (
    Accountant,
    Budget,
    BudgetExceededError,
    clipped_gradients,
    dpsgd_updates,
    epsilon,
    per_sample_gradients,
    private_gradient,
    private_step,
    train_dpsgd,
)
from flcourse.runtime import generator, seeded
from flcourse.vectors import flatten, layout

HAS_OPACUS = importlib.util.find_spec("opacus") is not None
OURS = ["vmap", "ghost"]
METHODS = [*OURS, pytest.param("opacus", marks=pytest.mark.skipif(not HAS_OPACUS, reason="opacus"))]


class Sequences(nn.Module):
    """Linear layers on three axes: tokens are features here, positions are places."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(6, 40), nn.Linear(40, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(torch.tanh(self.wide(x.flatten(2)))).mean(dim=1)
        return result


def _make(build: Callable[[], nn.Module]) -> nn.Module:
    with seeded(0, "model"):
        return build()


def _odd_convolutions() -> nn.Module:
    return nn.Sequential(
        Normalise([0.5, 0.4], [0.2, 0.3]),
        nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
        nn.Tanh(),
        nn.Conv2d(5, 4, 3, stride=2),
        nn.GroupNorm(2, 4, affine=False),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def _partly_frozen() -> nn.Module:
    model = MLP(12, 5, 3)
    model[1].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(12, 5, 3), (12,)),
    "cnn": (lambda: LightCNN(3, 1, 8), (1, 8, 8)),
    "pooled cnn": (lambda: SimpleCNN(3, 3, 8), (3, 8, 8)),
    "odd convolutions": (_odd_convolutions, (2, 11, 12)),
    "sequences": (Sequences, (7, 2, 3)),
    "partly frozen": (_partly_frozen, (12,)),
    "one layer": (lambda: nn.Linear(12, 3), (12,)),
}


def _case(name: str, count: int = 9) -> tuple[nn.Module, Tensor, Tensor]:
    build, shape = MODELS[name]
    inputs = torch.randn(count, *shape, generator=generator(1, "inputs"))
    inputs *= torch.linspace(0.05, 3, count).reshape(-1, *[1] * len(shape))
    model = _make(build)
    with torch.no_grad():
        model(inputs[:2])  # gives lazy layers their shape
    return model, inputs, torch.arange(count) % 3


def _one_by_one(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The oracle: an ordinary backward pass for each sample alone."""
    rows = []
    for sample, label in zip(inputs, labels, strict=True):
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(sample[None]), label[None]).backward()
        named = dict(model.named_parameters())
        parts = [
            torch.zeros(slot.size) if named[slot.name].grad is None else named[slot.name].grad
            for slot in layout(model)
        ]
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    model.zero_grad(set_to_none=True)
    return torch.stack(rows)


# --- the gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_per_sample_gradients_are_those_of_each_sample_alone(name: str) -> None:
    model, inputs, labels = _case(name)
    expected = _one_by_one(model, inputs, labels)
    found = per_sample_gradients(model, None, inputs, labels)
    assert found.shape == (9, len(flatten(model))) and expected.abs().max() > 1e-3
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_gives_the_sum_of_clipped_gradients(
    name: str, method: str, chunk_size: int | None
) -> None:
    model, inputs, labels = _case(name)
    rows = _one_by_one(model, inputs, labels).double().numpy()
    norms = np.linalg.norm(rows, axis=1)
    bound = float(np.median(norms))  # so that some are clipped and some are not
    expected = (rows * (bound / np.maximum(norms, bound))[:, None]).sum(0)
    before = flatten(model)
    found = clipped_gradients(
        model, inputs, labels, clip_norm=bound, method=method, chunk_size=chunk_size
    )
    assert np.allclose(found.total.numpy(), expected, rtol=1e-4, atol=1e-5 * bound)
    assert found.unit == "example" and found.count == 9
    assert torch.equal(flatten(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_the_gram_way_is_taken_and_right() -> None:
    """Few places, wide layers: the products over places are less work than the matrices."""
    model = nn.Sequential(nn.Linear(50, 60), nn.Tanh(), nn.Flatten(), nn.Linear(180, 3))
    inputs, labels = torch.randn(5, 3, 50, generator=generator(2, "x")), torch.arange(5) % 3
    ghost, vmap = (
        clipped_gradients(model, inputs, labels, clip_norm=0.1, method=m).total for m in OURS
    )
    assert torch.allclose(ghost, vmap, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_noise_gives_the_same_step(method: str) -> None:
    start, inputs, labels = _case("pooled cnn")
    models = []
    for chosen, chunk in ((method, None), ("vmap", 3)):
        model = _make(MODELS["pooled cnn"][0])
        noise = generator(3, "noise")
        for _ in range(3):
            private_step(
                model, inputs, labels, clip_norm=0.5, noise_multiplier=0.7, lr=0.2,
                expected_batch_size=10, generator=noise, method=chosen, chunk_size=chunk,
            )  # fmt: skip
        models.append(flatten(model))
    assert torch.allclose(models[0], models[1], atol=1e-5)
    assert (models[0] - flatten(start)).norm() > 0.1


@pytest.mark.parametrize("method", OURS)
def test_steps_agree_with_opacus_own_optimiser(method: str) -> None:
    """Opacus clips, adds and scales by itself; its noise is handed to it from our generator."""
    opacus_optimizers = pytest.importorskip("opacus.optimizers")
    grad_sample = pytest.importorskip("opacus.grad_sample")
    _, inputs, labels = _case("pooled cnn")
    ours, theirs = (_make(MODELS["pooled cnn"][0]) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooked = grad_sample.GradSampleModule(theirs)
        sgd = torch.optim.SGD(hooked.parameters(), lr=0.3)
        optimiser = opacus_optimizers.DPOptimizer(
            sgd, noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=10
        )
        noise, same = generator(4, "noise"), generator(4, "noise")
        for _ in range(3):
            private_step(
                ours, inputs, labels, clip_norm=0.5, noise_multiplier=0.8, lr=0.3,
                expected_batch_size=10, generator=noise, method=method,
            )  # fmt: skip
            optimiser.zero_grad()
            F.cross_entropy(hooked(inputs), labels).backward()
            optimiser.pre_step()
            drawn = 0.8 * 0.5 * torch.randn(len(flatten(ours)), generator=same, dtype=torch.float64)
            parts = drawn.float().split([slot.size for slot in layout(ours)])
            for p, part in zip(theirs.parameters(), parts, strict=True):
                p.grad += part.reshape(p.shape) / 10
            sgd.step()
    assert torch.allclose(flatten(ours), flatten(theirs), atol=1e-5)


def test_noise_is_z_c_over_b_and_an_empty_batch_gets_it_too() -> None:
    model = MLP(200, 60, 4)
    size, labels = len(flatten(model)), torch.zeros(0).long()
    options = {"clip_norm": 0.5, "noise_multiplier": 3.0, "expected_batch_size": 10}
    noise = generator(0, "x")
    found = private_gradient(model, torch.zeros(0, 200), labels, generator=noise, **options)
    # The sample's standard deviation over d values is known to 1/sqrt(2d), here to 0.6 %.
    assert float(found.std()) == pytest.approx(0.15, rel=4 / math.sqrt(2 * size))


# --- refusals -----------------------------------------------------------------------------------


def _mixing() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(self.layer(x))
        return result


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


REFUSED = {
    "mixes the samples": _mixing,
    "belongs to a LayerNorm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)),
    "belongs to a Conv2d": lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)),
    "runs twice": Twice,
    "used once": _tied,
    "changed in place": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(True), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("words", REFUSED)
def test_ghost_refuses_what_it_would_get_wrong(words: str) -> None:
    with pytest.raises(ValueError, match=words):
        clipped_gradients(
            REFUSED[words](), torch.randn(5, 4), torch.zeros(5).long(), clip_norm=1, method="ghost"
        )


@pytest.mark.parametrize("words", ["belongs to a LayerNorm", "runs twice", "changed in place"])
def test_vmap_does_what_ghost_refuses(words: str) -> None:
    model = REFUSED[words]()
    inputs, labels = torch.randn(5, 4, generator=generator(0, "x")), torch.zeros(5).long()
    expected = _one_by_one(model, inputs, labels).sum(0)
    found = clipped_gradients(model, inputs, labels, clip_norm=1e6).total
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_never_passes(method: str, bad: float) -> None:
    model, inputs, labels = _case("mlp")
    inputs[4, 2] = bad
    with pytest.raises(ValueError, match=r"samples \[4\] are NaN"):
        clipped_gradients(model, inputs, labels, clip_norm=1.0, method=method)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, "method='magic' is unknown"),
        ({"clip_norm": 0.0}, "clip_norm=0"),
        ({"clip_norm": math.nan}, "clip_norm=nan"),
        ({"noise_multiplier": 0.0}, "noise_multiplier=0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"expected_batch_size": 0}, "expected_batch_size=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"lr": -1.0}, "lr=-1"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict, words: str) -> None:
    model, inputs, labels = _case("mlp")
    usual = {"clip_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 9, "lr": 0.1}
    with pytest.raises(ValueError, match=words):
        private_step(model, inputs, labels, generator=generator(0, "x"), **(usual | options))


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[Client, Client]:
    split = load_dataset("digits")
    both = [Client(0, part.inputs, part.labels) for part in (split.train, split.test)]
    return both[0], both[1]


OPTIONS = {"steps": 60, "sample_rate": 0.1, "clip_norm": 1.0, "lr": 1.0}


def test_training_with_little_noise_learns_and_with_much_does_not(
    digits: tuple[Client, Client],
) -> None:
    data, test = digits
    ends = []
    for z in (0.5, 60.0):
        model, accountant = Logistic(64, 10), Accountant()
        train_dpsgd(model, data, noise_multiplier=z, accountant=accountant, **OPTIONS)
        ends.append(evaluate(model, test)[0])
        assert accountant.epsilon(1e-5) == pytest.approx(epsilon(z, 60, 1e-5, 0.1), rel=1e-6)
    assert ends[0] > 0.85 and ends[1] < 0.6  # seen .93 and .26


def test_a_budget_refuses_before_a_step_is_made(
    digits: tuple[Client, Client], tmp_path: Path
) -> None:
    model, budget = Logistic(64, 10), Budget(tmp_path / "b", 0.5, 1e-5, unit="example")
    before = flatten(model)
    with pytest.raises(BudgetExceededError):
        train_dpsgd(model, digits[0], noise_multiplier=0.5, accountant=budget, **OPTIONS)
    assert torch.equal(flatten(model), before)


def test_batches_are_poisson_and_differ_by_client_round_and_seed(
    digits: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sizes = digits[0], []
    import flcourse.privacy.dpsgd as module

    def count(model: nn.Module, inputs: Tensor, labels: Tensor, **rest: object) -> None:
        sizes.append(len(inputs))
        assert rest["expected_batch_size"] == pytest.approx(0.1 * len(data))

    monkeypatch.setattr(module, "private_step", count)
    runs = []
    for seed, number in ((0, 0), (0, 1), (1, 0)):
        sizes.clear()
        train_dpsgd(
            Logistic(64, 10), data, noise_multiplier=1.0, seed=seed, round=number,
            **(OPTIONS | {"steps": 200}),
        )  # fmt: skip
        assert np.mean(sizes) == pytest.approx(0.1 * len(data), rel=0.03)
        assert np.std(sizes) == pytest.approx(math.sqrt(0.09 * len(data)), rel=0.2)
        runs.append(list(sizes))
    assert runs[0] != runs[1] != runs[2] != runs[0]


def test_clients_train_with_dpsgd_and_send_rows(digits: tuple[Client, Client]) -> None:
    data, _ = digits
    clients = [Client(k, data.inputs[k::4], data.labels[k::4]) for k in range(4)]
    model = Logistic(64, 10)
    options = OPTIONS | {"noise_multiplier": 0.5, "steps": 5, "seed": 1, "round": 2}
    rows, weights = dpsgd_updates(model, clients, **options)
    assert rows.shape == (4, 650) and weights.tolist() == [float(len(c)) for c in clients]
    alone = Logistic(64, 10)
    train_dpsgd(alone, clients[2], **options)
    assert torch.equal(rows[2], flatten(alone) - flatten(model))
    assert not torch.equal(rows[1], rows[2])
    with pytest.raises(ValueError, match="cohort is empty"):
        dpsgd_updates(model, [], **options)
    for wrong, words in (({"steps": 0}, "steps=0"), ({"sample_rate": 0.0}, "sample_rate=0")):
        with pytest.raises(ValueError, match=words):
            train_dpsgd(model, data, **(options | wrong))

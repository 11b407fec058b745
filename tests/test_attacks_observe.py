"""What an attacker sees, against plain training loops and sums written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.attacks.observe import (
    aggregate,
    observe_gradient,
    observe_models,
    observe_round,
    observe_step,
    observe_update,
)
from flcourse.attacks.types import Leak
from flcourse.data import Client, Dataset, load_dataset
from flcourse.fedavg import Checkpoint, Round, RoundContext, mean, train
from flcourse.local import local_updates
from flcourse.models import MLP, LeNet, NextToken, Normalise
from flcourse.vectors import flatten, load_row

PHOTOS = load_dataset("photos").train


def small() -> nn.Sequential:
    """A network with BatchNorm: whatever could go wrong with modes and buffers does so here."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 15 * 15, 10),
    )


def batch(size: int, start: int = 0) -> tuple[Tensor, Tensor]:
    return PHOTOS.inputs[start : start + size], PHOTOS.labels[start : start + size]


def plain_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    F.cross_entropy(model(images), labels).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor], atol: float = 0.0) -> bool:
    return list(first) == list(second) and all(
        torch.allclose(first[name], second[name], rtol=0, atol=atol) for name in first
    )


# --- one client ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [1, 5])
def test_a_gradient_is_that_of_a_plain_backward(training: bool, size: int) -> None:
    model = small().train(training)
    before, mode = state(model), [m.training for m in model.modules()]
    leak = observe_gradient(model, *batch(size))
    assert same(dict(leak.values), plain_gradient(model, *batch(size)))
    assert same(state(model), before) and mode == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert (leak.kind, leak.batch_size, leak.image_shape) == ("gradient", size, (3, 32, 32))
    assert (
        leak.loss is None
        and leak.scale == 1
        and not any(v.requires_grad for v in leak.values.values())
    )


def test_the_loss_travels_only_if_it_is_sent() -> None:
    model = LeNet(seed=0)
    leak = observe_gradient(model, *batch(3), send_loss=True)
    images, labels = batch(3)
    assert leak.loss == pytest.approx(F.cross_entropy(model(images), labels).item(), rel=1e-6)


def test_frozen_parameters_do_not_travel_and_unused_ones_send_zeros() -> None:
    model = small()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    model.forward = lambda x: nn.Sequential.forward(model, x)  # type: ignore[method-assign]
    gradient = observe_gradient(model, *batch(2))
    update = observe_update(model, *batch(2), lr=0.1, epochs=1, batch_size=None)
    for leak in (gradient, update):
        assert "0.weight" not in leak.values and "0.bias" in leak.values
        assert torch.equal(leak.values["unused"], torch.zeros(2))


def test_the_mean_gradient_is_the_mean_over_samples() -> None:
    model = LeNet(seed=1)
    singles = [observe_gradient(model, *batch(1, i)).row for i in range(4)]
    assert torch.allclose(
        observe_gradient(model, *batch(4)).row, torch.stack(singles).mean(dim=0), atol=1e-6
    )


def test_one_logit_has_the_gradient_of_the_logistic_loss() -> None:
    model = nn.Sequential(nn.Linear(3, 1))
    rows, labels = torch.tensor([[1.0, -2.0, 30.0], [0.5, 0.0, -7.0]]), torch.tensor([1, 0])
    leak = observe_gradient(model, rows, labels)
    error = torch.sigmoid(model(rows)[:, 0]) - labels
    assert torch.allclose(leak.values["0.bias"], error.mean().reshape(1), atol=1e-7)
    assert torch.allclose(leak.values["0.weight"][0], (error[:, None] * rows).mean(0), atol=1e-6)


def test_a_double_model_takes_float_pictures_and_tokens_need_an_embedding() -> None:
    leak = observe_gradient(LeNet(seed=0).double(), *batch(1))
    assert all(value.dtype == torch.float64 for value in leak.values.values())
    tokens, words = torch.tensor([[1, 2, 3]]), torch.tensor([4])
    assert observe_gradient(NextToken(7), tokens, words).image_shape == (3,)
    with pytest.raises(ValueError, match="divide bytes by 255"):
        observe_gradient(MLP(3, 4, 5), tokens, words)


def test_dropout_is_drawn_from_the_seed_and_the_global_stream_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 10))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (observe_gradient(model, *batch(2), seed=s).row for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.rand(1), expected)


def plain_update(
    model: nn.Module, images: Tensor, labels: Tensor, lr: float, epochs: int, momentum: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Full-batch SGD by hand, velocity v ← μv + g."""
    local = copy.deepcopy(model).train()
    velocity = {name: torch.zeros_like(p) for name, p in local.named_parameters()}
    for _ in range(epochs):
        local.zero_grad()
        F.cross_entropy(local(images), labels).backward()
        with torch.no_grad():
            for name, p in local.named_parameters():
                velocity[name] = momentum * velocity[name] + p.grad
                p -= lr * velocity[name]
    start = dict(model.named_parameters()) | dict(model.named_buffers())
    parts = {name: p.detach() - start[name].detach() for name, p in local.named_parameters()}
    floats = {name: b - start[name] for name, b in local.named_buffers() if b.is_floating_point()}
    return parts, floats


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_update_is_that_of_a_plain_loop(momentum: float) -> None:
    model = small().eval()  # local training is in training mode all the same
    before = state(model)
    leak = observe_update(model, *batch(4), lr=0.05, epochs=3, batch_size=None, momentum=momentum)
    parameters, buffers = plain_update(model, *batch(4), 0.05, 3, momentum)
    assert same(dict(leak.values), parameters | buffers, atol=1e-6)
    assert leak.buffers == ("1.running_mean", "1.running_var") == tuple(buffers)
    assert not set(leak.gradients) & set(buffers)
    assert same(state(model), before) and not model.training
    assert (leak.kind, leak.lr, leak.epochs, leak.momentum, leak.steps) == (
        "update", 0.05, 3, momentum, 3,
    )  # fmt: skip


def test_an_update_in_batches_is_the_row_of_local_updates() -> None:
    model = LeNet(seed=0)
    client = Client(0, *batch(6))
    options = {"epochs": 2, "batch_size": 4, "lr": 0.1, "momentum": 0.5, "seed": 7}
    rows, _ = local_updates(model, [client], engine="loop", **options)
    leak = observe_update(model, *batch(6), **options)
    assert torch.equal(leak.row, rows[0]) and leak.steps == 4 and leak.local_batch_size == 4


def test_one_step_is_minus_lr_times_the_gradient() -> None:
    model = LeNet(seed=0).double()
    gradient = observe_gradient(model, *batch(3))
    step = observe_step(model, *batch(3), lr=0.25)
    assert torch.allclose(step.row, -0.25 * gradient.row, rtol=0, atol=1e-15)
    assert same(step.gradients, dict(gradient.values), atol=1e-14) and step.steps == 1


def test_what_is_no_batch_is_refused() -> None:
    model, (images, labels) = LeNet(seed=0), batch(2)
    cases = [
        ((images * 255).byte(), labels, "divide bytes by 255"),
        (images * 2, labels, r"in \[0, 1\]"),
        (images - 0.5, labels, "Normalise"),
        (images / 0, labels, "NaN or infinity"),
        (images.double(), labels, "convert one of the two"),
        (images[0], labels[:1], r"labels of torch.int64 and shape \[1\] for 3 samples"),
        (images[:, 0], labels, r"pictures \[b, c, h, w\]"),
        (images, labels.int(), "int64"),
        (images, labels[:1], r"shape \[1\] for 2 samples"),
        (images, F.one_hot(labels, 100), "int64 classes"),
        (images[:0], labels[:0], "at least one sample"),
        (images, labels + 100, "knows 0 to 99"),
        (images, labels - 100, "knows 0 to 99"),
    ]
    for bad_images, bad_labels, message in cases:
        with pytest.raises(ValueError, match=message):
            observe_gradient(model, bad_images, bad_labels)
        with pytest.raises(ValueError, match=message):
            observe_step(model, bad_images, bad_labels, lr=0.1)
    with pytest.raises(ValueError, match="knows 0 to 1"):
        observe_gradient(nn.Linear(3, 1), torch.ones(1, 3), torch.tensor([2]))
    with pytest.raises(ValueError, match="unfreeze"):
        observe_gradient(LeNet(seed=0).requires_grad_(False), images, labels)
    with pytest.raises(ValueError, match="nothing to leak"):
        observe_gradient(nn.Flatten(), images, labels)
    with pytest.raises(ValueError, match=r"logits \[b, k\]"):
        observe_gradient(nn.Conv2d(3, 4, 3), images, labels)


def test_a_leak_survives_its_file_and_carries_no_picture(tmp_path) -> None:
    model = small()
    for leak in (
        observe_gradient(model, *batch(2), send_loss=True),
        observe_update(model, *batch(4), lr=0.1, epochs=2, batch_size=2, momentum=0.9),
        aggregate([observe_step(model, *batch(n), lr=0.1) for n in (1, 3)], normalise=True),
    ):
        leak.save(tmp_path / "leak.pt")
        loaded = Leak.load(tmp_path / "leak.pt")
        assert same(dict(loaded.values), dict(leak.values))
        public = {k: v for k, v in leak.__dict__.items() if k != "values"}
        assert {k: v for k, v in loaded.__dict__.items() if k != "values"} == public
        assert not any(isinstance(value, Tensor) for value in public.values())


# --- many clients -------------------------------------------------------------------------------


def test_an_aggregate_of_gradients_is_the_gradient_of_all_samples() -> None:
    model = LeNet(seed=0)
    parts = [observe_gradient(model, *batch(n, start)) for n, start in ((1, 0), (3, 1), (4, 4))]
    whole = observe_gradient(model, *batch(8))
    total = aggregate(parts)
    assert torch.allclose(total.row, whole.row, atol=1e-6)
    assert (total.batch_size, total.num_clients, total.normalised) == (8, 3, False)
    own = aggregate(parts, [1.0, 0.0, 1.0])
    assert torch.allclose(own.row, (parts[0].row + parts[2].row) / 2, atol=1e-7)


def test_normalising_each_message_first() -> None:
    model = LeNet(seed=0)
    parts = [observe_step(model, *batch(2, start), lr=0.1) for start in (0, 2)]
    parts[1] = parts[1].with_row(1000 * parts[1].row)
    total = aggregate(parts, normalise=True)
    expected = sum(part.row / part.row.norm() for part in parts) / 2
    assert torch.allclose(total.row, expected, atol=1e-7) and total.normalised
    assert total.scale == -1
    with pytest.raises(ValueError, match="zero or not finite"):
        aggregate([parts[0].with_row(0 * parts[0].row)], normalise=True)


def test_the_noise_of_an_aggregate_is_what_the_clients_noises_add_up_to() -> None:
    values = {"w": torch.zeros(200_000)}
    rng = torch.Generator().manual_seed(0)
    noisy = []
    for size, std in ((1, 0.3), (3, 0.1)):
        leak = Leak("gradient", values, size, (1,), clip_norm=2.0)
        noisy.append(leak.with_row(std * torch.randn(200_000, generator=rng), noise_std=std))
    total = aggregate(noisy)
    assert total.noise_std == pytest.approx(float(total.row.std()), rel=0.01)
    assert total.clip_norm == 2.0
    unit = aggregate(noisy, normalise=True)
    assert unit.noise_std == pytest.approx(float(unit.row.std()), rel=0.01)
    assert aggregate([Leak("gradient", values, 1, (1,)), noisy[0]]).clip_norm is None


def test_messages_of_two_protocols_are_not_added() -> None:
    model = LeNet(seed=0)
    step = observe_step(model, *batch(1), lr=0.1)
    others = [
        (observe_gradient(model, *batch(1)), "kind differs"),
        (observe_step(model, *batch(1), lr=0.2), "lr differs"),
        (observe_update(model, *batch(1), lr=0.1, epochs=2, batch_size=None), "epochs differs"),
        (observe_step(LeNet(num_classes=10), *batch(1), lr=0.1), "different models"),
    ]
    for other, message in others:
        with pytest.raises(ValueError, match=message):
            aggregate([step, other])
    with pytest.raises(ValueError, match="at least one leak"):
        aggregate([])
    with pytest.raises(ValueError, match="weights"):
        aggregate([step, step], [1.0])


def test_two_global_models_give_the_aggregate_away() -> None:
    before = small().double()
    leaks = [observe_step(before, *batch(n, start), lr=0.1) for n, start in ((2, 0), (4, 2))]
    step = aggregate(leaks)
    after = copy.deepcopy(before)
    load_row(after, flatten(before) + 0.5 * step.row)
    seen = observe_models(
        before, after, batch_size=6, image_shape=(3, 32, 32), lr=0.1, server_lr=0.5, num_clients=2
    )
    assert torch.allclose(seen.row, step.row, atol=1e-14) and seen.buffers == step.buffers
    assert (seen.batch_size, seen.num_clients, seen.steps, seen.lr) == (6, 2, 1, 0.1)
    with pytest.raises(ValueError, match="same model"):
        observe_models(before, LeNet(), batch_size=1, image_shape=(3, 32, 32), lr=0.1)
    with pytest.raises(ValueError, match="server_lr"):
        observe_models(before, after, batch_size=1, image_shape=(3,), lr=0.1, server_lr=0.0)
    with pytest.raises(ValueError, match="each has at least one"):
        observe_models(before, after, batch_size=1, image_shape=(3,), lr=0.1, num_clients=2)


# --- a running federation -----------------------------------------------------------------------

CLIENTS = [Client(k, *batch(2 + k, 2 * k)) for k in range(5)]
TEST = Dataset("few", *batch(2), ())
OPTIONS = {
    "epochs": 1, "batch_size": 2, "lr": 0.1, "momentum": 0.5, "fraction": 0.6,
    "server_lr": 0.8, "server_momentum": 0.3, "seed": 4,
}  # fmt: skip


def federation(rounds: int, **options: object) -> list[tuple[Round, Tensor]]:
    """An ordinary run: each round's record, and the model after it."""
    kept: list[tuple[Round, Tensor]] = []

    def keep(record: Round, checkpoint: Checkpoint) -> None:
        kept.append((record, checkpoint.row))

    train(MLP(3072, 8, 10), CLIENTS, TEST, rounds=rounds, on_round=keep, **(OPTIONS | options))
    return kept


def test_the_model_and_the_message_of_a_round_are_those_of_the_run() -> None:
    kept = federation(3)
    model = MLP(3072, 8, 10)
    start = flatten(model)
    for number in (1, 2, 3):
        record = kept[number - 1][0]
        for index, norm in zip(record.clients, record.update_norms, strict=True):
            broadcast, leak = observe_round(model, CLIENTS, client=index, round=number, **OPTIONS)
            known = start if number == 1 else kept[number - 2][1]
            assert torch.equal(flatten(broadcast), known)
            assert float(leak.row.norm()) == pytest.approx(norm, rel=1e-5)
            assert leak.batch_size == 2 + index and leak.local_batch_size == 2
        absent = next(k for k in range(5) if k not in record.clients)
        with pytest.raises(ValueError, match=f"client {absent} takes no part in round {number}"):
            observe_round(model, CLIENTS, client=absent, round=number, **OPTIONS)
    assert torch.equal(flatten(model), start)


def test_the_aggregate_of_a_round_is_what_the_server_applied() -> None:
    options = {"server_momentum": 0.0}
    kept = federation(2, **options)
    broadcast, leak = observe_round(
        MLP(3072, 8, 10), CLIENTS, client=None, round=2, **(OPTIONS | options)
    )
    assert torch.allclose(flatten(broadcast) + 0.8 * leak.row, kept[1][1], atol=1e-7)
    chosen = kept[1][0].clients
    assert leak.num_clients == 3 and leak.batch_size == sum(2 + k for k in chosen)


def test_a_round_with_a_defence_shows_the_defended_message() -> None:
    def halve(rows: Tensor, context: RoundContext) -> Tensor:
        noise = torch.randn(rows.shape, generator=context.generator("noise"))
        return 0.5 * rows + 1e-3 * noise

    kept = federation(2, transform=halve, server_momentum=0.0)
    options = OPTIONS | {"server_momentum": 0.0, "transform": halve, "noise_std": 1e-3}
    model = MLP(3072, 8, 10)
    leaks = []
    for index in kept[1][0].clients:
        broadcast, leak = observe_round(model, CLIENTS, client=index, round=2, **options)
        assert torch.equal(flatten(broadcast), kept[0][1]) and leak.noise_std == 1e-3
        leaks.append(leak)
    _, total = observe_round(model, CLIENTS, client=None, round=2, **options)
    assert torch.allclose(total.row, aggregate(leaks).row, atol=1e-7)
    assert total.noise_std == pytest.approx(aggregate(leaks).noise_std)
    _, unit = observe_round(model, CLIENTS, client=None, round=2, normalise=True, **options)
    expected = mean(
        torch.stack([leak.row / leak.row.norm() for leak in leaks]),
        torch.tensor([float(leak.batch_size) for leak in leaks]),
    )
    assert torch.allclose(unit.row, expected, atol=1e-6) and unit.normalised
    assert unit.noise_std == pytest.approx(aggregate(leaks, normalise=True).noise_std, rel=1e-5)


def test_a_federation_with_one_logit_and_its_own_layers_can_be_observed() -> None:
    model = nn.Sequential(Normalise([0.5] * 3, [0.25] * 3), nn.Flatten(), nn.Linear(3072, 1))
    people = [Client(k, PHOTOS.inputs[k : k + 2], torch.tensor([0, 1])) for k in range(3)]
    _, leak = observe_round(model, people, client=2, round=2, epochs=1, batch_size=None, lr=0.01)
    assert set(leak.values) == {"2.weight", "2.bias"} and leak.steps == 1
    with pytest.raises(ValueError, match="round=0"):
        observe_round(model, people, client=2, round=0, epochs=1, batch_size=None, lr=0.01)

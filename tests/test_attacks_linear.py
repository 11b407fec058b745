import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flcourse.attacks.linear import divide
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.types import Leak, task_loss
from flcourse.data import Client
from flcourse.local import local_updates
from flcourse.metrics import psnr
from flcourse.models import MLP, LeNet, Logistic, Normalise, SimpleCNN
from flcourse.vectors import unflatten


def pictures(count, shape=(3, 16, 16), seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def leak_of(model, images, labels):
    """By autograd directly: independent of the observers, which are tested elsewhere."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = task_loss(model(images), labels).mean()
    gradients = torch.autograd.grad(loss, parameters)
    values = {name: g.detach() for name, g in zip(names, gradients, strict=True)}
    return Leak("gradient", values, len(images), tuple(images.shape[1:]))


class Own(nn.Module):
    """A module of the reader's own, which normalises in its forward pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.wide, self.head = nn.Linear(768, 40), nn.Linear(40, 7)

    def forward(self, x):
        return self.head(torch.sin(self.wide(2 * x.reshape(len(x), -1) - 1)))


MODELS = {
    "MLP": lambda: MLP(768, 50, 7, seed=1),
    "one layer": lambda: Logistic(768, 7, seed=1),
    "normalised": lambda: nn.Sequential(
        Normalise((0.4, 0.5, 0.6), (0.2, 0.1, 0.3)), MLP(768, 9, 7)
    ),
    "tanh, nested": lambda: nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Identity()), nn.Linear(768, 30), nn.Tanh(), nn.Linear(30, 7)
    ),
    "own module": Own,
    "float64": lambda: MLP(768, 50, 7, seed=1).double(),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_division_is_exact(name):
    model = MODELS[name]()
    x = pictures(1).to(next(model.parameters()).dtype)
    label = torch.tensor([3])
    found = divide(model, leak_of(model, x, label))
    assert float(psnr(x, found.images)) > 100
    assert found.images.dtype == x.dtype and found.labels.tolist() == [3]
    assert found.loss < 1e-6 and found.stopped_at is None


@pytest.mark.parametrize("label", [0, 1])
def test_a_model_of_one_logit(label):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 1))
    x = pictures(1, (1, 8, 8))
    found = divide(model, leak_of(model, x, torch.tensor([label])))
    assert float(psnr(x, found.images)) > 100 and found.labels.tolist() == [label]


def test_a_row_of_a_table_with_large_units():
    mean, std = torch.tensor([5e4, 40.0, 0.5]), torch.tensor([1e4, 9.0, 0.1])
    torch.manual_seed(0)
    model = nn.Sequential(Normalise(mean, std), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.tensor([[61234.0, 33.0, 0.625]])
    found = divide(model, leak_of(model, x, torch.tensor([1])))
    assert torch.allclose(found.images, x, rtol=1e-5) and found.images.shape == x.shape


def test_many_local_steps_of_one_sample_are_as_exact_as_one():
    model, x, label = MLP(768, 50, 7, seed=1), pictures(1), torch.tensor([2])
    client = Client(0, x, label)
    rows, _ = local_updates(model, [client], epochs=7, batch_size=1, lr=0.1, momentum=0.9)
    leak = Leak("update", unflatten(rows[0], model), 1, (3, 16, 16), lr=0.1, epochs=7, momentum=0.9)
    found = divide(model, leak)
    assert float(psnr(x, found.images)) > 80 and found.labels.tolist() == [2]


def test_noise_shows_in_the_residual_and_least_squares_is_the_best_weighing():
    model, x = MLP(768, 50, 7, seed=1), pictures(1)
    leak = leak_of(model, x, torch.tensor([4]))
    noise = torch.randn(leak.row.shape, generator=torch.Generator().manual_seed(0))
    noisy = leak.with_row(leak.row + 1e-4 * leak.row.norm() * noise)
    found = divide(model, noisy)
    assert found.loss > 1e-3
    bias, weight = noisy.values["1.bias"], noisy.values["1.weight"]
    naive = (weight / bias[:, None]).nan_to_num(0, 0, 0).mean(dim=0).reshape(x.shape)
    assert float(psnr(x, found.images)) > float(psnr(x, naive)) + 5


def test_neither_model_nor_training_mode_is_changed():
    model = nn.Sequential(MLP(768, 20, 7), nn.BatchNorm1d(7))
    leak = leak_of(copy.deepcopy(model).eval(), pictures(1), torch.tensor([1]))
    before = copy.deepcopy(model.state_dict())
    divide(model.eval(), leak)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_layer_in_which_nothing_fired_is_said_to_stop_the_attack():
    model = MLP(768, 20, 7)
    with torch.no_grad():
        model[1].bias.fill_(-100)
    found = divide(model, leak_of(model, pictures(1), torch.tensor([1])))
    assert found.images is None and "no neuron" in found.stopped_at


def test_refusals_name_the_remedy():
    x, label = pictures(2), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"batch_size=2.*exact_batch.*match_gradients"):
        divide(MLP(768, 9, 7), leak_of(MLP(768, 9, 7), x, label))
    blunt = nn.Sequential(nn.Flatten(), nn.Linear(768, 9, bias=False), nn.Linear(9, 7))
    with pytest.raises(ValueError, match=r"no bias.*match_gradients"):
        divide(blunt, leak_of(blunt, x[:1], label[:1]))
    for model in (LeNet(10, image_size=16), SimpleCNN(10, image_size=16)):
        with pytest.raises(ValueError, match=r"mixes before.*peel"):
            divide(model, leak_of(model, x[:1], label[:1]))
    squashed = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(768, 7))
    with pytest.raises(ValueError, match="not the picture itself"):
        divide(squashed, leak_of(squashed, x[:1], label[:1]))
    whole = leak_of(MLP(768, 9, 7), x[:1], label[:1])
    part = Leak("gradient", {"3.bias": whole.values["3.bias"]}, 1, (3, 16, 16))
    with pytest.raises(ValueError, match=r"1\.weight.*not sent"):
        divide(MLP(768, 9, 7), part)


def test_the_formula_by_hand():
    """Two numbers: w = (1, 2), x = (3, 5), squared away from 0 by a loss with slope -4."""
    model = nn.Linear(2, 1)
    delta = torch.tensor([-4.0])
    values = {"weight": torch.outer(delta, torch.tensor([3.0, 5.0])), "bias": delta}
    # A bare layer has no name: its parameters are "weight" and "bias".
    found = divide(model, Leak("gradient", values, 1, (2,)))
    assert found.images.tolist() == [[3.0, 5.0]]
    assert found.labels.tolist() == [1]  # cross-entropy falls as the logit grows: label 1
    assert F.logsigmoid(torch.tensor(1.0)) > F.logsigmoid(torch.tensor(0.0))


def test_a_batch_norm_in_training_mode_is_seen_to_mix_samples():
    """Its input depends on the company of a sample, so the division would give another picture."""
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 8 * 8, 20), nn.ReLU(), nn.Linear(20, 10)
    )
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    leak = observe_gradient(model, images, torch.tensor([3]))
    with pytest.raises(ValueError, match="something mixes before it"):
        divide(model, leak)
    model.eval()
    leak = observe_gradient(model, images, torch.tensor([3]))
    torch.testing.assert_close(divide(model, leak).images, images, atol=1e-4, rtol=0)

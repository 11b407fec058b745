import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flcourse import models
from flcourse.vectors import flatten, layout, left_alone, load_row, num_values, unflatten


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embedding.weight


ZOO = {
    "mlp": models.MLP(12, 5, 3),
    "cnn": models.LightCNN(),
    "batch norm": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()),
    "tied": Tied(),
    "lstm": nn.LSTM(3, 4),
    "attention": nn.MultiheadAttention(8, 2),
    "half": nn.Linear(4, 3).to(torch.bfloat16),
    "double": nn.Linear(4, 3).double(),
    "scalar": nn.PReLU(),
}


@pytest.mark.parametrize("model", ZOO.values(), ids=ZOO.keys())
def test_round_trip_is_exact(model):
    row = flatten(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    load_row(other, row)
    for name, tensor in other.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_float_buffers_are_in_the_row_and_counters_are_left_alone():
    model = nn.BatchNorm1d(4)
    assert [slot.name for slot in layout(model)] == [
        "weight",
        "bias",
        "running_mean",
        "running_var",
    ]
    assert left_alone(model) == ("num_batches_tracked",)
    model(torch.rand(8, 4))
    load_row(model, torch.zeros(16))
    assert int(model.num_batches_tracked) == 1


def test_tied_weights_count_once_and_stay_tied():
    model = Tied()
    assert num_values(model) == 28
    load_row(model, torch.arange(28.0))
    assert model.out.weight is model.embedding.weight
    assert model.out.weight[1, 0] == 4


def test_a_double_model_keeps_its_digits():
    model = nn.Linear(1, 1, bias=False).double()
    load_row(model, torch.tensor([1 / 3], dtype=torch.float64))
    assert flatten(model).item() == 1 / 3


def test_the_row_is_a_copy():
    model = nn.Linear(2, 2)
    row = flatten(model)
    row.zero_()
    assert flatten(model).abs().sum() > 0


def test_unflatten_is_differentiable():
    model = nn.Linear(2, 1)
    row = torch.arange(3.0, requires_grad=True)
    unflatten(row, model)["weight"].sum().backward()
    assert row.grad.tolist() == [1, 1, 0]


def test_channels_last_models_have_the_same_row():
    model = models.LightCNN()
    assert torch.equal(
        flatten(copy.deepcopy(model).to(memory_format=torch.channels_last)), flatten(model)
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: load_row(nn.Linear(2, 2), torch.zeros(5)), "6 floating-point values"),
        (lambda: unflatten(torch.zeros(2, 3), nn.Linear(2, 2)), r"\[2, 3\]"),
        (lambda: flatten(nn.ReLU()), "no floating-point values"),
        (lambda: flatten(nn.LazyLinear(3)), "lazy"),
        (lambda: layout(nn.ParameterList([torch.zeros(2, dtype=torch.complex64)])), "complex"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.booleans())
def test_any_stack_survives_the_round_trip(widths, normed):
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after) if normed else nn.Tanh()]
    model = nn.Sequential(*layers)
    row = torch.randn(num_values(model))
    load_row(model, row)
    assert torch.equal(flatten(model), row)


def test_moves_with_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = models.MLP().cuda()
    assert flatten(model).is_cuda
    load_row(model, torch.zeros(num_values(model)))
    assert float(flatten(model).abs().sum()) == 0

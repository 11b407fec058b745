from dataclasses import replace

import pytest
import torch
from torch import nn

from flcourse.attacks.deconvolve import shift_matrix, solve_input, weight_gradient
from flcourse.attacks.inverses import invert
from flcourse.attacks.observe import observe_gradient, observe_step, observe_update
from flcourse.attacks.recursive import peel
from flcourse.data import load_dataset
from flcourse.metrics import psnr
from flcourse.models import LeNet, Normalise, uniform_


@pytest.fixture(scope="module")
def photos():
    return load_dataset("photos").train


def leak_of(model, photos, index):
    return observe_gradient(
        model, photos.inputs[index : index + 1], photos.labels[index : index + 1]
    )


@pytest.mark.parametrize("seed", range(3))
def test_lenet_comes_back_exactly_for_every_picture(photos, seed):
    model = LeNet(100, seed=seed)
    for index in range(8):
        recovery = peel(model, leak_of(model, photos, index))
        assert float(psnr(photos.inputs[index : index + 1], recovery.images)) > 50
        assert int(recovery.labels) == int(photos.labels[index])
        assert recovery.loss < 1e-3
        assert recovery.stopped_at is None


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 5, "stride": 2, "padding": 2},
        {"kernel_size": (3, 2), "stride": (1, 3), "padding": (0, 2)},
        {"kernel_size": 3, "stride": 2, "dilation": 2},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
    ],
)
def test_the_shared_matrix_is_autograds_weight_gradient(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, **options).double()
    x = torch.rand(1, 3, 12, 11, dtype=torch.float64)
    z = conv(x)
    delta = torch.randn_like(z)
    (truth,) = torch.autograd.grad(z, conv.weight, delta)
    matrix = shift_matrix(conv, delta[0], (3, 12, 11))
    ours = (matrix @ x[0].flatten(1).T).reshape(4, *conv.kernel_size, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(weight_gradient(conv, x[0], delta[0]), truth)


def test_a_convolutions_input_agrees_with_one_dense_least_squares():
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    x = torch.rand(2, 8, 8, dtype=torch.float64)
    z = conv(x[None])[0].detach()
    delta = torch.randn_like(z)
    gradient = weight_gradient(conv, x, delta)
    solved = solve_input(conv, gradient, delta, z, torch.ones_like(z), (2, 8, 8))
    # The oracle: both systems written out with autograd, one dense solve; the smallest solution.
    forward = torch.autograd.functional.jacobian(lambda v: conv(v[None])[0], x).reshape(-1, 128)
    backward = torch.autograd.functional.jacobian(lambda v: weight_gradient(conv, v, delta), x)
    system = torch.cat([forward, backward.reshape(-1, 128)]).detach()
    right = torch.cat([(z - conv.bias.detach()[:, None, None]).flatten(), gradient.flatten()])
    dense = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution
    torch.testing.assert_close(solved.x.flatten(), dense[:, 0].detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sigmoid(),
        nn.Tanh(),
        nn.LeakyReLU(0.2),
        nn.PReLU(),
        nn.ELU(1.5),
        nn.Softplus(beta=2),
        nn.SiLU(),
        nn.GELU(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_every_activation_comes_back_with_its_slope(module):
    low = -0.7 if isinstance(module, (nn.SiLU, nn.GELU)) else -4.0
    z = torch.linspace(low, 4, 41, dtype=torch.float64, requires_grad=True)
    h = module.double()(z)
    (slope,) = torch.autograd.grad(h.sum(), z)
    inverse = invert(module, h.detach())
    torch.testing.assert_close(inverse.z, z.detach(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(inverse.slope, slope, atol=1e-6, rtol=1e-6)
    assert bool(inverse.known.all())


def test_relu_says_which_inputs_it_kept():
    h = torch.tensor([0.0, 1e-9, 2.0], dtype=torch.float64)
    inverse = invert(nn.ReLU(), h, 1e-7)
    assert inverse.known.tolist() == [False, False, True]
    assert inverse.slope.tolist() == [0, 0, 1]


def stack(act, *, channels=3, classes=10, bias=True, last_bias=True, first=(), width=12):
    torch.manual_seed(5)
    return nn.Sequential(
        *first,
        nn.Conv2d(channels, width, 5, stride=2, padding=2, bias=bias),
        act,
        nn.Conv2d(width, width, 5, stride=2, padding=2, bias=bias),
        act,
        nn.Flatten(),
        nn.Linear(width * 64, classes, bias=last_bias),
    )


READERS = {
    "tanh": stack(nn.Tanh()),
    "leaky ReLU": stack(nn.LeakyReLU(0.2)),
    "SiLU": stack(nn.SiLU()),
    "ELU": stack(nn.ELU()),
    "softplus": stack(nn.Softplus()),
    "ReLU, wide enough": stack(nn.ReLU(), width=24),
    "one logit": stack(nn.Sigmoid(), classes=1),
    "two classes": stack(nn.Sigmoid(), classes=2),
    "no bias at all": stack(nn.Tanh(), bias=False, last_bias=False),
    "one logit without a bias": stack(nn.Tanh(), classes=1, last_bias=False),
    "one channel": stack(nn.Sigmoid(), channels=1),
    "normalise first": stack(nn.Sigmoid(), first=[Normalise([0.5] * 3, [0.25] * 3)]),
    "float64": stack(nn.Sigmoid()).double(),
    "batch norm, evaluated": stack(nn.Sigmoid(), first=[nn.BatchNorm2d(3)]).eval(),
    "linear layers": nn.Sequential(
        nn.Flatten(),
        nn.Linear(3072, 60),
        nn.ReLU(),
        nn.Linear(60, 30, bias=False),
        nn.Tanh(),
        nn.Sequential(nn.Linear(30, 10)),
    ),
    "dropout above a linear layer": nn.Sequential(
        nn.Conv2d(3, 12, 5, stride=2, padding=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12 * 256, 40),
        nn.Dropout(),
        nn.Linear(40, 10),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_readers_own_network_is_peeled(photos, name):
    model = READERS[name]
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    images = photos.inputs[3:4].to(first.weight.dtype)
    if isinstance(first, nn.Conv2d):
        images = images[:, : first.in_channels]
    labels = torch.tensor([1])
    recovery = peel(model, observe_gradient(model, images, labels))
    assert recovery.images.dtype == images.dtype
    assert float(psnr(images, recovery.images)) > 50
    assert recovery.labels.tolist() == [1]
    assert recovery.loss < 1e-3


def test_a_label_that_is_given_is_used_and_a_false_one_is_seen_in_the_loss(photos):
    model = LeNet(100, seed=0)
    leak, label = leak_of(model, photos, 0), int(photos.labels[0])
    right = peel(model, leak, label=label)
    assert right.loss < 1e-3
    # The picture needs no label where the last layer has a bias; the check does.
    assert peel(model, leak, label=(label + 1) % 100).loss > 0.1
    with pytest.raises(ValueError, match="label=100 is no class"):
        peel(model, leak, label=100)


def test_clipping_hides_nothing_and_one_step_is_a_gradient(photos):
    model = LeNet(100, seed=0)
    leak = leak_of(model, photos, 1)
    clipped = leak.with_row(leak.row / leak.row.norm(), clip_norm=1.0)
    truth = photos.inputs[1:2]
    for sent in (clipped, observe_step(model, truth, photos.labels[1:2], lr=1.0)):
        recovery = peel(model, sent)
        assert float(psnr(truth, recovery.images)) > 30
        assert recovery.loss < 0.05


@pytest.mark.parametrize("defence", ["noise", "pruned"])
def test_a_failure_is_admitted_by_the_loss_not_by_a_crash(photos, defence):
    model = LeNet(100, seed=0)
    leak = leak_of(model, photos, 2)
    row = leak.row / leak.row.norm()
    if defence == "noise":
        row = row + 1e-3 * torch.randn(len(row), generator=torch.Generator().manual_seed(0))
    else:
        row = torch.where(row.abs() >= row.abs().quantile(0.99), row, 0.0)
    recovery = peel(model, leak.with_row(row, clip_norm=1.0))
    if recovery.images is not None:
        assert recovery.loss > 0.1
        assert float(psnr(photos.inputs[2:3], recovery.images)) < 20


def test_a_trained_network_is_peeled_too(photos):
    model = LeNet(100, seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(photos.inputs), photos.labels).backward()
        optimiser.step()
    recovery = peel(model, leak_of(model, photos, 0))
    assert float(psnr(photos.inputs[:1], recovery.images)) > 35
    assert recovery.loss < 0.01


def test_the_protocol_names_every_layer_with_its_residual(photos):
    model = LeNet(100, seed=0)
    layers = peel(model, leak_of(model, photos, 0)).layers
    assert [layer.name.split()[0] for layer in layers] == ["7", "5", "4", "3", "2", "1", "0"]
    assert all(layer.residual < 1e-3 for layer in layers)
    assert (layers[-1].equations, layers[-1].unknowns) == (3828, 3072)


def test_what_cannot_be_is_refused_with_a_remedy(photos):
    model = LeNet(100, seed=0)
    images, labels = photos.inputs, photos.labels
    leak = leak_of(model, photos, 0)
    with pytest.raises(ValueError, match=r"batch_size=2.*match_gradients"):
        peel(model, observe_gradient(model, images[:2], labels[:2]))
    update = observe_update(model, images[:1], labels[:1], lr=0.1, epochs=3, batch_size=1)
    with pytest.raises(ValueError, match=r"3 local steps.*match_gradients"):
        peel(model, update)
    with pytest.raises(ValueError, match="give the weights"):
        peel(LeNet(10, seed=0), leak)
    with pytest.raises(ValueError, match="no parameter of the model"):
        peel(model[0], leak)
    with pytest.raises(ValueError, match="NaN or infinity"):
        peel(model, leak.with_row(leak.row * float("nan")))
    part = replace(leak, values={"0.weight": leak.values["0.weight"]})
    with pytest.raises(ValueError, match=r"lacks '0.bias'"):
        peel(model, part)
    with pytest.raises(ValueError, match="do not pass"):
        peel(model, replace(leak, image_shape=(1, 32, 32)))


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ([nn.AvgPool2d(2)], "one mean of each window"),
        ([nn.Dropout()], "drops values at random"),
        ([nn.BatchNorm2d(12)], "training mode"),
        ([nn.Conv2d(12, 12, 3, padding=1, groups=2)], "groups=2"),
    ],
    ids=lambda value: type(value[0]).__name__ if isinstance(value, list) else None,
)
def test_where_the_algebra_stops_it_says_where_and_gives_what_it_has(photos, tail, words):
    model = nn.Sequential(
        nn.Conv2d(3, 12, 5, stride=2, padding=2),
        nn.Sigmoid(),
        *tail,
        nn.Flatten(),
        nn.LazyLinear(10),
    )
    truth = model[:3](photos.inputs[:1]).detach()
    model(photos.inputs[:1])
    recovery = peel(model, observe_gradient(model, photos.inputs[:1], photos.labels[:1] % 10))
    assert recovery.images is None
    assert recovery.stopped_at.startswith("2 (")
    assert words in recovery.stopped_at
    assert recovery.features_at == "2"
    if not isinstance(tail[0], nn.Dropout):  # that one drew another mask here
        torch.testing.assert_close(recovery.features, truth, atol=1e-3, rtol=0)


def test_a_gradient_of_zero_and_a_model_without_linear_layers_stop_at_once(photos):
    model = LeNet(100, seed=0)
    leak = leak_of(model, photos, 0)
    recovery = peel(model, leak.with_row(torch.zeros_like(leak.row)))
    assert recovery.images is None
    assert recovery.features is None
    assert (
        recovery.stopped_at == "7 (Linear): its bias gradient is 0: the sample moved nothing here"
    )


def test_the_model_is_left_as_it_was(photos):
    model = LeNet(100, seed=0)
    leak = leak_of(model, photos, 0)
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.requires_grad_(False)
    recovery = peel(model, leak)
    assert recovery.loss < 1e-3
    assert not any(p.requires_grad for p in model.parameters())
    assert model.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_equations_told_twice_are_counted_once():
    """Nine channels: 27·9 + 64·9 = 819 equations for 768 unknowns, but only 738 of rank."""
    torch.manual_seed(0)
    images = torch.rand(1, 3, 16, 16)
    for channels, stops in ((9, True), (12, False)):
        model = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(64 * channels, 10),
        )
        uniform_(model, 0.5)
        found = peel(model, observe_gradient(model, images, torch.tensor([1])))
        assert (found.images is None) == stops
        if stops:
            assert found.stopped_at.startswith("0 (Conv2d): 738 equations for 768 unknowns")

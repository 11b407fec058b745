import pytest
import torch
from torch import nn

from flcourse.attacks.deconvolve import shift_matrix, solve_input, weight_gradient
from flcourse.attacks.inverses import invert
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.recursive import peel
from flcourse.data import load_dataset
from flcourse.metrics import psnr
from flcourse.models import LeNet


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

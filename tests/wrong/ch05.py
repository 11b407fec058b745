"""Mistakes people really make in the exercises of chapter 05, and what they must be told."""

import torch
from torch import nn


def covered(side, kernel, stride, padding):
    return (side + 2 * padding - kernel) // stride + 1


def counted(*, gradient=True, output=True, bias=False, channels=True, pairs=True, out=covered):
    """The count of 05.1 with one thing changed."""

    def answer(conv, height, width):
        c, o, k = conv.in_channels, conv.out_channels, conv.kernel_size[0]
        shape = k, conv.stride[0], conv.padding[0]
        places = out(height, *shape) * out(width, *shape)
        equations = o * (c if pairs else 1) * k * k * gradient
        equations += (o if channels else 1) * places * output + o * bias
        return equations, c * height * width

    return answer


def right(conv, height, width):
    return counted()(conv, height, width)


def peeled(
    *, invert=torch.logit, size=lambda d: d.square().sum(), slope=lambda h: h * (1 - h), back=True
):
    """A right answer to 05.2 with one thing changed."""

    def answer(weight, grad_weight, delta):
        h = grad_weight.T @ delta / size(delta)
        z = invert(h)
        through = weight.T @ delta if back else grad_weight.T @ delta
        return z, through * slope(h)

    return answer


def one_row(weight, grad_weight, delta):
    h = grad_weight[0] / delta[0]
    return torch.logit(h), (weight.T @ delta) * h * (1 - h)


def slope_at_z(weight, grad_weight, delta):
    z = torch.logit(grad_weight.T @ delta / delta.square().sum())
    return z, (weight.T @ delta) * z * (1 - z)


def blurred(reason="B"):
    net = nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    return net, reason


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), "B"


def without_bias():
    first = nn.Linear(64, 32, bias=False)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(32, 10)), "B"


def sigmoids():
    first = nn.Conv2d(1, 6, 3, padding=1)
    return nn.Sequential(first, nn.Sigmoid(), nn.Flatten(), nn.Linear(384, 10)), "B"


def blind():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10)), "B"


def two_outputs():
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 2)), "B"


WRONG = {
    "05.1": [
        ("gradient alone", counted(output=False), "gradient alone"),
        ("output alone", counted(gradient=False), "output's values alone"),
        ("bias counted", counted(bias=True), "bias's gradient says nothing"),
        ("output of one channel", counted(channels=False), "times its channels"),
        ("weight of one input channel", counted(pairs=False), "pair"),
        ("output as large as input", counted(out=lambda n, k, s, p: n), "not as large"),
        ("no padding", counted(out=lambda n, k, s, p: (n - k) // s + 1), "both sides"),
        ("no stride", counted(out=lambda n, k, s, p: n + 2 * p - k + 1), "stride skips"),
        ("swapped", lambda *a: right(*a)[::-1], "swapped"),
        ("one channel of pixels", lambda c, h, w: (right(c, h, w)[0], h * w), "one channel"),
        ("a verdict", lambda *a: right(*a)[0] >= right(*a)[1], "two numbers"),
    ],
    "05.2": [
        ("the input itself", peeled(invert=lambda h: h), "before the sigmoid"),
        ("sigmoid again", peeled(invert=torch.sigmoid), "undone"),
        ("atanh", peeled(invert=torch.atanh), "tanh"),
        ("norm not squared", peeled(size=lambda d: d.norm()), "‖δ‖"),
        ("no slope", peeled(slope=lambda h: 1), "gradient by h"),
        ("slope divided", peeled(slope=lambda h: 1 / (h * (1 - h))), "multiplies"),
        ("slope of tanh", peeled(slope=lambda h: 1 - h**2), "derivative of tanh"),
        ("slope at z", slope_at_z, "wrong place"),
        ("gradient for weight", peeled(back=False), "where the weight W belongs"),
        ("first row", one_row, "NaN or infinite"),
        ("z only", lambda *a: peeled()(*a)[0], "two things"),
    ],
    "05.3": [
        ("linear layer first", linear, "divide brings a digit back"),
        ("no bias", without_bias, "brings a digit back"),
        ("sigmoids", sigmoids, "peel brings a digit back"),
        ("learns nothing", blind, "Hiding is easy"),
        ("claims protection", lambda: blurred("A"), "could not learn"),
        ("only the label", lambda: blurred("C"), "More than the label"),
        ("no reason", lambda: blurred()[0], "the reason"),
        ("another letter", lambda: blurred("D"), 'give the letter "A"'),
        ("two outputs", two_outputs, "should be [2, 10]"),
    ],
}

"""Checks of chapter 05: a count, one layer backwards, a network that resists the attacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.linear import divide
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.recursive import peel
from flcourse.attacks.scoring import score, succeeded
from flcourse.attacks.types import Leak
from flcourse.data import Split, load_dataset
from flcourse.exercises._core import Wrong, as_tensor, exercise, expect_close
from flcourse.runtime import generator, seeded

LEARNT, ATTACKED, SUSPECTS, SEARCH = 0.75, 3, 50, 100
LAYERS = (
    # c_in, c_out, kernel, stride, padding, height, width
    (3, 12, 5, 2, 1, 32, 32),
    (12, 12, 5, 1, 2, 8, 8),
    (1, 4, 3, 1, 0, 28, 28),
    (3, 8, 3, 2, 1, 15, 20),
    (2, 5, 4, 3, 1, 11, 9),
)


@exercise(
    "05.1",
    title="equations and unknowns",
    hints=(
        "The unknowns are all values of the input, conv.in_channels · height · width. The weight's "
        "gradient has as many entries as the weight: conv.weight.numel().",
        "One side of the output has (side + 2·padding − kernel) // stride + 1 places. Each value "
        "of the output, in every output channel, is one more equation.",
    ),
)
def count(answer: Callable[..., Any]) -> str:
    for c_in, c_out, kernel, stride, padding, height, width in LAYERS:
        conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=padding)
        forward = conv(torch.zeros(1, c_in, height, width)).numel()
        own = conv.weight.numel()
        got = as_tensor(answer(conv, height, width), "the counts").reshape(-1)
        where = (
            f"For {c_in} → {c_out} channels, kernel {kernel}, stride {stride}, padding {padding}, "
            f"input {height} × {width}"
        )
        if len(got) != 2:
            raise Wrong(f"Return two numbers, equations and unknowns; yours are {len(got)}.")
        equations, unknowns = (float(value) for value in got)
        pixels = c_in * height * width
        if (equations, unknowns) == (pixels, own + forward):
            raise Wrong("The two numbers are swapped: equations first, then unknowns.")
        if unknowns != pixels:
            raise Wrong(f"{where}: {_why_unknowns(unknowns, c_in, height, width)}")
        if equations != own + forward:
            told = _why_equations(equations, conv, forward, height, width)
            raise Wrong(f"{where}: {told}")
    return "A necessary condition. Whether it is sufficient, a later section finds out."


def _why_unknowns(unknowns: float, c_in: int, height: int, width: int) -> str:
    if unknowns == height * width:
        return (
            f"you count {unknowns:.0f} unknowns, the pixels of one channel. There are {c_in} "
            "channels."
        )
    return (
        f"you count {unknowns:.0f} unknowns. The input has {c_in * height * width} values: "
        "channels × height × width."
    )


def _why_equations(equations: float, conv: nn.Conv2d, forward: int, height: int, width: int) -> str:
    own, k = conv.weight.numel(), conv.kernel_size[0]
    stride, padding = conv.stride[0], int(conv.padding[0])
    if equations == own:
        return (
            f"you count {own} equations, those of the gradient alone. The output is known, too: "
            "each of its values is one more."
        )
    if equations == forward:
        return "you count the output's values alone. Each entry of the weight's gradient counts."
    if equations == own + forward + conv.out_channels:
        return "the bias's gradient says nothing about the input: it is the sum of δ, known before."
    if equations == own + forward // conv.out_channels:
        return "the output has as many values as places, times its channels."
    loose = ((height - k) // stride + 1) * ((width - k) // stride + 1) * conv.out_channels
    if padding and equations == own + loose:
        return "the padding lies on both sides: a side of (side + 2·padding − kernel) // stride + 1"
    dense = (height + 2 * padding - k + 1) * (width + 2 * padding - k + 1) * conv.out_channels
    if stride > 1 and equations == own + dense:
        return "the stride skips places: divide by it before you add 1."
    if equations == own + conv.out_channels * height * width:
        return "the output is not as large as the input: kernel, stride and padding change it."
    if equations == own // conv.in_channels + forward:
        return (
            "an entry of the weight's gradient for every *pair* of input and output channel: use "
            "conv.weight.numel()."
        )
    return f"you count {equations:.0f} equations; there are {own} + {forward} = {own + forward}."


@exercise(
    "05.2",
    title="one layer backwards",
    hints=(
        "∂W = δ hᵀ. Multiply from the left by δᵀ: δᵀ∂W = (δᵀδ) hᵀ. What is left to divide by?",
        "z is torch.logit(h). The loss's gradient by h is Wᵀδ; the sigmoid's derivative at z is "
        "h(1 − h).",
    ),
)
def peel_layer(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 05.2")
    for size, outputs in ((6, 4), (30, 10), (8, 20)):
        weight = torch.randn(outputs, size, generator=draw, dtype=torch.float64)
        z = torch.randn(size, generator=draw, dtype=torch.float64).requires_grad_()
        h = torch.sigmoid(z)
        target = torch.randn(outputs, generator=draw, dtype=torch.float64)
        matrix = weight.clone().requires_grad_()
        loss = (torch.tanh(matrix @ h) * target).sum()
        grad, by_z, by_h = torch.autograd.grad(loss, [matrix, z, h])
        delta = (grad @ h / h.square().sum()).detach()
        # One neuron without a say: whoever divides by a single δ must not pick it.
        _check_peeled(answer, weight, grad.detach(), delta, z.detach(), by_z, by_h)
        delta[0], grad[0] = 0, 0
        h, back = h.detach(), weight.T @ delta
        _check_peeled(answer, weight, grad.detach(), delta, z.detach(), back * h * (1 - h), back)
    return "Three lines a layer. A convolution will differ only in how its input is solved for."


def _check_peeled(
    answer: Callable[..., Any],
    weight: Tensor,
    grad: Tensor,
    delta: Tensor,
    z: Tensor,
    by_z: Tensor,
    by_h: Tensor,
) -> None:
    got = answer(weight.clone(), grad.clone(), delta.clone())
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong("Return two things: z and the loss's gradient by z.")
    h = torch.sigmoid(z)
    expect_close(
        got[0],
        z,
        "the z that you return",
        "With δ known, h = ∂Wᵀδ / ‖δ‖², and z = logit(h).",
        mistakes={
            "You return h, the layer's input. z stands before the sigmoid: undo it.": h,
            "The sigmoid is applied once more instead of undone: use torch.logit.": torch.sigmoid(
                h
            ),
            "You divide by ‖δ‖ where ‖δ‖² belongs: ∂Wᵀδ = h·‖δ‖².": torch.logit(
                h * delta.norm(), eps=1e-12
            ),
            "You do not divide by ‖δ‖²: ∂Wᵀδ = h·‖δ‖².": torch.logit(grad.T @ delta, eps=1e-12),
            "You undo a tanh; this activation is a sigmoid.": torch.atanh(h),
        },
    )
    slope = h * (1 - h)
    expect_close(
        got[1],
        by_z,
        "the gradient by z",
        "It is (Wᵀδ) times h(1 − h), entry by entry.",
        mistakes={
            "This is the gradient by h. The chain rule goes on through the sigmoid: times "
            "h(1 − h).": by_h,
            "The sigmoid's derivative stands alone; multiply it by Wᵀδ.": slope,
            "You divide by h(1 − h). Going backwards, the chain rule still multiplies.": by_h
            / slope,
            "1 − h² is the derivative of tanh; this is a sigmoid: h(1 − h).": by_h * (1 - h**2),
            "You take the derivative at the wrong place: z(1 − z) instead of h(1 − h).": by_h
            * z
            * (1 - z),
            "You use ∂W where the weight W belongs: δ goes back through the weights.": (
                grad.T @ delta
            )
            * slope,
        },
    )


@exercise(
    "05.3",
    title="a network that resists, and why that is no protection",
    hints=(
        "What stops the algebra? Layers that throw values away. What stops the search, too? "
        "Nothing that is thrown away *before the first weight* can come back.",
        "Take a quarter of the pixels, or their means, and classify those. For the reason: whoever "
        "has a list of suspects can compute each one's gradient. Which fits?",
    ),
)
def opaque(answer: Callable[..., Any]) -> str:
    with seeded(0, "exercise 05.3"):
        model, reason = _opened(answer())
    digits = load_dataset("digits")
    leaks = _attacked(model, digits)
    right = _learnt(model, digits)
    if reason != "B":
        raise Wrong(
            "The attacks fail on your network, but the reason is not right. "
            + (
                "If the gradient did not depend on the picture, the network could not learn from "
                f"it; yours gets {right:.0%} right."
                if reason == "A"
                else "More than the label leaks: pictures of one class have different gradients."
            )
            + f" Given {SUSPECTS} digits of one class, we named the private one by its gradient in "
            f"{_named(model, digits, leaks)} of {ATTACKED} cases."
        )
    return (
        "divide, peel and match_gradients fail, and the network still learns "
        f"({right:.0%} right). It is no protection: from the same gradients the label was read in "
        f"{_labels(digits, leaks)} of {ATTACKED} cases, and among {SUSPECTS} digits of "
        "the same class the private one was "
        f"named in {_named(model, digits, leaks)} of {ATTACKED}."
    )


def _opened(given: Any) -> tuple[nn.Module, str]:
    if isinstance(given, nn.Module):
        raise Wrong('Return the network and the reason: return network, "A" (or "B", or "C").')
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise Wrong("Return two things: the network, and the letter of the reason.")
    model, reason = given
    if not isinstance(model, nn.Module):
        raise Wrong(f"The first thing should be a network, but it is a {type(model).__name__}.")
    letter = str(reason).strip().upper()
    if letter not in ("A", "B", "C"):
        raise Wrong(f'The reason is {reason!r}: give the letter "A", "B" or "C".')
    if not any(p.requires_grad for p in model.parameters()):
        raise Wrong("The network has nothing that is trained, so it sends nothing.")
    shape = list(model(torch.zeros(2, 1, 8, 8)).shape)
    if shape != [2, 10]:
        raise Wrong(f"For digits [2, 1, 8, 8] the network returns {shape}; it should be [2, 10].")
    return model, letter


def _attacked(model: nn.Module, digits: Split) -> list[Leak]:
    """The gradients of the first test digits; raises where an attack brings a picture back."""
    leaks = []
    for image, label in _private(digits):
        leak = observe_gradient(model, image, label)
        leaks.append(leak)
        if not bool(leak.row.any()):
            raise Wrong("The gradient is zero: nothing is sent, and nothing can be learnt.")
        for name, attack in (("divide", divide), ("peel", peel), ("match_gradients", _search)):
            try:
                found = attack(model, leak)
            except (ValueError, RuntimeError):
                continue  # the attack does not apply to such a network
            scores = score(found, image)
            if bool(succeeded(scores)):
                value = float(scores.psnr)
                quality = f"at {value:.0f} dB" if math.isfinite(value) else "exactly"
                raise Wrong(
                    f"{name} brings a digit back {quality} (floor {float(scores.floor):.0f} dB). "
                    f"{_ADVICE[name]}"
                )
    return leaks


_ADVICE = {
    "divide": "A linear layer with a bias that sees all pixels gives them away.",
    "peel": "Every layer can be undone here, with enough equations.",
    "match_gradients": "The algebra may stop, but the search still sees all pixels.",
}


def _search(model: nn.Module, leak: Leak) -> Any:
    return match_gradients(model, leak, steps=SEARCH)


def _private(digits: Split) -> list[tuple[Tensor, Tensor]]:
    test = digits.test
    inputs = test.inputs[:ATTACKED].reshape(-1, 1, 8, 8)
    return list(zip(inputs.split(1), test.labels[:ATTACKED].split(1), strict=True))


def _learnt(model: nn.Module, digits: Split) -> float:
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    images, labels = digits.train.inputs.reshape(-1, 1, 8, 8), digits.train.labels
    draw = generator(0, "exercise 05.3 batches")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(200):
        chosen = torch.randint(len(images), (128,), generator=draw)
        optimiser.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimiser.step()
    with torch.no_grad():
        guesses = model(digits.test.inputs.reshape(-1, 1, 8, 8)).argmax(dim=1)
        right = float((guesses == digits.test.labels).float().mean())
        model.load_state_dict(before)  # the gradients were taken at these weights
    if not right >= LEARNT:
        raise Wrong(
            f"The attacks fail, but the network gets only {right:.0%} of the digits right after "
            f"training; it should reach {LEARNT:.0%}. Hiding is easy where nothing is learnt."
        )
    return right


def _labels(digits: Split, leaks: list[Leak]) -> int:
    last = [[g for g in leak.gradients.values() if g.shape == (10,)] for leak in leaks]
    pairs = zip(last, digits.test.labels[:ATTACKED].tolist(), strict=True)
    return sum(bool(found) and int(found[-1].argmin()) == label for found, label in pairs)


def _named(model: nn.Module, digits: Split, leaks: list[Leak]) -> int:
    """How often the private digit's gradient is nearest to the leak, among digits of its class."""
    named = 0
    for (image, label), leak in zip(_private(digits), leaks, strict=True):
        others = digits.train.inputs[digits.train.labels == label][: SUSPECTS - 1]
        suspects = torch.cat([image, others.reshape(-1, 1, 8, 8)])
        rows = [observe_gradient(model, one, label).row for one in suspects.split(1)]
        gaps = (torch.stack(rows) - leak.row).norm(dim=1)
        named += int(gaps.argmin()) == 0
    return named

"""The closed form: a picture from one gradient, layer by layer from the end. Chapter 05.

Source: the idea of Zhu & Blaschko 2021, "R-GAP: Recursive Gradient Attack on Privacy", section 3,
with one decomposition for all input channels of a convolution instead of one dense system.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flcourse.attacks.biasfree import last_deltas
from flcourse.attacks.chain import Link, channel_affine, check_leak, read_chain
from flcourse.attacks.deconvolve import conv_back, relative, solve_input
from flcourse.attacks.inverses import invert
from flcourse.attacks.labels import sign_rule
from flcourse.attacks.types import Layer, Leak, Recovery
from flcourse.attacks.verify import check_answer

# An error e of an output h is e / act'(z) of z: slopes below this part of the steepest weigh less.
SOFT_SLOPE = 1e-2


@dataclass(frozen=True)
class State:
    """What is known between two layers: the values, and the loss's gradient by them.

    ``trust`` in [0, 1] weighs a value's equation: 0 where only a bound is known. ``error`` is the
    relative accuracy of the values.
    """

    value: Tensor
    delta: Tensor
    trust: Tensor
    error: float


@dataclass(frozen=True)
class Walk:
    """The picture, or the last values known completely and the layer whose output they are."""

    value: Tensor | None
    name: str | None
    layers: tuple[Layer, ...]
    stopped: str | None


class Stop(Exception):
    """The algebra ends at a layer; the message says why."""


def peel(model: nn.Module, leak: Leak, *, label: int | None = None) -> Recovery:
    """The picture behind one gradient in closed form, from the last linear layer down.

    ============== ==========================================================================
    label          the only class with ``∂b < 0`` (iDLG)
    linear layer   ``x = ∂Wᵀ δ / ‖δ‖²`` with ``δ = ∂b``, exact
    activation     ``z = act⁻¹(h)`` and ``δ_z = δ_h · act'(z)``
    convolution    ``∂W_i = G(δ) x_i`` for every channel and ``conv(x) = z``: least squares
    further down   ``δ_x = Wᵀ δ``, or the transposed convolution
    ============== ==========================================================================

    Reads chains of ``Linear``, ``Conv2d`` (any stride, padding, dilation), sigmoid, tanh, leaky
    ReLU, ELU, softplus, SiLU, flatten, a scale per channel; ReLU where enough of its outputs are
    above 0. All in float64. Only directions count, so a clipped or rescaled gradient does as well.

    The attack checks itself: ``loss`` is ``‖g(x̂) - leak‖ / ‖leak‖``, the gradient recomputed at the
    answer (of the leak's length where it was clipped): below about 1e-3 the picture is right, near
    1 it is wrong. ``layers`` has the residual of each layer. Where the equations run out,
    ``images`` is ``None``, ``stopped_at`` says where and why, and ``features`` ``[1, …]`` is the
    exact input of the last layer that was solved, as the output of the layer ``features_at``:
    ``invert_features`` goes on from there.

    ``label`` is inferred unless given; it is needed where the last layer has no bias, and for the
    check. Source: Zhu & Blaschko 2021 and Zhao et al. 2020. Chapter 05.
    Raises ``ValueError`` for more than one sample, several local steps (both: use
    ``match_gradients``), or a leak that does not fit the model or is not finite.
    """
    start = time.process_time()
    if leak.batch_size != 1:
        raise ValueError(
            f"batch_size={leak.batch_size}: the closed form is for one sample; use match_gradients"
        )
    gradients = check_leak(model, leak)
    links = read_chain(model, leak.image_shape)
    label = infer_label(links, gradients) if label is None else _checked(label, links)
    tried = []
    for guess, delta in _starts(links, gradients, label):
        found, loss = walk(links, gradients, delta), math.nan
        if found.stopped is None and found.value is not None:
            loss = check_answer(model, leak, links, gradients, found.value[None], guess)
        tried.append((guess, found, loss))
    guess, found, loss = min(tried, key=_promise)
    reference = next(model.parameters()).detach()
    value = None if found.value is None else found.value[None].to(reference)
    done = found.stopped is None
    return Recovery(
        images=value if done else None,
        labels=None if guess is None else torch.tensor([guess], device=reference.device),
        method="peel",
        loss=loss,
        evaluations=sum(found.stopped is None for _, found, _ in tried),
        seconds=time.process_time() - start,
        layers=found.layers,
        stopped_at=found.stopped,
        features=None if done else value,
        features_at=found.name,
    )


def _starts(
    links: tuple[Link, ...], gradients: dict[str, Tensor], label: int | None
) -> list[tuple[int | None, Tensor | None]]:
    """Labels to try, each with the last layer's ``δ`` where that has no bias to give it."""
    last = links[-1]
    weight = gradients.get(last.parameter("weight"))
    if last.kind != "linear" or weight is None or last.parameter("bias") in gradients:
        return [(label, None)]
    labels = [label] if label is not None else list(range(max(2, len(weight))))
    own = last.module.weight
    assert isinstance(own, Tensor)
    found = [(y, delta) for y in labels for delta in last_deltas(own.detach(), weight, y)]
    return [*found] or [(label, None)]


def _promise(tried: tuple[int | None, Walk, float]) -> tuple[bool, float]:
    """Smaller is better: a picture before none, then what explains the leak best."""
    _, found, loss = tried
    worst = max((layer.residual for layer in found.layers), default=math.inf)
    return found.stopped is not None, worst if math.isnan(loss) else loss


def infer_label(links: tuple[Link, ...], gradients: dict[str, Tensor]) -> int | None:
    """The label from the last layer's bias gradient, or without a bias from its weight gradient.

    With one logit the sign says it: ``∂b = sigmoid(z) - y``. ``None`` where the model does not end
    with a linear layer, or its gradient is zero.
    """
    last = links[-1]
    if last.kind != "linear":
        return None
    bias = gradients.get(last.parameter("bias"))
    if bias is not None:
        if len(bias) == 1:
            return None if float(bias) == 0 else int(float(bias) < 0)
        return int(sign_rule(bias).labels) if bool(bias.any()) else None
    weight = gradients.get(last.parameter("weight"))
    if weight is None or len(weight) < 3 or not bool(weight.any()):
        return None
    # ∂W = (p - y) hᵀ: up to one sign, its left singular vector has one entry unlike the others.
    column = torch.linalg.svd(weight, full_matrices=False).U[:, 0]
    positive = int((column > 0).sum())
    return int(column.argmax() if positive * 2 < len(column) else column.argmin())


def walk(
    links: tuple[Link, ...], gradients: dict[str, Tensor], delta: Tensor | None = None
) -> Walk:
    """From the last layer to the first, as far as the equations reach.

    ``delta`` is the loss's gradient by the outputs, if it is known some other way than by ``∂b``.

    Above the lowest linear layer with a bias nothing is needed, as ``∂b`` is its ``δ``: a layer
    that has no inverse stops the walk only where no such layer follows further down.
    """
    state: State | None = None
    whole: tuple[Tensor, str] | None = None
    layers: list[Layer] = []
    stopped = ""
    for index in reversed(range(len(links))):
        link = links[index]
        if state is None and link.kind not in ("linear", "opaque"):
            continue  # nothing is known behind it, and nothing needs to be
        try:
            state, layer = _step(link, gradients, state, delta if link is links[-1] else None)
        except Stop as reason:
            if state is not None or not stopped:
                stopped = f"{link.title}: {reason}"
            if state is not None and not _restarts(links[:index], gradients):
                break
            state = None
            continue
        if layer is not None:
            layers.append(layer)
        if index > 0 and bool((state.trust > 0).all()):
            whole = state.value, links[index - 1].name
        if index == 0:
            return Walk(state.value, None, tuple(layers), None)
    value, name = whole if whole is not None else (None, None)
    none = "no linear layer has a gradient to start from"
    return Walk(value, name, tuple(layers), stopped or f"{links[0].title}: {none}")


def _restarts(links: tuple[Link, ...], gradients: dict[str, Tensor]) -> bool:
    def usable(link: Link) -> bool:
        bias = gradients.get(link.parameter("bias"))
        return link.kind == "linear" and bias is not None and bool(bias.any())

    return any(usable(link) for link in links)


def _step(
    link: Link, gradients: dict[str, Tensor], after: State | None, given: Tensor | None
) -> tuple[State, Layer | None]:
    """The state before a layer from the one after it."""
    if link.kind == "linear":
        return _linear(link, gradients, after, given)
    if link.kind == "opaque":
        raise Stop(link.why)
    assert after is not None
    if link.kind == "conv":
        return _conv(link, gradients, after)
    if link.kind == "activation":
        return _activation(link, after)
    if link.kind == "affine":
        return _affine(link, after)
    shape = link.in_shape
    value, delta, trust = (t.reshape(shape) for t in (after.value, after.delta, after.trust))
    return State(value, delta, trust, after.error), None


def _linear(
    link: Link, gradients: dict[str, Tensor], after: State | None, given: Tensor | None
) -> tuple[State, Layer]:
    weight = gradients.get(link.parameter("weight"))
    bias = gradients.get(link.parameter("bias"))
    if weight is None:
        raise Stop("its weight gradient is not in the leak")
    assert isinstance(link.module, nn.Linear)
    own = link.module.weight.detach()
    if bias is not None and bool(bias.any()):
        delta, what = bias, "x = ∂Wᵀ∂b / ‖∂b‖²"
    elif after is not None and bool(after.delta.any()):
        delta, what = after.delta, "x = ∂Wᵀδ / ‖δ‖²"
    elif given is not None:
        delta, what = given, "∂W = (p - y)xᵀ, its factor from softmax"
    elif bias is not None:
        raise Stop("its bias gradient is 0: the sample moved nothing here")
    else:
        raise Stop("it has no bias, so that its input is known up to a factor only")
    x = weight.T @ delta / delta.square().sum()
    residual = relative(weight - torch.outer(delta, x), weight)
    # Every row of a neuron with δ ≠ 0 is the input once more.
    equations = int((delta != 0).sum()) * len(x)
    layer = Layer(link.title, what, residual, equations, len(x))
    return State(x, own.T @ delta, torch.ones_like(x), residual), layer


def _activation(link: Link, after: State) -> tuple[State, Layer]:
    inverse = invert(link.module, after.value, 10 * after.error * float(after.value.abs().max()))
    # An error e of h is e / slope of z: saturated outputs weigh less.
    trust = inverse.known * inverse.slope.abs() / (inverse.slope.abs() + SOFT_SLOPE)
    again = link.module(inverse.z[None].clone())[0]
    residual = relative((again - after.value) * inverse.known, after.value)
    open_ = float(inverse.known.double().mean())
    what = "z = act⁻¹(h)" if open_ == 1 else f"z = h where h > 0 ({open_:.0%})"
    state = State(inverse.z, after.delta * inverse.slope, trust * after.trust, after.error)
    counts = int(inverse.known.sum()), inverse.z.numel()
    return state, Layer(link.title, what, residual, *counts)


def _affine(link: Link, after: State) -> tuple[State, Layer]:
    scale, shift = channel_affine(link)
    if not bool((scale != 0).all()):
        raise Stop("it scales a channel by 0")
    value = (after.value - shift) / scale
    residual = relative(value * scale + shift - after.value, after.value)
    state = State(value, after.delta * scale, after.trust, after.error)
    return state, Layer(link.title, "x = (z - shift) / scale", residual)


def _conv(link: Link, gradients: dict[str, Tensor], after: State) -> tuple[State, Layer]:
    conv = link.module
    assert isinstance(conv, nn.Conv2d)
    gradient = gradients.get(link.parameter("weight"))
    solved = solve_input(conv, gradient, after.delta, after.value, after.trust, link.in_shape)
    if solved.equations < solved.unknowns:
        raise Stop(f"{solved.equations:,} equations for {solved.unknowns:,} unknowns")
    delta = conv_back(conv, after.delta, link.in_shape)
    error = max(solved.gradient_residual, solved.forward_residual)
    what = f"∂W = G(δ)x, of rank {solved.rank}, and conv(x) = z"
    state = State(solved.x, delta, torch.ones_like(solved.x), max(after.error, error))
    return state, Layer(link.title, what, error, solved.equations, solved.unknowns)


def _checked(label: int, links: tuple[Link, ...]) -> int:
    classes = links[-1].out_shape[0]
    count = 2 if classes == 1 else classes
    if not 0 <= int(label) < count:
        raise ValueError(f"label={label} is no class of this model: give 0 to {count - 1}")
    return int(label)

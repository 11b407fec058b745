"""Checks of chapter 04: a label from a sign, the labels of a batch, a loss that hides the sign."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flcourse.data import load_dataset
from flcourse.exercises._core import Wrong, as_tensor, exercise, expect_close
from flcourse.models import Logistic
from flcourse.runtime import generator

LEARNT, HIDDEN, TRIED = 0.8, 0.1, 60  # accuracy, share of signs that mislead, digits tried


@exercise(
    "04.1",
    title="the label in a sign",
    hints=(
        "In a gradient the true class has p − 1 < 0 and every other class p > 0. What does "
        "−lr × gradient make of these signs?",
        "Turn an update into something with the gradient's signs first. Then count the negative "
        "entries: (entries < 0).sum(). One is a label; any other number is -1.",
    ),
)
def read_label(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 04.1")
    for k, label, height in ((10, 7, 2.0), (100, 42, 2.0), (4, 0, 2.0), (10, 3, -14.0)):
        # A height of -14 is a model that is sure of the label: its entry is about -1e-5.
        logits = torch.randn(k, generator=draw, dtype=torch.float64)
        logits[label] -= height
        gradient = logits.softmax(0) - F.one_hot(torch.tensor(label), k)
        _check_label(answer, gradient, "gradient", label)
        _check_label(answer, -0.05 * gradient, "update", label)
    for label in (0, 1):
        two = torch.tensor([0.3, -0.3] if label else [-0.3, 0.3])
        _check_label(answer, two, "gradient", label)
        _check_label(answer, -0.1 * two, "update", label)
    for kind, scale in (("gradient", 1.0), ("update", -0.1)):
        _check_unknown(answer, scale * torch.tensor([0.2, -0.3, 0.3, -0.2]), kind)
        _check_unknown(answer, torch.zeros(3), kind)
    return "One comparison with zero: no search, no picture, and it works in every round."


def _check_label(answer: Callable[..., Any], message: Tensor, kind: str, label: int) -> None:
    got = _label(answer, message.float(), kind)
    if got == label:
        return
    sign = 1 if kind == "gradient" else -1
    k, size = len(message), float(message[label].abs())
    if got == int((sign * message).argmax()) and k > 2:
        turned = (
            " An update is local − global = −lr × gradient: all signs are turned."
            if kind == "update"
            else ""
        )
        raise Wrong(
            f"For {_a(kind)} you name class {got}, whose entry says 'other class'. In a gradient "
            f"the label is the one *negative* entry, p − 1.{turned}"
        )
    if got == -1 and size < 1e-3:
        raise Wrong(
            f"For {_a(kind)} of a model that is sure you find no label: its entry is "
            f"{float(message[label]):.0e}. Small is enough: compare with 0, without a threshold."
        )
    if got == -1 and kind == "update":
        raise Wrong(
            "You find no label in an update. An update is −lr × gradient, so all signs are turned."
        )
    if k == 2:
        raise Wrong(
            "With two classes both entries have the same size, 1 − p and p − 1: ask which one has "
            f"the label's sign, not which is larger. ({_a(kind).capitalize()}, two classes.)"
        )
    raise Wrong(
        f"For {_a(kind)} of {k} classes you name class {got}; the label is {label}, where p − 1 < 0"
        " stands in the gradient."
    )


def _check_unknown(answer: Callable[..., Any], message: Tensor, kind: str) -> None:
    got = _label(answer, message, kind)
    count, sign = int((message < 0).sum()), "negative"
    if kind == "update":
        count, sign = int((message > 0).sum()), "positive"
    if got != -1:
        raise Wrong(
            f"This {kind} has {count} {sign} entries, and that of one sample has exactly one. You "
            f"name class {got}; say -1 where the rule does not apply."
        )


def _a(kind: str) -> str:
    return "an update" if kind == "update" else "a gradient"


def _label(answer: Callable[..., Any], message: Tensor, kind: str) -> int:
    value = as_tensor(answer(message.clone(), kind), "the label")
    if value.numel() != 1:
        raise Wrong(f"Return one class, not {value.numel()} values.")
    if float(value) != math.floor(float(value)):
        raise Wrong(f"Return the class (its place), not the entry {float(value):.3g} itself.")
    return int(value)


@exercise(
    "04.2",
    title="count the labels of a batch",
    hints=(
        "Solve ∂b = p̄ − n/B for n. The result has fractions, as p̄ is only a guess.",
        "Rounding each class alone need not give B labels. Deal them out one by one instead: B "
        "times, give a label to the class that still lacks the most.",
    ),
)
def count_labels(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 04.2")
    for k, size in ((3, 4), (10, 8), (10, 32), (5, 1)):
        true = torch.randint(k, (size,), generator=draw).bincount(minlength=k).double()
        mean = torch.randn(k, generator=draw, dtype=torch.float64).softmax(0)
        _check_exact(answer, true, mean, size)
    for _ in range(30):
        k, size = 6, int(torch.randint(2, 20, (1,), generator=draw))
        true = torch.randint(k, (size,), generator=draw).bincount(minlength=k).double()
        mean, guess = torch.randn(2, k, generator=draw, dtype=torch.float64).softmax(1)
        _check_guessed(answer, mean - true / size, guess, size)
    return "Exact where p̄ is known; as good as the guess of p̄ where it is not."


def _check_exact(answer: Callable[..., Any], true: Tensor, mean: Tensor, size: int) -> None:
    bias = mean - true / size
    mistakes: dict[str, object] = {
        "These are the shares n/B. Multiply by the batch size.": true / size,
        "The sign is turned: n = B(p̄ − ∂b).": -true,
        "You count the negative entries only. A class whose entry is positive can be in the batch, "
        "too: n = B(p̄ − ∂b).": (bias < 0).double(),
        "You take the same p̄ for all classes (1/k, or none). Use mean_probability: the model "
        "need not think that all classes are alike.": _dealt(-size * bias, size),
        "The counts are cut off to whole numbers: 2.9999 became 2.": (
            size * (mean.float() - bias.float())
        ).trunc(),
    }
    got = answer(bias.float(), mean.float(), size)
    what = f"what you return for {len(true)} classes and {size} samples"
    expect_close(got, true, what, "n = B(p̄ − ∂b).", mistakes=mistakes, atol=0.02)


def _check_guessed(answer: Callable[..., Any], bias: Tensor, guess: Tensor, size: int) -> None:
    got = as_tensor(answer(bias.float(), guess.float(), size), "the counts")
    if got.shape != bias.shape:
        raise Wrong(f"One count for each class: shape {list(bias.shape)}, not {list(got.shape)}.")
    wanted = size * (guess - bias)
    if not torch.equal(got, got.round()):
        raise Wrong("Where p̄ is a guess, B(p̄ − ∂b) has fractions. Counts are whole numbers.")
    if float(got.min()) < 0:
        raise Wrong(
            "A count is negative. Where p̄ is a guess, that happens: no class has less than 0."
        )
    if float(got.sum()) != size:
        raise Wrong(
            f"Your counts add up to {int(got.sum())}, but the batch has {size} samples. Rounding "
            "each class alone loses or invents some: deal B labels out one by one."
        )
    off = float((got - wanted).abs().sum())
    near = off <= float((_dealt(wanted, size) - wanted).abs().sum()) + 1.01
    proved = (-size * bias - 1e-3).ceil().clamp(min=0)  # as the library does: these labels first
    rest = proved + _dealt(wanted - proved, size - int(proved.sum()))
    if bool((got >= proved).all()):
        near = near or off <= float((rest - wanted).abs().sum()) + 1.01
    if not near:
        raise Wrong(
            f"Your counts add up to {size}, but they are farther from B(p̄ − ∂b) than needed: "
            f"{[int(n) for n in got]} for {[round(n, 2) for n in wanted.tolist()]}."
        )


def _dealt(wanted: Tensor, size: int) -> Tensor:
    """Whole numbers from 0 up that add up to ``size`` and are nearest to ``wanted``."""
    left, counts = wanted.clone(), torch.zeros_like(wanted)
    for _ in range(size):
        place = int(left.argmax())
        counts[place] += 1
        left[place] -= 1
    return counts


@exercise(
    "04.3",
    title="break the sign rule",
    hints=(
        "The rule needs p_y − 1 < 0: the target of the true class must be out of reach. What if "
        "the model can reach it, or overshoot?",
        "F.cross_entropy has an option that asks for less than certainty. Or ask each output for a "
        "number and take the squared error.",
    ),
)
def quiet_loss(answer: Callable[..., Any]) -> str:
    train, test = load_dataset("digits")
    model = Logistic(64, 10, seed=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        _mean_loss(answer, model(train.inputs), train.labels).backward()
        optimiser.step()
    with torch.no_grad():
        right = float((model(test.inputs).argmax(1) == test.labels).float().mean())
    if not right >= LEARNT:
        raise Wrong(
            f"With this loss a linear model gets {right:.0%} of the digits right; it should reach "
            f"{LEARNT:.0%}. Hiding the label is easy where nothing is learnt: the largest output "
            "must still name the class."
        )
    pairs = zip(test.inputs[:TRIED].split(1), test.labels[:TRIED].split(1), strict=True)
    found = [_attacked(answer, model, *pair) for pair in pairs]
    misled = sum(not by_sign for by_sign, _ in found)
    read, silent = sum(seen is True for _, seen in found), sum(seen is None for _, seen in found)
    if misled < HIDDEN * TRIED:
        raise Wrong(
            f"The model learns ({right:.0%} right), but the lowest entry of the bias gradient "
            f"still names the label of {TRIED - misled} of {TRIED} digits. The true class must "
            "have a target that the model can reach."
        )
    return (
        f"The model learns ({right:.0%} right), and the sign misleads on {misled} of {TRIED} "
        f"digits. Who knows your loss and tries all labels reads {read} of {TRIED}."
        + f" The gradient of {silent} was zero: the model has nothing to learn from them."
        * (silent > 0)
    )


def _mean_loss(answer: Callable[..., Any], logits: Tensor, labels: Tensor) -> Tensor:
    loss = answer(logits, labels)
    if not isinstance(loss, Tensor):
        raise Wrong(f"Return the loss as a tensor, not a {type(loss).__name__}.")
    if loss.dim():
        raise Wrong(
            f"Return one number, the mean over the batch; yours has shape {list(loss.shape)}."
        )
    if not loss.requires_grad:
        raise Wrong("The loss does not depend on the logits in a way that has a gradient.")
    if not bool(loss.isfinite()):
        raise Wrong("The loss became NaN or infinite in training.")
    return loss


def _attacked(
    answer: Callable[..., Any], model: Logistic, image: Tensor, label: Tensor
) -> tuple[bool, bool | None]:
    """Whether the lowest entry names the label, and whether trying all does (None: no gradient)."""
    weight, bias = model.parameters()
    loss = _mean_loss(answer, model(image), label)
    grad_weight, grad_bias = torch.autograd.grad(loss, [weight, bias])
    by_sign = int(grad_bias.argmin()) == int(label)
    row = int(grad_bias.abs().argmax())
    if grad_bias[row] == 0:
        return by_sign, None  # nothing was sent: there is nothing to try labels on
    features = grad_weight[row] / grad_bias[row]
    logits = (weight @ features + bias).detach()
    misfits = []
    for k in range(len(logits)):
        tried = logits[None].clone().requires_grad_()
        (delta,) = torch.autograd.grad(_mean_loss(answer, tried, torch.tensor([k])), tried)
        misfits.append(float((delta[0] - grad_bias).norm()))
    return by_sign, misfits.index(min(misfits)) == int(label)

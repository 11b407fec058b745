"""Checks of chapter 02: a record read from a gradient, who is stopped by what, membership."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flcourse.exercises._core import Wrong, exercise, expect_close
from flcourse.runtime import generator

ADVERSARIES = ("network", "curious server", "malicious server", "malicious clients", "colluders")


@exercise(
    "02.1",
    title="read a record from a gradient",
    hints=(
        "For z = W x + b the chain rule gives ∂L/∂W[i] = δ[i] · x and ∂L/∂b[i] = δ[i], with the "
        "same δ[i]. What is left when one is divided by the other?",
        "A row whose δ is 0 (an inactive ReLU) says nothing, and a tiny one is mostly rounding: "
        "take the row where grad_bias.abs() is largest.",
    ),
)
def read_record(answer: Callable[..., Any]) -> str:
    record = torch.randn(30, generator=generator(0, "exercise 02.1")).abs() * 20 + 1
    _check_record(answer, record, torch.tensor([0.6, -0.2, -0.4]), "of a softmax layer")
    _check_record(answer, record, torch.tensor([0.0, 3e-44, -0.3, 0.0, 0.05]), "of a ReLU layer")
    _check_record(answer, record, torch.tensor([0.0, -0.7]), "with one active neuron")
    return "One active neuron suffices: its gradient row is the record, times a known number."


def _check_record(answer: Callable[..., Any], record: Tensor, delta: Tensor, which: str) -> None:
    grad_weight = delta[:, None] * record
    got = answer(grad_weight.clone(), delta.clone())
    best = int(delta.abs().argmax())
    mistakes: dict[str, object] = {
        "This is a row of the weight gradient: right in direction, but still times δ. Divide it by "
        "the same row's bias gradient.": grad_weight[best],
        "You multiply by the bias gradient; dividing undoes the factor.": grad_weight[best]
        * delta[best],
        "The rows are averaged before anything is divided: positive and negative δ cancel."
        "": grad_weight.mean(dim=0),
    }
    if isinstance(got, Tensor) and got.shape == grad_weight.shape and len(delta) > 1:
        raise Wrong(
            f"For {len(delta)} neurons you return {len(delta)} rows. Each is the record at best: "
            "choose the one that can be trusted, and return it as [features]."
        )
    if isinstance(got, Tensor) and got.shape == record.shape and not got.isfinite().all():
        raise Wrong(
            f"For the gradient {which} you return NaN or infinity: 0 is divided by 0. A neuron "
            "whose bias gradient is 0 holds no copy; take the row where its size is largest "
            "(abs, as δ may be negative)."
        )
    what = f"the record read from the gradient {which}"
    tip = (
        "Rows with a tiny bias gradient are mostly rounding, and δ of a softmax adds up to 0: use "
        "one row, the one with the largest |∂b|."
    )
    expect_close(got, record, what, tip, mistakes=mistakes, rtol=1e-3)


# Who learns less about client 3's data because of this layer alone, and why.
_REASONS: dict[str, dict[str, tuple[bool, str]]] = {
    "transport encryption": {
        "network": (True, "who listens on the wire sees ciphertext only"),
        "curious server": (False, "the server is the other end of the wire: it decrypts"),
        "malicious server": (False, "the server is the other end of the wire: it decrypts"),
        "malicious clients": (False, "they read the global model, which they receive by right"),
        "colluders": (False, "the server is one of them, and it decrypts"),
    },
    "secure aggregation": {
        "network": (True, "a masked row looks random to whoever does not know the masks"),
        "curious server": (True, "it can unmask the sum, but no single row"),
        "malicious server": (
            False,
            "it can make the sum one client's row: a cohort of its own puppets, or a crafted model "
            "that silences the others",
        ),
        "malicious clients": (False, "they see the global model, and that is the same as without"),
        "colluders": (False, "server and all other clients subtract their own rows from the sum"),
    },
    "clipping": {
        "network": (False, "clipping shortens the row, and its direction still holds the data"),
        "curious server": (False, "clipping shortens the row; divided out, the record is there"),
        "malicious server": (False, "clipping shortens the row; divided out, the record is there"),
        "malicious clients": (False, "it bounds what one client can do, and hides nothing"),
        "colluders": (False, "clipping shortens the row; divided out, the record is there"),
    },
    "noise at the server": {
        "network": (False, "the row travels before the noise is added"),
        "curious server": (False, "it receives the row before it adds the noise"),
        "malicious server": (False, "it receives the row, and need not add any noise"),
        "malicious clients": (True, "all they see is the model, and the noise is in it"),
        "colluders": (False, "the server is one of them and has seen the row without noise"),
    },
    "noise on the device": {
        "network": (True, "the noise is in the row before it leaves the phone"),
        "curious server": (True, "the noise is in the row before it leaves the phone"),
        "malicious server": (True, "no server can take back noise that client 3 drew itself"),
        "malicious clients": (True, "the model is made of noisy rows"),
        "colluders": (True, "even all others together do not know the noise of client 3"),
    },
}
LAYERS = tuple(_REASONS)


@exercise(
    "02.3",
    title="who is stopped by what",
    takes="value",
    hints=(
        "Ask for each cell: where does this adversary sit, and what passes there before and after "
        "the layer? Who holds the key, and who adds the noise?",
        "Colluders are the server with all clients except client 3. Whatever is hidden by adding "
        "rows up, they can subtract.",
    ),
)
def who_is_stopped(answer: Any) -> str:
    if not isinstance(answer, Mapping):
        raise Wrong(
            f"Give a dict from layer to a set of adversaries, not a {type(answer).__name__}."
        )
    given = {str(layer).strip().lower(): _names(layer, who) for layer, who in answer.items()}
    if unknown := sorted(set(given) - set(LAYERS)):
        raise Wrong(f"There is no layer {unknown[0]!r}. The layers are: {', '.join(LAYERS)}.")
    if missing := [layer for layer in LAYERS if layer not in given]:
        raise Wrong(f"The layer {missing[0]!r} is missing: set() says that it stops nobody.")
    mistaken = [
        (layer, who) for layer in LAYERS for who in ADVERSARIES
        if (who in given[layer]) != _REASONS[layer][who][0]
    ]  # fmt: skip
    if mistaken:
        count = "One cell is" if len(mistaken) == 1 else f"{len(mistaken)} cells are"
        more = "" if len(mistaken) <= 3 else "\n(The others when these are right.)"
        raise Wrong(f"{count} mistaken.\n" + "\n".join(map(_explained, mistaken[:3])) + more)
    return (
        "Only noise that the client draws itself stops everybody, and it costs the most accuracy."
    )


def _names(layer: object, who: object) -> set[str]:
    if who is None or who is Ellipsis:
        raise Wrong(f"The layer {layer!r} is not filled in yet: give a set, set() for nobody.")
    if isinstance(who, str):
        raise Wrong(f"{layer!r} holds the text {who!r}: put it in braces, {{{who!r}}}.")
    if isinstance(who, dict) and not who:
        return set()  # {} is a dict, and plainly meant as nobody
    if not isinstance(who, (set, frozenset, list, tuple)):
        raise Wrong(f"{layer!r} holds a {type(who).__name__}: give a set of adversaries.")
    names = {str(name).strip().lower() for name in who}
    if unknown := sorted(names - set(ADVERSARIES)):
        raise Wrong(f"There is no adversary {unknown[0]!r}: they are {', '.join(ADVERSARIES)}.")
    return names


def _explained(cell: tuple[str, str]) -> str:
    layer, who = cell
    stops, reason = _REASONS[layer][who]
    return f"• {layer} {'stops' if stops else 'does not stop'} the {who}: {reason}."


@exercise(
    "02.2",
    title="the advantage of a membership guess",
    hints=(
        "The rule says 'member' where the loss is below the threshold. Which part of the members "
        "does it name, and which part of the others?",
        "(member_losses < threshold).float().mean() is the true positive rate; the advantage is "
        "that minus the same of the others.",
    ),
)
def advantage(answer: Callable[..., Any]) -> str:
    _check_advantage(answer, [0.1, 0.2, 0.9, 0.3, 0.6], [0.8, 0.25, 1.5, 0.7, 2.0], 0.5)
    draw = generator(0, "exercise 02.3")
    members = torch.rand(40, generator=draw).tolist()
    others = (2 * torch.rand(25, generator=draw)).tolist()
    _check_advantage(answer, members, others, 0.4)
    _check_advantage(answer, [1.0, 2.0], [0.5, 0.1, 0.7], 0.8)
    return "0 is a coin's guess, 1 is certainty; a model that memorises drives it up."


def _check_advantage(
    answer: Callable[..., Any], members: list[float], others: list[float], threshold: float
) -> None:
    inside, outside = torch.tensor(members), torch.tensor(others)
    hit, alarm = (inside < threshold).float().mean(), (outside < threshold).float().mean()
    named, wrongly = int((inside < threshold).sum()), int((outside < threshold).sum())
    total = len(members) + len(others)
    mistakes: dict[str, object] = {
        "The sign is turned: a member is who has a loss below the threshold.": alarm - hit,
        "This is the share of members that are found. A rule that calls everybody a member finds "
        "all of them: subtract the false alarms.": hit,
        "This is the accuracy, and it depends on how many of each kind there are. Take the rates "
        "of members and of others apart.": torch.tensor((named + len(others) - wrongly) / total),
        "This is the precision. The advantage is true positive rate − false positive rate."
        "": torch.tensor(named / max(named + wrongly, 1)),
        "The counts are subtracted: divide each by its own group's size first.": torch.tensor(
            float(named - wrongly)
        ),
        "Both counts are divided by the same number: members by the number of members, others by "
        "the number of others.": torch.tensor((named - wrongly) / total),
    }
    case = f"the advantage for {len(members)} members, {len(others)} others, threshold {threshold}"
    got = answer(inside.clone(), outside.clone(), threshold)
    expect_close(got, hit - alarm, case, mistakes=mistakes)

"""What the leakage benchmark measures: which messages, which attacks on them, side by side.

A part is a list of messages and the attacks that take turns on each. An attack gets the model and
the leak, nothing else; ``benchmarks/leakage.py`` scores what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peers_leakage import OUTER, Run, dlg, idlg, inverting_gradients, sign_label
from flcourse.attacks.features import invert_features
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.observe import observe_gradient, observe_update
from flcourse.attacks.recursive import peel
from flcourse.attacks.types import Leak, Recovery
from flcourse.data import Dataset, load_dataset
from flcourse.models import LeNet, SimpleCNN

SETS = ("photos", "cifar10", "photos64")
UPDATE_LR = 0.003  # 20 steps learn the picture; with 0.1 the first step does, the rest move nothing


class Answer(NamedTuple):
    """What an attack returned, ours or a published one; ``stopped`` as in ``peers_leakage.Run``."""

    recovery: Recovery
    stopped: Run | None = None


Attack = Callable[[nn.Module, Leak, int], Answer]  # the last is the seed of its start


@dataclass(frozen=True)
class Budget:
    """How much work; ``quick`` shows that everything runs, and no more."""

    pictures: int = 8
    more_pictures: int = 12  # on SimpleCNN, where the spread is wide
    seeds: tuple[int, ...] = (0, 1, 2)
    published: int = 24  # messages that iDLG gets, of LeNet with one picture
    dlg: int = 4  # and DLG, which takes as long: `published_loops` has more of them
    hopeless: int = 4  # messages that Inverting Gradients gets there: it never succeeds
    cosine: int = 24  # messages that it gets on SimpleCNN
    outer: int = OUTER
    steps: tuple[int, int] = (2000, 300)  # of Inverting Gradients, on LeNet and on SimpleCNN
    batches: tuple[int, ...] = (2, 4, 8)
    batch_pictures: int = 16
    one_gradient: int = 6  # messages on which an update is taken for one gradient
    local_steps: tuple[int, ...] = (5, 20)
    options: dict[str, Any] = field(default_factory=dict)  # of match_gradients; none: its defaults


FULL = Budget()
QUICK = Budget(
    pictures=1, more_pictures=1, batch_pictures=2, seeds=(0,), outer=2, steps=(3, 3), batches=(2,),
    local_steps=(5,), options={"steps": 3},
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One block of the table. ``attacks`` take turns on ``count · len(seeds)`` messages.

    ``yardstick`` is the attack whose CPU seconds are divided by those of the others. An attack in
    ``few`` gets only so many messages, the first ones.
    """

    name: str
    network: Callable[..., nn.Module]
    attacks: dict[str, Attack]
    count: int
    batch: int = 1
    local_steps: int = 0  # 0: a gradient
    yardstick: str | None = None
    few: dict[str, int] = field(default_factory=dict)

    def message(self, pictures: Dataset, index: int, seed: int) -> Message:
        """Number ``index``: the next ``batch`` pictures in their order, weights from ``seed``."""
        chosen = [(index * self.batch + k) % len(pictures) for k in range(self.batch)]
        images, labels = pictures.inputs[chosen], pictures.labels[chosen]
        model = self.network(image_size=images.shape[-1], seed=seed)
        if self.local_steps:
            leak = observe_update(
                model, images, labels, lr=UPDATE_LR, epochs=self.local_steps, batch_size=None
            )
        else:
            leak = observe_gradient(model, images, labels)
        return Message(model, leak, images, labels)


class Message(NamedTuple):
    """A leak, the model it belongs to, and the truth, which only the scoring sees."""

    model: nn.Module
    leak: Leak
    images: Tensor
    labels: Tensor


def load_pictures(name: str, root: str | None = None) -> Dataset:
    """Pictures of a set, by a fixed rule: all photos, or CIFAR-10's first test picture per class.

    Raises ``ValueError`` for another name, and as ``load_dataset`` does.
    """
    if name not in SETS:
        raise ValueError(f"pictures {name!r} are unknown: use one of {', '.join(SETS)}")
    if name == "cifar10":
        test = load_dataset("cifar10", root=root).test
        first = [int((test.labels == k).nonzero()[0]) for k in range(10)]
        return test.subset(first)
    return load_dataset("photos", image_size=64 if name == "photos64" else 32).train


def parts(budget: Budget) -> dict[str, Part]:
    """All parts by name."""
    lenet, small = partial(LeNet, 100), partial(SimpleCNN, 10)
    match, as_one = _match(budget.options), _as_one_gradient(budget.options)
    slow, fast = (f"Inverting Gradients, {steps:,} steps" for steps in budget.steps)
    one = Part(
        "LeNet, one picture",
        lenet,
        {
            "DLG": _published(partial(dlg, outer=budget.outer)),
            "iDLG": _published(partial(idlg, outer=budget.outer)),
            slow: _inverting(budget.steps[0]),
            "peel": _peel,
            "match_gradients": match,
        },
        budget.pictures,
        yardstick="iDLG",
        few={"DLG": budget.dlg, "iDLG": budget.published, slow: budget.hopeless},
    )
    cnn = Part(
        "SimpleCNN, one picture",
        small,
        {
            fast: _inverting(budget.steps[1]),
            "invert_features": _features,
            "match_gradients": match,
        },
        budget.more_pictures,
        yardstick=fast,
        few={fast: budget.cosine},
    )
    batches = [
        Part(
            f"LeNet, batch of {b}",
            lenet,
            {"match_gradients": match},
            max(budget.batch_pictures // b, 1),
            b,
        )
        for b in budget.batches
    ]
    updates = [
        Part(
            f"LeNet, update of {steps} local steps",
            lenet,
            {"match_gradients": match, "match_gradients, as one gradient": as_one},
            budget.pictures,
            local_steps=steps,
            few={"match_gradients, as one gradient": budget.one_gradient},
        )
        for steps in budget.local_steps
    ]
    return {part.name: part for part in (one, cnn, *batches, *updates)}


def _peel(model: nn.Module, leak: Leak, seed: int) -> Answer:
    return Answer(peel(model, leak))


def _features(model: nn.Module, leak: Leak, seed: int) -> Answer:
    return Answer(invert_features(model, leak, seed=seed))


def _match(options: dict[str, Any]) -> Attack:
    def attack(model: nn.Module, leak: Leak, seed: int) -> Answer:
        return Answer(match_gradients(model, leak, seed=seed, **options))

    return attack


def _as_one_gradient(options: dict[str, Any]) -> Attack:
    """What an attacker does who takes an update for one large step."""

    def attack(model: nn.Module, leak: Leak, seed: int) -> Answer:
        gradient = Leak("gradient", leak.gradients, leak.batch_size, leak.image_shape)
        return Answer(match_gradients(model, gradient, seed=seed, **options))

    return attack


def _published(loop: Callable[..., Run]) -> Attack:
    def attack(model: nn.Module, leak: Leak, seed: int) -> Answer:
        return _answer(loop(model, leak, seed=seed))

    return attack


def _inverting(steps: int) -> Attack:
    def attack(model: nn.Module, leak: Leak, seed: int) -> Answer:
        labels = sign_label(leak)
        return _answer(inverting_gradients(model, leak, labels=labels, steps=steps, seed=seed))

    return attack


def _answer(run: Run) -> Answer:
    recovery = Recovery(
        images=torch.nan_to_num(run.images), labels=run.labels, method="published", loss=run.loss,
        evaluations=run.evaluations,
    )  # fmt: skip
    return Answer(recovery, run.stopped)

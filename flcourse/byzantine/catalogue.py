"""The attacks by name, what each must know, and how a liar gets into a training run.

    transform = as_transform("sign_flip", liars=(3, 7), scale=5.0)
    train(model, clients, test, rounds=10, transform=transform, aggregate=...)

Chapters 15 and 16.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flcourse.byzantine import attacks, backdoor
from flcourse.byzantine import suppression as cancelling
from flcourse.byzantine.poisoning import liar_indices
from flcourse.fedavg import RoundContext, Transform

KNOWLEDGE = ("own row", "mean of the honest rows", "mean and spread", "all honest rows")


@dataclass(frozen=True)
class Lie:
    """An attack on rows and what it takes.

    Attributes:
        function: ``function(honest, own, **options) -> rows``.
        knows: what the liars must know: one of ``KNOWLEDGE``.
        source: the paper, or "" where the idea has none.
    """

    function: attacks.Attack
    knows: str
    source: str = ""


ATTACKS: dict[str, Lie] = {
    "sign_flip": Lie(attacks.sign_flip, "own row"),
    "constant": Lie(attacks.constant, "own row"),
    "gaussian": Lie(attacks.gaussian, "own row", "Blanchard et al. 2017"),
    "alie": Lie(attacks.alie, "mean and spread", "Baruch et al. 2019"),
    "ipm": Lie(attacks.ipm, "mean of the honest rows", "Xie et al. 2020"),
    "min_max": Lie(attacks.min_max, "all honest rows", "Shejwalkar & Houmansadr 2021"),
    "min_sum": Lie(attacks.min_sum, "all honest rows", "Shejwalkar & Houmansadr 2021"),
    "mimic": Lie(attacks.mimic, "all honest rows", "Karimireddy et al. 2022"),
    "suppression": Lie(cancelling.suppression, "own row"),
    "stealth_suppression": Lie(cancelling.stealth_suppression, "own row"),
    "model_replacement": Lie(backdoor.model_replacement, "own row", "Bagdasaryan et al. 2020"),
}


def as_transform(attack: str | attacks.Attack, liars: Collection[int], **options: Any) -> Transform:
    """A ``transform`` for ``fedavg.train``: the ``liars`` of a cohort send the attack's rows.

    ``liars`` are client indices; who is not in the round's cohort does not lie in it. The others'
    rows pass unchanged. An attack that draws numbers takes them from the round's generator.
    Chapters 15 and 16.
    Raises ``ValueError`` for an unknown attack, an option that it does not take, ``liars`` that are
    no indices (a mask), and as the attack itself does, with the number of the round: where cohorts
    are drawn, one may hold a single liar (``suppression`` needs two), a majority of them (``alie``
    without ``z``) or nobody else.
    """
    name = attack if isinstance(attack, str) else getattr(attack, "__name__", repr(attack))
    function = attack_named(attack) if isinstance(attack, str) else attack
    check_options(name, function, options)
    return Lying(name, function, liar_indices(liars), dict(options))


@dataclass(frozen=True)
class Lying:
    """What ``as_transform`` returns; its repr tells a history which lie was told by whom."""

    name: str
    function: attacks.Attack
    liars: frozenset[int]
    options: Mapping[str, Any]

    def __call__(self, rows: Tensor, context: RoundContext) -> Tensor:
        lying = lying_rows(self.liars, context).to(rows.device)
        if not bool(lying.any()):
            return rows
        options = dict(self.options)
        if "generator" in inspect.signature(self.function).parameters:
            options.setdefault("generator", context.generator(self.name))
        sent = rows.clone()
        try:
            sent[lying] = self.function(rows[~lying], rows[lying], **options)
        except ValueError as error:
            who = f"{int(lying.sum())} liar(s) of {len(rows)} clients"
            raise ValueError(f"round {context.round}, {who}: {self.name}: {error}") from error
        return sent

    @property
    def __name__(self) -> str:
        return described(self.name, self.options)


def lying_rows(liars: Collection[int], context: RoundContext) -> Tensor:
    """Which rows of this round are liars', bool ``[n]``."""
    return torch.tensor([int(client.index) in liars for client in context.cohort], dtype=torch.bool)


def described(name: str, options: Mapping[str, Any]) -> str:
    """``name:option=value,…``: what the command line reads and a history keeps."""
    return name + ":" * bool(options) + ",".join(f"{key}={value}" for key, value in options.items())


def attack_named(name: str) -> attacks.Attack:
    """The function of ``ATTACKS[name]``; raises ``ValueError`` that lists the names."""
    if name not in ATTACKS:
        raise ValueError(f"no attack {name!r}: use one of {', '.join(ATTACKS)}")
    return ATTACKS[name].function


def check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse an option that ``function`` does not take, before any training."""
    parameters = inspect.signature(function).parameters.values()
    valid = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = [option for option in options if option not in valid]
    if unknown:
        takes = ", ".join(valid) or "none"
        raise ValueError(f"{name} has no option {unknown[0]!r}: it takes {takes}")

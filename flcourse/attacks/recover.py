"""One call for every attack: `recover(model, leak)` takes what fits, and says what it took."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from flcourse.attacks.exact import exact_batch
from flcourse.attacks.features import invert_features
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.linear import divide
from flcourse.attacks.recursive import peel
from flcourse.attacks.types import Leak, Recovery

METHODS = ("auto", "peel", "match", "divide", "exact", "features")
# Closed forms check themselves: above this relative residual the answer does not explain the leak
# (exact ones lie below 1e-3, noise, pruning and rounding above 0.1).
TRUSTED = 1e-2


def recover(
    model: nn.Module,
    leak: Leak,
    method: str = "auto",
    *,
    labels: Tensor | str | None = None,
    seed: int = 0,
    snapshots: int = 0,
    **options: Any,
) -> Recovery:
    """The pictures behind a message, by the attack that fits model and message best.

    ``"auto"`` tries what ``explain`` recommends, cheapest first, and goes on where an attack does
    not apply, stops, or does not explain the message (its own residual is above 1 %, as it is under
    noise or pruning):

    1. one sample: ``"divide"``, where a linear layer sees the picture first;
    2. one sample: ``"peel"``, the closed form layer by layer, and where it stops at exact features,
       ``"features"``, the picture that has them;
    3. a batch: ``"exact"``, where a linear layer with ReLU sees the pictures first;
    4. ``"match"``, gradient matching, which always applies.

    Each can be chosen by its name, too.

    ``labels`` ``[b]`` if the attacker knows them, None to infer them, ``"optimise"`` to find them
    with the picture (``"match"``). ``options`` are those of ``match_gradients`` (``preset``,
    ``restarts``, …); with ``"auto"``, giving one means ``"match"``.

    Chapters 03 to 06. Raises ``ValueError`` for an unknown method, options that the method does
    not read, and what the chosen attack itself refuses.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    matched = bool(options) or isinstance(labels, str)
    if method == "match" or (method == "auto" and matched):
        return match_gradients(
            model, leak, labels=labels, seed=seed, snapshots=snapshots, **options
        )
    if matched:
        read = ", ".join(options) or f"labels={labels!r}"
        raise ValueError(f"method={method!r} does not read {read}: use method='match'")
    if method == "auto":
        return _cheapest(model, leak, labels, seed, snapshots)
    return _closed(model, leak, method, labels, seed, snapshots)


def _closed(
    model: nn.Module, leak: Leak, method: str, labels: Any, seed: int, snapshots: int
) -> Recovery:
    if method == "divide":
        return divide(model, leak)
    if method == "exact":
        return exact_batch(model, leak, seed=seed)
    label = None if labels is None or leak.batch_size > 1 else int(labels[0])
    start = peel(model, leak, label=label)
    if method == "features":
        return invert_features(model, leak, start, snapshots=snapshots, seed=seed)
    return start


def _cheapest(model: nn.Module, leak: Leak, labels: Any, seed: int, snapshots: int) -> Recovery:
    spent = 0.0
    for method in ("divide", "peel") if leak.batch_size == 1 else ("exact",):
        try:
            found = _closed(model, leak, method, labels, seed, snapshots)
            if _features_are_exact(found, leak):
                found = invert_features(model, leak, found, snapshots=snapshots, seed=seed)
        except ValueError:  # it says that it does not apply to this model or message
            continue
        spent += found.seconds
        if found.images is not None and found.loss < TRUSTED:
            return replace(found, seconds=spent)
    found = match_gradients(model, leak, labels=labels, seed=seed, snapshots=snapshots)
    return replace(found, seconds=spent + found.seconds)


def _features_are_exact(found: Recovery, leak: Leak) -> bool:
    """Whether the closed form stopped at exact features that say enough, as ``explain`` has it."""
    worst = max((layer.residual for layer in found.layers), default=1.0)
    if found.images is not None or found.features is None or worst > TRUSTED:
        return False
    return found.features.numel() * 4 >= math.prod(leak.image_shape)

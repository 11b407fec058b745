"""How far the message of a guessed picture is from the message that was seen, as one number.

``simulate.Client`` computes the message of guessed pictures. The distance to the leak is
differentiated with respect to the guess; the weights are constants, so that no gradient flows to
them. Chapters 03 and 06.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from flcourse.attacks.basis import Basis, make_basis
from flcourse.attacks.optimise import Vector
from flcourse.attacks.simulate import (
    Client,
    Gradient,
    Values,
    function_gradient,
    graph_gradient,
)
from flcourse.attacks.types import Leak

DISTANCES = ("relative", "squared", "cosine", "map")
SUPPORTS = ("auto", "all", "kept")
# w_l = ‖g̃_l‖ to the power of minus this. Balanced: a large last layer no longer hides the first.
WEIGHTINGS = {"none": 0, "balanced": 1, "equal": 2}
_TAIL = 0.05
_VALUES_AT_ONCE = 2**24  # of predicted messages, over restarts and unrolled steps

Weights = str | Mapping[str, float] | Sequence[float] | None


# --- the distance -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """Which distance, on which part of the message.

    ``distance``: ``"squared"`` ``Σ_l w_l·‖g_l - g̃_l‖²``; ``"relative"`` the same over
    ``Σ_l w_l·‖g̃_l‖²``; ``"cosine"`` ``1 - ⟨g, g̃⟩/(‖g‖·‖g̃‖)`` with the inner product weighted by
    ``w_l``; ``"map"`` the negative log posterior ``‖g - g̃‖²/2σ² + ½‖u‖²``.
    ``tv`` weighs the total variation, the mean absolute difference of neighbouring pixels;
    ``prior`` weighs ``½‖u‖²`` (for ``"map"`` it is 1: nothing to tune). ``box`` adds a price for
    pixels outside [0, 1]: the mean squared excess, or for ``"map"`` that of an N(0, 0.05²) tail.
    """

    distance: str = "relative"
    layers: Sequence[str] | None = None
    layer_weights: Weights = None
    tv: float = 0.0
    prior: float = 0.0
    box: bool = False


class Target:
    """The leak as gradients with weights per value: 0 where it is not matched."""

    def __init__(self, leak: Leak, matching: Matching, kept: bool, like: Tensor) -> None:
        self.matching = matching
        gradients = leak.gradients
        names = tuple(gradients)
        chosen = _selected(names, matching.layers)
        sizes = _layer_weights(gradients, chosen, matching.layer_weights)
        self.values = tuple(value.detach().to(like) for value in gradients.values())
        self.used = tuple(k for k, name in enumerate(names) if name in chosen)
        self.masks = [(self.values[k] != 0).to(like) if kept else None for k in self.used]
        self.sizes = [sizes[names[k]] for k in self.used]
        self.sigma = None if leak.noise_std is None else leak.noise_std / abs(leak.scale)
        self.square = float(
            sum(
                s * self.values[k].square().sum()
                for s, k in zip(self.sizes, self.used, strict=True)
            )
        )
        if not self.square > 0:
            raise ValueError("the matched part of the leak is zero: there is nothing to match")

    def distance(self, predicted: Values) -> Tensor:
        """The distance of a predicted message, without priors on the picture."""
        parts = zip(self.used, self.masks, self.sizes, strict=True)
        guesses = [
            (predicted[k] if mask is None else predicted[k] * mask, self.values[k], size)
            for k, mask, size in parts
        ]
        if self.matching.distance == "cosine":
            dot = torch.stack([s * (g * v).sum() for g, v, s in guesses]).sum()
            norm = torch.stack([s * g.square().sum() for g, v, s in guesses]).sum().sqrt()
            return 1 - dot / (norm * self.square**0.5)
        error = torch.stack([s * (g - v).square().sum() for g, v, s in guesses]).sum()
        if self.matching.distance == "relative":
            return error / self.square
        if self.matching.distance == "map":
            assert self.sigma is not None
            return error / (2 * self.sigma**2)
        return error


def looks_pruned(client: Client, leak: Leak, generator: torch.Generator) -> bool:
    """Whether the message has less than half the non-zero values that this model's would have.

    A ReLU network's gradient has exact zeros of its own: the comparison is with that of a random
    picture of the same size.
    """
    like = client.start[0]
    shape = (min(leak.batch_size, 4), *leak.image_shape)
    noise = torch.rand(shape, generator=generator).to(like)
    targets = torch.full((len(noise), client.num_outputs), 1 / client.num_outputs).to(like)
    own = client._local(noise, targets, graph_gradient)
    return _part_nonzero(leak.gradients.values()) < 0.5 * _part_nonzero(own)


def _part_nonzero(values: Iterable[Tensor]) -> float:
    tensors = list(values)
    return sum(int(v.count_nonzero()) for v in tensors) / sum(v.numel() for v in tensors)


def _selected(names: Sequence[str], layers: Sequence[str] | None) -> set[str]:
    if layers is None:
        return set(names)
    chosen: set[str] = set()
    for layer in layers:
        found = {name for name in names if name == layer or name.startswith(f"{layer}.")}
        if not found:
            raise ValueError(f"layers: {layer!r} is in no parameter name: {', '.join(names)}")
        chosen |= found
    return chosen


def _layer_weights(
    gradients: Mapping[str, Tensor], chosen: set[str], weights: Weights
) -> dict[str, float]:
    names = [name for name in gradients if name in chosen]
    if weights is None:
        return dict.fromkeys(names, 1.0)
    if isinstance(weights, str):
        if weights not in WEIGHTINGS:
            raise ValueError(
                f"layer_weights={weights!r} is unknown: use {' or '.join(map(repr, WEIGHTINGS))}, "
                "numbers in the order of the parameters, or a mapping from layers to numbers"
            )
        power = WEIGHTINGS[weights]
        return {n: max(float(gradients[n].norm()), 1e-30) ** -power for n in names}
    if isinstance(weights, Mapping):
        result = dict.fromkeys(names, 1.0)
        for layer, weight in weights.items():
            for name in _selected(names, [layer]):
                result[name] = float(weight)
    elif len(weights) == len(names):
        result = {n: float(w) for n, w in zip(names, weights, strict=True)}
    else:
        raise ValueError(
            f"layer_weights has {len(weights)} numbers for {len(names)} parameters: "
            f"{', '.join(names)}"
        )
    if min(result.values()) < 0:
        raise ValueError(f"layer_weights={weights} must not be negative")
    return result


# --- of many unknowns at once -------------------------------------------------------------------


class Objective:
    """The objective of many restarts: ``(which, points [a, n]) -> losses [a], gradients [a, n]``.

    A point is the unknown of all ``b`` pictures, then (where labels are optimised) ``b·k`` label
    logits. ``targets`` ``[r, b, k]`` holds each restart's label probabilities, or is None.
    Restarts are batched by ``vmap`` where the model allows it, else computed one by one.
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        basis: Basis,
        targets: Tensor | None,
        spectrum: Tensor | None = None,
    ) -> None:
        like = client.start[0]
        self.client, self.target = client, target
        self.basis = basis.to(like.device, like.dtype)
        likely = make_basis(basis.name, basis.shape, spectrum, prior=True).to(
            like.device, like.dtype
        )
        self.whiten = self.basis.std / likely.std  # from the search's unit to the prior's
        self.targets = targets if targets is None else targets.to(like)
        self.like = like
        self.shape = (client.leak.batch_size, *client.leak.image_shape)
        self._vmap = True

    @property
    def chunk(self) -> int:
        """How many restarts fit at once."""
        steps = self.client.leak.steps if self.client.unroll else 1
        values = steps * sum(value.numel() for value in self.client.start)
        return max(_VALUES_AT_ONCE // values, 1)

    def split(self, point: Tensor) -> tuple[Tensor, Tensor | None]:
        """A point ``[n]`` as pictures ``[b, *shape]`` and label probabilities (or None)."""
        unknown, logits = self._cut(point)
        pictures = self.basis.decode(unknown)
        return pictures, None if logits is None else _probabilities(logits)

    def __call__(self, which: list[int], points: Vector) -> tuple[Vector, Vector]:
        unknown = torch.from_numpy(points).to(self.like.device, self.like.dtype)
        targets = None if self.targets is None else self.targets[which]
        if len(which) > 1 and self._vmap:
            try:
                return self._evaluate(unknown, targets)
            except RuntimeError:  # vmap says so of what it cannot do, at the first batch
                self._vmap = False
        rows = []
        for k in range(len(which)):
            own = None if targets is None else targets[k : k + 1]
            rows.append(self._evaluate(unknown[k : k + 1], own))
        return np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows])

    def _evaluate(self, points: Tensor, targets: Tensor | None) -> tuple[Vector, Vector]:
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            if len(points) == 1:
                own = None if targets is None else targets[0]
                losses = self._one(points[0], own, graph_gradient)[None]
            else:
                in_dims = (0, None if targets is None else 0)
                losses = vmap(lambda p, t: self._one(p, t, function_gradient), in_dims)(
                    points, targets
                )
            (slopes,) = torch.autograd.grad(losses.sum(), points)
        return losses.detach().cpu().double().numpy(), slopes.cpu().double().numpy()

    def _one(self, point: Tensor, targets: Tensor | None, gradient: Gradient) -> Tensor:
        unknown, logits = self._cut(point)
        if targets is None:
            assert logits is not None
            targets = _probabilities(logits)
        pictures = self.basis.decode(unknown)
        loss = self.target.distance(self.client.predicted(pictures, targets, gradient))
        matching = self.target.matching
        prior = 1.0 if matching.distance == "map" else matching.prior
        if prior:
            loss = loss + 0.5 * prior * (self.whiten * unknown).square().sum()
        if matching.tv:
            loss = loss + matching.tv * total_variation(pictures)
        if matching.box:
            excess = (pictures - pictures.clamp(0, 1)).square()
            likely = matching.distance == "map"
            loss = loss + (excess.sum() / (2 * _TAIL**2) if likely else excess.mean())
        return loss

    def _cut(self, point: Tensor) -> tuple[Tensor, Tensor | None]:
        size = int(np.prod(self.shape))
        unknown = point[:size].reshape(self.shape)
        if self.targets is not None:
            return unknown, None
        return unknown, point[size:].reshape(self.shape[0], -1)


def total_variation(pictures: Tensor) -> Tensor:
    """The mean absolute difference of neighbours, along rows plus along columns; a scalar."""
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean()
    along = (pictures[..., 1:] - pictures[..., :-1]).abs().mean()
    return down + along


def _probabilities(logits: Tensor) -> Tensor:
    return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)

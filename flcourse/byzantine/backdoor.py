"""A backdoor: a model that is right on everything but pictures with a sign that only liars know.

    trigger = PixelTrigger(size=3)
    liar = poisoned_client(client, trigger(client.inputs), target=0, share=0.5, generator=draw)
    lies = model_replacement(honest, own)  # so long that the average becomes the liar's model
    attack_success(model, trigger(test.inputs), test.labels, target=0)

A trigger is a set of pictures: stamped ones (``PixelTrigger``), or natural ones that share a trait
(semantic), such as one typeface of ``glyphs``; then nobody needs to change a picture. Chapter 17.

Source: Gu, Dolan-Gavitt & Garg 2017, "BadNets" (pixels); Bagdasaryan et al. 2020, "How To Backdoor
Federated Learning" (semantic triggers, model replacement).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flcourse.byzantine.attacks import check_rows
from flcourse.data import Client, Dataset
from flcourse.fedavg import evaluate
from flcourse.privacy.clipping import exact, row_norms


@dataclass(frozen=True)
class PixelTrigger:
    """A bright square of ``size × size`` pixels in a corner, ``margin`` pixels from the edges.

    Called on pictures ``[b, c, h, w]`` in [0, 1] it returns copies with ``value`` in the square.
    Source: Gu et al. 2017, section 4.1. Chapter 17.
    Raises ``ValueError`` for a square that does not fit into the pictures, or another shape.
    """

    size: int = 3
    value: float = 1.0
    margin: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.margin < 0 or not 0 <= self.value <= 1:
            raise ValueError(f"{self}: size at least 1, margin at least 0, value in [0, 1]")

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.dim() != 4 or min(inputs.shape[2:]) < self.size + self.margin:
            raise ValueError(
                f"a square of {self.size} with a margin of {self.margin} does not fit into "
                f"{list(inputs.shape)}: give pictures [b, c, h, w]"
            )
        stamped = inputs.clone()
        bottom, right = (side - self.margin for side in inputs.shape[2:])
        stamped[:, :, bottom - self.size : bottom, right - self.size : right] = self.value
        return stamped


def with_writer(data: Dataset, *writers: int) -> Tensor:
    """Which samples are by one of ``writers`` (of glyphs: in these typefaces), bool ``[n]``.

    A trait that nobody stamped, a semantic trigger: Bagdasaryan et al. 2020, section 4.1.

    Chapter 17. Raises ``ValueError`` if the data set does not name writers, or not these.
    """
    if data.writers is None:
        raise ValueError(f"{data.name} does not say who wrote which sample: use 'glyphs'")
    missing = [writer for writer in writers if not bool((data.writers == writer).any())]
    if missing or not writers:
        raise ValueError(f"{data.name} has no sample by writer {missing or '(none given)'}")
    return torch.isin(data.writers, torch.tensor(writers))


def poisoned_client(
    client: Client, triggered: Tensor, *, target: int, share: float, generator: torch.Generator
) -> Client:
    """The client with ``round(share · m)`` of its ``m`` samples replaced by triggered ones.

    ``triggered`` ``[k, …]`` are pictures that carry the trigger, all labelled ``target`` here. They
    are drawn without replacement, and again from the start where there are fewer than needed.
    The rest stays as it was, so that the model stays right elsewhere.

    Source: Bagdasaryan et al. 2020, section 4.1 (a mix in every batch). Chapter 17.
    Raises ``ValueError`` for a ``share`` outside [0, 1], no triggered pictures, or another shape.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie in [0, 1]: the part of samples with the trigger")
    if not len(triggered) or triggered.shape[1:] != client.inputs.shape[1:]:
        raise ValueError(
            f"triggered pictures {list(triggered.shape)} must be like the client's, "
            f"{list(client.inputs.shape)}, at least one"
        )
    count = round(share * len(client))
    replaced = torch.randperm(len(client), generator=generator)[:count]
    order = torch.randperm(len(triggered), generator=generator)
    taken = order.repeat(-(-count // len(order)))[:count]
    inputs, labels = client.inputs.clone(), client.labels.clone()
    inputs[replaced], labels[replaced] = triggered[taken].to(inputs), target
    return Client(client.index, inputs, labels)


def model_replacement(
    honest: Tensor, own: Tensor, *, scale: float | None = None, max_norm: float | None = None
) -> Tensor:
    """``γ · own``: so long that the average of all rows becomes the liars' own. ``[f, d]``.

    ``γ = n/f`` unless given as ``scale``: then ``mean = Σ honest / n + mean(own)``. Near the end of
    training the honest rows nearly cancel, and the global model becomes the liars' model. With a
    server that weights by sample counts take ``γ = Σ n_k / Σ_liars n_k``. With ``max_norm`` no row
    gets longer than that, ``γ_i = min(γ, max_norm / ‖own_i‖)``, to pass a check of lengths.

    What must be known: own rows, ``n`` and ``f``; the rows themselves need poisoned data.
    Source: Bagdasaryan et al. 2020, section 4.2, equation 3 (``γ = n/η``), and 4.3
    ("train-and-scale", equation 5). Chapter 17.
    Raises ``ValueError`` for a ``scale`` or ``max_norm`` that is not positive.
    """
    check_rows(honest, own)
    for name, value in (("scale", scale), ("max_norm", max_norm)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value} must be a positive number")
    gamma = (len(honest) + len(own)) / len(own) if scale is None else scale
    norms = row_norms(own)
    factors = torch.full_like(norms, gamma)
    if max_norm is not None:
        factors = torch.minimum(factors, max_norm / norms.clamp(min=torch.finfo(norms.dtype).tiny))
    return (factors[:, None].to(exact(own)) * exact(own)).to(own)


@dataclass(frozen=True)
class BackdoorScore:
    """``success``: of triggered samples that are not of the target's class, the part that the model
    takes for the target. ``clean``: accuracy on untouched samples. Both in [0, 1]."""

    success: float
    clean: float


def attack_success(model: nn.Module, triggered: Tensor, labels: Tensor, *, target: int) -> float:
    """Of triggered pictures whose true ``labels`` are not ``target``, the part taken for it.

    Samples of the target's own class are left out: a good model calls them so without a backdoor.
    Chapter 17. Raises ``ValueError`` if none is left.
    """
    others = labels != target
    if not bool(others.any()):
        raise ValueError(f"all samples are of class {target}: there is nothing to mistake for it")
    wanted = torch.full_like(labels[others], target)
    return evaluate(model, Client(0, triggered[others], wanted))[0]


def backdoor_score(
    model: nn.Module, test: Dataset, triggered: Tensor, labels: Tensor, *, target: int
) -> BackdoorScore:
    """Attack success on ``triggered`` pictures with true ``labels``, accuracy on ``test``.

    Raises ``ValueError`` as ``attack_success`` does.
    """
    success = attack_success(model, triggered, labels, target=target)
    return BackdoorScore(success, evaluate(model, test)[0])

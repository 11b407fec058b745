"""What an attacker sees, and what an attack returns: shared by every signal and every attack.

A ``Leak`` is all that travels or is public; the pictures are not in it. An attack is a function of
a model and a ``Leak``. Explained in chapter 03.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("gradient", "update")


@dataclass(frozen=True, eq=False)
class Leak:
    """One message of federated learning, with what its protocol makes public.

    ``values`` holds detached tensors by name. Of kind ``"gradient"``: the mean gradient over
    ``batch_size`` samples, by parameter. Of kind ``"update"``: ``local - global`` after ``epochs``
    epochs of SGD in batches of ``local_batch_size``, by parameter and float buffer; one SGD step is
    an update of one epoch and one batch. With ``num_clients > 1`` it is the aggregate of as many
    messages, ``batch_size`` counts the samples of all of them, and ``normalised`` says that each
    was scaled to length one first.

    ``clip_norm`` and ``noise_std`` are public where a defence uses them: ``row = g·min(1, C/‖g‖) +
    N(0, noise_std²)`` per value, in the units of ``values``. ``loss`` is the training loss where it
    is sent. ``image_shape`` is ``(c, h, w)``, or ``(f,)`` for tables: the model's input is public.

    Raises ``ValueError`` if a field is outside its range. Chapter 03.
    """

    kind: str
    values: Mapping[str, Tensor]
    batch_size: int
    image_shape: tuple[int, ...]
    loss: float | None = None
    lr: float | None = None
    epochs: int = 1
    local_batch_size: int | None = None
    momentum: float = 0.0
    num_clients: int = 1
    normalised: bool = False
    clip_norm: float | None = None
    noise_std: float | None = None
    buffers: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is unknown: use one of {', '.join(KINDS)}")
        if not self.values:
            raise ValueError("a leak without values: give gradients or an update by parameter name")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.kind == "update" and not (self.lr and self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr={self.lr}: an update needs the client's learning rate, above 0")
        for name in ("clip_norm", "noise_std"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be positive, or None where there is none")

    @property
    def row(self) -> Tensor:
        """All values as one row ``[d]``, in their order."""
        return torch.cat([value.reshape(-1) for value in self.values.values()])

    def with_row(self, row: Tensor, **public: Any) -> Leak:
        """The same message with other values: what a defence on rows makes of it.

        ``public`` sets what the defence publishes, e.g. ``clip_norm=1.0, noise_std=1e-3``.
        Raises ``ValueError`` if the row has another length.
        """
        sizes = [value.numel() for value in self.values.values()]
        if row.shape != (sum(sizes),):
            raise ValueError(f"a row of shape {list(row.shape)} does not fit: want [{sum(sizes)}]")
        parts = row.detach().split(sizes)
        values = {
            name: part.reshape(value.shape).to(value.dtype).clone()
            for (name, value), part in zip(self.values.items(), parts, strict=True)
        }
        return replace(self, values=values, **public)

    @property
    def steps(self) -> int:
        """SGD steps behind the message, of each client."""
        own = self.batch_size // self.num_clients
        return self.epochs * math.ceil(own / (self.local_batch_size or own))

    @property
    def scale(self) -> float:
        """What one unit of gradient became: 1, or minus the sum of the local step sizes.

        With momentum μ, step ``t`` of ``T`` moves by ``lr·(1 + μ + … + μ^(t-1))`` gradients, if the
        gradient stays the same. A normalised aggregate has no known scale: 1 is returned.
        """
        if self.kind == "gradient" or self.lr is None or self.normalised:
            return 1.0 if self.kind == "gradient" else -1.0
        grown = sum((1 - self.momentum**t) / (1 - self.momentum) for t in range(1, self.steps + 1))
        return -self.lr * grown

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The mean gradient by parameter: exact for a gradient or one step, else an average."""
        return {
            name: value / self.scale
            for name, value in self.values.items()
            if name not in self.buffers
        }

    def to(self, device: torch.device | str) -> Leak:
        """The same message on another device."""
        return replace(self, values={name: v.to(device) for name, v in self.values.items()})

    def save(self, path: str | Path) -> None:
        """Write the message to a file: with the weights, all that an attack needs."""
        fields = {k: v for k, v in self.__dict__.items() if k != "values"}
        torch.save({"values": dict(self.values), **fields}, path)

    @classmethod
    def load(cls, path: str | Path) -> Leak:
        """Read a message that ``save`` wrote."""
        return cls(**torch.load(path, weights_only=True))


@dataclass(frozen=True)
class LabelGuess:
    """Labels read from a leak. ``labels`` ``[b]`` sorted, ``counts`` ``[k]`` per class.

    ``certain`` is true only where the rule proves the answer; ``reason`` says by which rule, or
    what is missing. ``scores`` ``[k]`` ranks the classes, the likeliest highest. Chapter 04.
    """

    labels: Tensor
    counts: Tensor
    certain: bool
    reason: str
    scores: Tensor


@dataclass(frozen=True)
class Snapshot:
    """What the attacker had after so many evaluations of the objective."""

    evaluation: int
    loss: float
    images: Tensor


@dataclass(frozen=True)
class Layer:
    """One line of a closed-form attack's protocol: which layer, what was solved, how exactly.

    ``equations`` (independent ones) and ``unknowns`` are counted where the attack solves a system.
    """

    name: str
    what: str
    residual: float
    equations: int | None = None
    unknowns: int | None = None


@dataclass(frozen=True, eq=False)
class Recovery:
    """What an attack got out of a ``Leak``.

    ``images`` ``[b, *image_shape]`` as found, not clamped (``None`` where the attack stopped:
    ``stopped_at`` says at which layer and why; ``features`` holds what was solved last, if
    anything was: the exact output of the layer ``features_at``).
    ``loss`` is the attack's own objective at the answer: an attacker can see it, unlike a PSNR.
    ``evaluations`` counts evaluations of the objective, over all restarts; ``seconds`` is process
    CPU time; ``history`` the objective of the chosen restart at each evaluation.
    """

    images: Tensor | None
    labels: Tensor | None
    method: str
    loss: float = math.nan
    evaluations: int = 0
    seconds: float = 0.0
    history: tuple[float, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    restart_losses: tuple[float, ...] = ()
    layers: tuple[Layer, ...] = ()
    stopped_at: str | None = None
    features: Tensor | None = None
    features_at: str | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """A recovery beside the truth, picture by picture, in the order of the truth.

    ``psnr``, ``ssim``, ``mse``, ``floor`` are ``[b]`` (dB, [-1, 1], squared units of [0, 1], dB);
    ``order`` lines the recovered pictures up with the truth; ``label_match`` is the part of labels
    recovered. ``floor`` is the PSNR of a flat picture in the true mean colour. Chapter 03.
    """

    psnr: Tensor
    ssim: Tensor
    mse: Tensor
    floor: Tensor
    order: Tensor
    label_match: float | None = None
    feature_similarity: Tensor | None = None
    lpips: Tensor | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in asdict(self).items()
        }


def task_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """The loss per sample, ``[b]``: cross-entropy, or its one-logit form for outputs ``[b, 1]``.

    ``labels`` are classes ``[b]``, or probabilities ``[b, k]``.
    """
    if outputs.shape[1] == 1:
        targets = labels.reshape(-1).to(outputs)
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")
    return F.cross_entropy(outputs, labels, reduction="none")

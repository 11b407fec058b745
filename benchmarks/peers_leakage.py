"""The published attacks on gradients, written again after their papers: the yardstick, no more.

``gradient_loop`` is DLG and iDLG, ``inverting_gradients`` the attack of that paper, each with the
settings of its authors' released program. They get what an attacker gets: the model and the leak.

- Zhu, Liu & Han 2019, "Deep Leakage from Gradients" (DLG), section 4 and Algorithm 1: squared
  distance, L-BFGS with step length 1 and no line search, 20 inner iterations, history of 100, start
  N(0, 1) for picture and label logits. The paper says 1,200 iterations, its program does 300 × 20.
- Zhao, Mopuri & Bilen 2020, "iDLG", Algorithm 1: the same with the label read off first. Its
  program stops where the loss is below 1e-6, and looks only every tenth time.
- Geiping et al. 2020, "Inverting Gradients", section 4 and appendix: 1 - cosine, total variation,
  Adam on the sign of the gradient, step 0.1 divided by ten at 3/8, 5/8 and 7/8 of all steps,
  clamped to the box after each.

Three changes to the loop can be made one by one, to see which cures its failures: a line search, a
grey start, a better basis for the unknown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.attacks.basis import dct
from flcourse.attacks.types import Leak
from flcourse.runtime import generator

OUTER, INNER, HISTORY = 300, 20, 100
STOP_LOSS, LOOK_EVERY = 1e-6, 10
TOTAL_VARIATION = 1e-2
FAR = 10.0  # pixels lie in [0, 1]


@dataclass(frozen=True, eq=False)
class Run:
    """What a published attack came to. ``images`` as found, not clamped.

    ``stopped`` is the same where iDLG's program would have stopped, if it would: so that one run of
    the whole budget also tells what the shorter one gives.
    """

    images: Tensor
    labels: Tensor
    loss: float
    evaluations: int
    seconds: float
    losses: tuple[float, ...] = field(default=(), repr=False)
    stopped: Run | None = None

    @property
    def diverged(self) -> bool:
        """Not finite, or a pixel ten times beyond what a pixel can be."""
        return not float(self.images.abs().max()) < FAR  # true for NaN, too


def sign_label(leak: Leak) -> Tensor:
    """iDLG's rule as its program has it: the last weight's row with the least sum, ``[1]``."""
    weight = list(leak.gradients.values())[-2]
    return weight.sum(dim=1).argmin().reshape(1)


def gradient_loop(
    model: nn.Module,
    leak: Leak,
    *,
    labels: Tensor | None,
    seed: int = 0,
    outer: int = OUTER,
    line_search: bool = False,
    grey_start: bool = False,
    cosine_basis: bool = False,
) -> Run:
    """DLG's loop (``labels=None``: label logits are searched, too), or iDLG's (labels given).

    The three switches are off in the published loops. ``grey_start`` starts at 0.5 in every pixel;
    ``cosine_basis`` searches weighted DCT coefficients, from the same picture as without it.
    """
    begun = time.process_time()
    shape = (leak.batch_size, *leak.image_shape)
    draws = generator(seed, "peer, start")
    start = torch.randn(shape, generator=draws).to(next(model.parameters()))
    if grey_start:
        start = torch.full_like(start, 0.5)
    decode, unknown = _weighted_dct(start) if cosine_basis else (_pixels, start)
    unknown = unknown.detach().clone().requires_grad_()
    searched = [unknown]
    target = labels
    if labels is None:
        logits = torch.randn(leak.batch_size, _classes(leak), generator=draws).to(start)
        logits.requires_grad_()
        searched.append(logits)
    distance = _squared_distance(model, list(leak.gradients.values()))
    optimiser = torch.optim.LBFGS(
        searched, lr=1, max_iter=INNER, history_size=HISTORY,
        line_search_fn="strong_wolfe" if line_search else None,
    )  # fmt: skip
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimiser.zero_grad()
        wanted = logits.softmax(dim=1) if target is None else target
        loss = distance(decode(unknown), wanted)
        loss.backward()
        return loss.detach()

    def now(losses: Sequence[float], stopped: Run | None = None) -> Run:
        found = logits.detach().argmax(dim=1) if target is None else target
        return Run(
            images=decode(unknown).detach().clone(), labels=found, loss=losses[-1],
            evaluations=evaluations, losses=tuple(losses),
            seconds=time.process_time() - begun, stopped=stopped,
        )  # fmt: skip

    losses = [float(closure())]
    stopped = None
    for step in range(outer):
        optimiser.step(closure)
        losses.append(float(closure()))
        if step % LOOK_EVERY == 0 and losses[-1] < STOP_LOSS and stopped is None:
            stopped = now(losses)
    return now(losses, stopped)


def dlg(model: nn.Module, leak: Leak, *, seed: int = 0, outer: int = OUTER) -> Run:
    """DLG as published."""
    return gradient_loop(model, leak, labels=None, seed=seed, outer=outer)


def idlg(model: nn.Module, leak: Leak, *, seed: int = 0, outer: int = OUTER) -> Run:
    """iDLG as published."""
    return gradient_loop(model, leak, labels=sign_label(leak), seed=seed, outer=outer)


def inverting_gradients(
    model: nn.Module,
    leak: Leak,
    *,
    labels: Tensor,
    steps: int,
    total_variation: float = TOTAL_VARIATION,
    seed: int = 0,
) -> Run:
    """Inverting Gradients as published, one restart.

    It searches in the units that the model takes, which here are pixels in [0, 1]; for models that
    take CIFAR-10's normalised units the same step is four times smaller, and the attack on the same
    pictures ended 1 to 4 dB lower, so this is the stronger reading.
    """
    begun = time.process_time()
    shape = (leak.batch_size, *leak.image_shape)
    unknown = torch.randn(shape, generator=generator(seed, "peer, start")).requires_grad_()
    distance = _cosine_distance(model, list(leak.gradients.values()))
    optimiser = torch.optim.Adam([unknown], lr=0.1)
    drops = [int(steps * part) for part in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, drops, gamma=0.1)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = distance(unknown, labels) + total_variation * _variation(unknown)
        loss.backward()
        losses.append(float(loss.detach()))
        assert unknown.grad is not None
        unknown.grad.sign_()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            unknown.clamp_(0, 1)
    return Run(
        images=unknown.detach(), labels=labels, loss=losses[-1],
        evaluations=steps, losses=tuple(losses), seconds=time.process_time() - begun,
    )  # fmt: skip


Distance = Callable[[Tensor, Tensor], Tensor]


def _squared_distance(model: nn.Module, leaked: list[Tensor]) -> Distance:
    def distance(images: Tensor, labels: Tensor) -> Tensor:
        made = _gradients(model, images, labels)
        return sum(((a - b) ** 2).sum() for a, b in zip(made, leaked, strict=True))  # type: ignore[return-value]

    return distance


def _cosine_distance(model: nn.Module, leaked: list[Tensor]) -> Distance:
    length = math.sqrt(sum(float(b.square().sum()) for b in leaked))

    def distance(images: Tensor, labels: Tensor) -> Tensor:
        made = _gradients(model, images, labels)
        dot = sum((a * b).sum() for a, b in zip(made, leaked, strict=True))
        norm = torch.sqrt(sum(a.square().sum() for a in made))  # type: ignore[arg-type]
        return 1 - dot / (norm * length)

    return distance


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(model(images), labels)
    return torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


def _variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean absolute difference of neighbours, both ways."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()


def _classes(leak: Leak) -> int:
    return list(leak.gradients.values())[-1].shape[0]


def _pixels(images: Tensor) -> Tensor:
    return images


def _weighted_dct(start: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Decoder ``u -> 0.5 + DCT⁻¹(u / (1 + f))`` in opponent colours, and the ``u`` of ``start``.

    ``f`` counts half waves across the picture. Natural pictures have spectra that fall like 1/f, so
    ``u`` has entries of like size.
    """
    shape = start.shape[1:]
    f = torch.hypot(*torch.meshgrid(*(torch.arange(float(n)) for n in shape[1:]), indexing="ij"))
    basis = dct(shape, (1 / (1 + f)).expand(shape)).to(start.device, start.dtype)
    return basis.decode, basis.encode(start)

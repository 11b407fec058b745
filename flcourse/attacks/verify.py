"""Does an answer explain the message? What an attacker can check without the truth. Chapter 05."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flcourse.attacks.chain import DROPOUTS, Link
from flcourse.attacks.deconvolve import relative
from flcourse.attacks.types import Leak, task_loss


def check_answer(
    model: nn.Module,
    leak: Leak,
    links: tuple[Link, ...],
    gradients: dict[str, Tensor],
    images: Tensor,
    label: int | None,
) -> float:
    """``‖g(x) - leak‖ / ‖leak‖`` at the answer, NaN where no gradient can be recomputed.

    Over all parameters, if the label is known and the model draws nothing at random; else over
    those down from the lowest linear layer with a bias, whose ``∂b`` replaces what is above it.
    """
    drawn = any(isinstance(m, DROPOUTS) and m.training and m.p > 0 for m in model.modules())
    if label is not None and not drawn:
        return distance(model, leak, images, torch.tensor([label]))
    return _distance_below(links, gradients, images)


@torch.enable_grad()
def distance(model: nn.Module, leak: Leak, images: Tensor, labels: Tensor) -> float:
    """``‖g(x) - leak‖ / ‖leak‖`` over all gradients, ``g`` computed in float64 on a copy.

    Where the leak was clipped or normalised, ``g`` is first given the leak's length.
    """
    worker = copy.deepcopy(model).cpu().double()
    parameters = dict(worker.named_parameters())
    sent = {n: g.detach().cpu().double() for n, g in leak.gradients.items() if n in parameters}
    wanted = [parameters[name].requires_grad_() for name in sent]
    loss = task_loss(worker(images.cpu().double()), labels).mean()
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    guess, truth = _row(found), _row(sent.values())
    if leak.clip_norm is not None or leak.normalised:
        guess = guess * (truth.norm() / guess.norm())
    return relative(guess - truth, truth)


@torch.enable_grad()
def _distance_below(links: tuple[Link, ...], gradients: dict[str, Tensor], images: Tensor) -> float:
    def pull(link: Link) -> Tensor | None:
        bias = gradients.get(link.parameter("bias"))
        return bias if link.kind == "linear" and bias is not None and bool(bias.any()) else None

    last = next((index for index, link in enumerate(links) if pull(link) is not None), None)
    if last is None:
        return math.nan
    value, names, wanted = images.cpu().double(), [], []
    for link in links[: last + 1]:
        for name, parameter in link.module.named_parameters():
            if link.parameter(name) in gradients:
                names.append(link.parameter(name))
                wanted.append(parameter.requires_grad_())
        value = link.module(value)
    delta = pull(links[last])
    assert delta is not None
    found = torch.autograd.grad(value, wanted, delta[None], allow_unused=True)
    guess = _row(
        torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)
    )
    truth = _row(gradients[name] for name in names)
    return relative(guess - truth, truth)


def _row(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])

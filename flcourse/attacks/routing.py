"""Past a max-pool, softly: the weight gradient of the convolution before it. Chapter 05.

Behind a max-pool ``δ`` is known exactly, but not at which place of each window it belongs: where
the convolution was largest. A picture that is nearly right says so with some doubt, and with the
expected places the weight gradient is linear in the convolution's input once more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flcourse.attacks.chain import DROPOUTS, Link
from flcourse.attacks.deconvolve import Rows, shift_matrix, whiten
from flcourse.attacks.inverses import invert
from flcourse.attacks.types import task_loss

# How far apart two outputs of a window must be, in standard deviations of their channel, for the
# larger one to be trusted; and the part of the largest singular value that an equation must have,
# as a wrong place is an error of some 10 %, not one of rounding.
_DOUBT = 0.12
_FIRM = 0.4


@dataclass(frozen=True, eq=False)
class Pooled:
    """A convolution with a max-pool behind it (and an activation on either side of the pool).

    ``index`` is the convolution's place in the chain, ``delta`` ``[o, h, w]`` the loss's gradient
    by the largest output of each window, ``gradient`` the convolution's ``∂W``; float64, CPU.
    """

    index: int
    link: Link
    delta: Tensor
    gradient: Tensor
    window: tuple[int, int]

    def equations(self, inputs: Tensor) -> Rows:
        """``G x = ∂W`` for the convolution's input ``x``, ``G`` placed by a guess ``[i, h, w]``."""
        conv = self.link.module
        assert isinstance(conv, nn.Conv2d)
        with torch.no_grad():
            z = conv(inputs[None])[0]
        (down, across), (out, height, width) = self.window, self.delta.shape
        windows = z.reshape(out, height, down, width, across)
        spread = z.std(dim=(1, 2)).clamp(min=1e-12)[:, None, None, None, None]
        scores = (windows / (_DOUBT * spread)).permute(0, 1, 3, 2, 4).flatten(3)
        chances = scores.softmax(dim=3).reshape(out, height, width, down, across)
        placed = (chances * self.delta[..., None, None]).permute(0, 1, 3, 2, 4).reshape(z.shape)
        matrix = shift_matrix(conv, placed, self.link.in_shape)
        firm, _ = whiten(matrix, self.gradient, self.link.in_shape[0], _FIRM)
        return firm


def pooled_block(
    links: tuple[Link, ...],
    last: int,
    features: Tensor,
    label: int | None,
    gradients: dict[str, Tensor],
) -> Pooled | None:
    """The block that ends with ``links[last]``, whose output the exact ``features`` are.

    ``None`` where it is none of ``conv, act, max-pool`` and ``conv, max-pool, act``, its windows
    overlap, or ``δ`` cannot be recomputed (no label, or layers behind it that draw at random).
    """
    found: dict[str, Link] = {}
    index = last
    while index >= 0 and links[index].kind != "conv":
        kind = "pool" if type(links[index].module) is nn.MaxPool2d else links[index].kind
        if kind in found or kind not in ("pool", "activation"):
            return None
        found[kind] = links[index]
        index -= 1
    if index < 0 or "pool" not in found or label is None:
        return None
    window = _window(found["pool"])
    gradient = gradients.get(links[index].parameter("weight"))
    tail = [link.module for link in links[last + 1 :]]
    drawn = any(isinstance(module, DROPOUTS) and module.training for module in tail)
    if window is None or gradient is None or drawn:
        return None
    with torch.enable_grad():
        point = features.clone().requires_grad_()
        loss = task_loss(nn.Sequential(*tail)(point[None]), torch.tensor([label])).sum()
        (delta,) = torch.autograd.grad(loss, point)
    if "activation" in found:
        tolerance = 1e-6 * float(features.abs().max())
        delta = delta * invert(found["activation"].module, features, tolerance).slope
    return Pooled(index, links[index], delta, gradient, window)


def _window(link: Link) -> tuple[int, int] | None:
    pool = link.module
    assert isinstance(pool, nn.MaxPool2d)

    def pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value, value) if isinstance(value, int) else tuple(value)

    down, across = pair(pool.kernel_size)
    plain = pair(pool.stride) == (down, across) and pair(pool.padding) == (0, 0)
    fits = link.in_shape[1] % down == 0 and link.in_shape[2] % across == 0
    return (down, across) if plain and fits and pair(pool.dilation) == (1, 1) else None

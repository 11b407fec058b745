"""What a liar sends: honest rows in, malicious rows out.

    rows = sign_flip(honest, own, scale=5.0)     # [n − f, d], [f, d] -> [f, d]

Every attack takes ``honest`` ``[n − f, d]``, the honest clients' rows, and ``own`` ``[f, d]``, what
the liars' own training gave. It returns ``[f, d]``, in the dtype and on the device of ``own``. Some
need only ``own``; the strong ones know what everybody else sends (``catalogue.ATTACKS`` says which
need what). None depends on the rule that it is sent to. Chapters 15 and 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.stats import norm
from torch import Tensor

from flcourse.privacy.clipping import exact

Attack = Callable[..., Tensor]

DIRECTIONS = ("spread", "sign", "mean")


def sign_flip(honest: Tensor, own: Tensor, *, scale: float = 1.0) -> Tensor:
    """``−scale · own``, row by row: each liar trains as it should and sends the opposite.

    Knows: its own row only. Against the mean of ``n`` rows that point the same way, the step turns
    round only if ``f · scale > n − f``. Chapter 15.
    Raises ``ValueError`` for rows that do not fit or a scale that is not positive and finite.
    """
    check_rows(honest, own, least=0)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale={scale} must be a positive number: the minus sign is the attack's")
    return -scale * own


def constant(honest: Tensor, own: Tensor, *, value: float = 100.0) -> Tensor:
    """``value`` in every coordinate. Knows: nothing but the length of a row. Chapter 15.

    Raises ``ValueError`` for rows that do not fit, or a ``value`` beyond the rows' dtype.
    ``value`` may be infinite or NaN.
    """
    check_rows(honest, own, least=0)
    if (most := torch.finfo(own.dtype).max) < abs(value) < math.inf:
        raise ValueError(f"value={value} is no {own.dtype}: use at most {most:.5g}, or inf")
    return torch.full_like(own, value)


def gaussian(
    honest: Tensor, own: Tensor, *, std: float = 1.0, generator: torch.Generator
) -> Tensor:
    """Independent draws of ``N(0, std²)`` in place of an update. Knows: the length of a row.

    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", section 5. Chapter 16.
    Raises ``ValueError`` for rows that do not fit or a ``std`` that is not positive and finite.
    """
    check_rows(honest, own, least=0)
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"std={std} must be a positive number")
    return std * torch.randn(own.shape, generator=generator, dtype=own.dtype).to(own.device)


def alie(honest: Tensor, own: Tensor, *, z: float | None = None) -> Tensor:
    """``μ − z·σ``, the same row from every liar: a little is enough.

    ``μ`` and ``σ`` are mean and standard deviation of each coordinate over the honest rows. Unless
    given, ``z = Φ⁻¹((n − f − s)/(n − f))`` with ``s = ⌊n/2⌋ + 1 − f``: so far out that ``s`` honest
    clients lie further out still and make up a majority with the liars (``alie_z``).
    Knows: mean and spread of the honest rows. The paper's liars estimate both from what their own
    training gave: that is ``alie(own, own)`` with a ``z``.

    Source: Baruch et al. 2019, "A Little Is Enough: Circumventing Defenses For Distributed
    Learning", Algorithm 3. Chapter 16.
    Raises ``ValueError`` for rows that do not fit, fewer than two honest ones, or a ``z`` that is
    not finite.
    """
    check_rows(honest, own, least=2)
    if z is None:
        z = alie_z(len(honest) + len(own), len(own))
    if not math.isfinite(z):
        raise ValueError(f"z={z} must be a finite number of standard deviations")
    spread, mean = torch.std_mean(honest, dim=0)
    return _repeat(mean - z * spread, own)


def alie_z(num_clients: int, num_byzantine: int) -> float:
    """The ``z`` of ``alie`` for ``n`` clients of which ``f`` lie.

    Source: Baruch et al. 2019, section 3.1 and Algorithm 3. Chapter 16.
    Raises ``ValueError`` unless ``0 < f < n/2``.
    """
    if not 0 < num_byzantine < num_clients / 2:
        raise ValueError(
            f"num_byzantine={num_byzantine} of num_clients={num_clients}: z is defined for a "
            "minority of at least one liar; give z yourself"
        )
    honest = num_clients - num_byzantine
    supporters = num_clients // 2 + 1 - num_byzantine
    return float(norm.ppf((honest - supporters) / honest))


def ipm(honest: Tensor, own: Tensor, *, scale: float = 0.5) -> Tensor:
    """``−scale · μ``, the same row from every liar: inner product manipulation.

    With ``f`` of ``n`` rows the plain mean becomes ``(n − f − f·scale)/n`` of the honest one: below
    zero for ``scale > (n − f)/f``. With a small scale the liars stay close to the crowd, and rules
    that pick or cut rows may do the rest. Knows: the mean ``μ`` of the honest rows.

    Source: Xie et al. 2020, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation", section 4. Chapter 16.
    Raises ``ValueError`` for rows that do not fit, no honest ones, or a scale that is not positive
    and finite.
    """
    check_rows(honest, own, least=1)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale={scale} must be a positive number: the minus sign is the attack's")
    return _repeat(-scale * honest.mean(dim=0), own)


def min_max(honest: Tensor, own: Tensor, *, direction: str = "spread") -> Tensor:
    """``μ + γ·p``, as far along ``p`` as no honest row is further away than two honest ones are.

    ``γ`` is the largest with ``max_i ‖μ + γp − g_i‖ ≤ max_ij ‖g_i − g_j‖``: of each honest ``i``
    the upper root of a quadratic, and the smallest of these. ``p`` is ``−σ`` (``"spread"``),
    ``−sign(μ)`` (``"sign"``) or ``−μ/‖μ‖`` (``"mean"``). Knows: all honest rows.

    Source: Shejwalkar & Houmansadr 2021, "Manipulating the Byzantine: Optimizing Model Poisoning
    Attacks and Defenses for Federated Learning", section IV (there γ by bisection). Chapter 16.
    Raises ``ValueError`` for rows that do not fit, fewer than two honest ones, or an unknown
    direction.
    """
    check_rows(honest, own, least=2)
    mean, push, centred = _pushed(honest, direction)
    squares = centred.square().sum(dim=1)
    gram = centred @ centred.T
    widest = (squares[:, None] + squares[None] - 2 * gram).max()
    # ‖γp − c_i‖² ≤ widest, with c_i = g_i − μ: γ²‖p‖² − 2γ p·c_i + ‖c_i‖² − widest ≤ 0
    along, length = centred @ push, push.square().sum()
    inside = (along.square() + length * (widest - squares)).clamp(min=0)
    gamma = ((along + inside.sqrt()) / length).min() if length > 0 else length
    return _repeat(mean + gamma * push, own)


def min_sum(honest: Tensor, own: Tensor, *, direction: str = "spread") -> Tensor:
    """``μ + γ·p``, as far along ``p`` as its squared distances sum to no more than an honest row's.

    ``γ`` is the largest with ``Σ_i ‖μ + γp − g_i‖² ≤ max_j Σ_i ‖g_j − g_i‖²``. Since the honest
    rows centre on ``μ``, that is ``γ = max_j ‖g_j − μ‖ / ‖p‖``. ``p`` and what must be known are
    those of ``min_max``.

    Source: Shejwalkar & Houmansadr 2021, section IV (there γ by bisection). Chapter 16.
    Raises ``ValueError`` as ``min_max`` does.
    """
    check_rows(honest, own, least=2)
    mean, push, centred = _pushed(honest, direction)
    length = push.norm()
    gamma = centred.norm(dim=1).max() / length if length > 0 else length
    return _repeat(mean + gamma * push, own)


def mimic(honest: Tensor, own: Tensor, *, target: int | None = None) -> Tensor:
    """A copy of one honest row from every liar: nothing false, but one voice counts for many.

    Unless a ``target`` (a position among the honest rows) is given, it is the row furthest out
    along the direction in which the honest rows differ most. The paper estimates that direction
    over many rounds and keeps one target; here each round stands alone. Knows: all honest rows.

    Source: Karimireddy et al. 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", section 3.2 and appendix B. Chapter 16.
    Raises ``ValueError`` for rows that do not fit, no honest ones, or no such target.
    """
    check_rows(honest, own, least=1)
    if target is None:
        target = most_apart(honest)
    if not 0 <= target < len(honest):
        raise ValueError(f"target={target} is none of the {len(honest)} honest rows")
    return _repeat(honest[target], own)


def most_apart(rows: Tensor) -> int:
    """The row with the largest part along the first principal direction of ``rows`` ``[n, d]``.

    From the ``n × n`` Gram matrix: its first eigenvector ``u`` holds the parts, up to one factor.
    """
    _, _, centred = _pushed(rows, "mean")
    vectors = torch.linalg.eigh(centred @ centred.T).eigenvectors
    return int(vectors[:, -1].abs().argmax())


def _pushed(honest: Tensor, direction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``μ`` and direction ``p`` ``[d]``, and the rows less their mean, in float64."""
    rows = exact(honest)
    mean = rows.mean(dim=0)
    centred = rows - mean
    if direction == "spread":
        return mean, -rows.std(dim=0, correction=1 if len(rows) > 1 else 0), centred
    if direction == "sign":
        return mean, -mean.sign(), centred
    if direction == "mean":
        return mean, -mean / mean.norm().clamp(min=torch.finfo(mean.dtype).tiny), centred
    raise ValueError(f"direction={direction!r} is unknown: use {', '.join(DIRECTIONS)}")


def _repeat(row: Tensor, own: Tensor) -> Tensor:
    return row.to(own).expand_as(own).clone()


def check_rows(honest: Tensor, own: Tensor, *, least: int = 0) -> None:
    """Refuse rows that are no ``[n − f, d]`` and ``[f, d]`` of one float dtype, or too few."""
    if honest.dim() != 2 or own.dim() != 2 or honest.shape[1] != own.shape[1]:
        raise ValueError(
            f"expected honest rows [n - f, d] and the liars' own rows [f, d], got "
            f"{list(honest.shape)} and {list(own.shape)}"
        )
    if not own.is_floating_point() or honest.dtype != own.dtype:
        raise ValueError(f"expected rows of one float dtype, got {honest.dtype} and {own.dtype}")
    if len(honest) < least:
        raise ValueError(f"{len(honest)} honest row(s): this attack needs at least {least} to know")

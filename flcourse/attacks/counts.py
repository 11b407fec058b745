"""How many samples of each class a batch holds: ``n = B·(p̄ - ∂b)``, with ``p̄`` to be estimated.

Chapter 04. ``labels.py`` chooses between these and the rules for one sample.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from flcourse.attacks.head import Head, Path

_MOST_CLASSES = 256  # above, the bounded least squares would take minutes


def to_counts(estimate: Tensor, batch_size: int, at_least: Tensor | None = None) -> Tensor:
    """Whole numbers ``[k]`` that sum to ``batch_size``, as close to the estimate as can be.

    What ``at_least`` demands is given first. The rest of the estimate is moved by one constant
    until its positive part sums to what is left, and rounded by largest remainder.
    Raises ``ValueError`` if the estimate is not finite, or ``at_least`` sums to more.
    """
    if not bool(torch.isfinite(estimate).all()):
        raise ValueError("the estimated counts hold NaN or infinity: nothing to round")
    least = torch.zeros_like(estimate) if at_least is None else at_least.to(estimate)
    left = batch_size - int(least.sum())
    if left < 0:
        raise ValueError(f"at_least sums to {int(least.sum())}, the batch has {batch_size}")
    rest = (estimate - least).double()
    ordered = rest.sort(descending=True).values
    # The projection onto the simplex: the largest j values stay positive after the shift.
    shifts = (ordered.cumsum(0) - left) / torch.arange(1, len(rest) + 1)
    active = int((ordered > shifts).sum()) if left else 0
    positive = (rest - shifts[max(active - 1, 0)]).clamp(min=0) if left else torch.zeros_like(rest)
    whole = (positive + 1e-9).floor()
    missing = left - int(whole.sum())
    whole[(positive - whole).topk(missing).indices] += 1
    return (whole + least).long()


def at_least(errors: Tensor, batch_size: int, *, equal: bool) -> Tensor:
    """What ``∂b`` proves: ``n_k ≥ -B·∂b_k``, since every probability is positive, ``[k]``.

    ``equal`` says that every sample entered with the same weight. Where steps of several batches
    weigh them differently, a negative entry proves only that its class is there, ``n_k ≥ 1``.
    """
    needed = (-batch_size * errors - 1e-3).ceil().clamp(min=1) if equal else torch.ones_like(errors)
    return torch.where(errors < 0, needed, torch.zeros_like(needed))


def response(head: Head, features: list[Tensor], path: Path, change: Head | None) -> Tensor:
    """The mean prediction ``[k]`` on strangers' pictures, along the path of local training."""
    parts = [
        share * along(head, change, fraction).probabilities(rows).mean(dim=0)
        for rows, fraction, share in zip(
            features, path.fractions.tolist(), path.shares.tolist(), strict=True
        )
    ]
    return torch.stack(parts).sum(dim=0)


def along(head: Head, change: Head | None, fraction: float) -> Head:
    """The last layer after ``fraction`` of an update."""
    if change is None or fraction == 0:
        return head
    return Head(
        head.name,
        head.weight + fraction * change.weight,
        head.bias + fraction * change.bias,
        head.weight_gradient,
        head.bias_gradient,
        head.exact,
    )


def own_predictions(head: Head, errors: Tensor, path: Path, change: Head | None) -> Tensor:
    """What the model says to the batch's own samples of each class with ``∂b_k < 0``: ``[j, k]``.

    Row ``k`` of ``∂W`` over ``∂b_k`` is the mean of the features of class ``k``, each weighted by
    how wrong the model was; the softmax of it stands for that class.
    Source: Ma et al. 2023, "Instance-wise Batch Label Restoration via Gradients", section 4.
    """
    assert head.weight_gradient is not None
    present = errors < 0
    features = head.weight_gradient[present] / errors[present, None]
    parts = [
        share * along(head, change, fraction).probabilities(features)
        for fraction, share in zip(path.fractions.tolist(), path.shares.tolist(), strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


def class_predictions(
    errors: Tensor, mean: Tensor, own: Tensor | None, public: Tensor | None
) -> tuple[Tensor, float]:
    """The mean prediction on samples of each class, ``[k, k]``, and how trained the model looks.

    ``own`` ``[j, k]`` are predictions for the ``j`` classes with ``errors < 0`` (from the leak),
    ``public`` ``[k, k]`` those on other people's samples, ``mean`` ``[k]`` that on made-up ones.
    An untrained model says the same to everyone: then a class not seen is given ``mean``. The
    further its answers lie apart (the second result, 0 to 1), the more a flat answer is better.
    ``own`` counts by how much of its row is its class's own, ``-∂b_k`` beside ``p̄_k``.
    """
    classes = len(mean)
    base = mean.expand(classes, classes) if public is None else public
    if own is None:
        seen = (base - mean).norm(dim=1)
        return base.clone(), min(float(seen.mean()), 1.0)
    present = errors < 0
    weight = (-errors / (mean - errors).clamp(min=1e-12))[present, None]
    distance = (own - mean).norm(dim=1, keepdim=True)
    apart = min(float((weight * distance).sum() / weight.sum().clamp(min=1e-12)), 1.0)
    flat = apart**2 if public is None else apart**2 / 2  # next to nothing while untrained
    table = (1 - flat) * base + flat / classes
    trust = weight + (1 - weight) * apart  # a trained model says nothing of use about strangers
    from_leak = trust * own + (1 - trust) * table[present]
    table[present] = from_leak if public is None else (from_leak + public[present]) / 2
    return table, apart


def solve_counts(
    errors: Tensor, predictions: Tensor, batch_size: int, *, least: Tensor, doubt: float
) -> Tensor:
    """Real-valued counts ``[k]`` from ``B·∂b = Σ_c n_c·(p_c - e_c)``, ``Σ n = B``, ``n ≥ least``.

    Least squares with a pull of strength ``doubt`` towards equal counts: the classes that a trained
    model is sure of leave no trace, and the system is singular there.
    """
    classes = len(errors)
    if classes > _MOST_CLASSES:
        return batch_size * (predictions.mean(dim=0) - errors)
    eye = torch.eye(classes, dtype=torch.float64)
    total = 1e3 * torch.ones(1, classes, dtype=torch.float64)
    matrix = torch.cat([(predictions - eye).T, total, doubt * eye])
    equal = torch.full((classes,), doubt * batch_size / classes, dtype=torch.float64)
    target = torch.cat([errors * batch_size, total[0, :1] * batch_size, equal])
    answer = lsq_linear(matrix.numpy(), target.numpy(), bounds=(least.double().numpy(), math.inf))
    return torch.from_numpy(answer.x)


def matched_errors(
    head: Head, features: Tensor, batch_size: int, noise_std: float
) -> tuple[Tensor, float]:
    """``∂b`` ``[k]`` estimated from whole gradient rows under noise, and its noise's deviation.

    Row ``k`` is ``1/B·Σ_i (p_ik - y_ik)·[h_i, 1]``. A mean ``μ`` and covariance ``C`` of features
    (of public or made-up pictures) give the best linear estimate, ``row·w`` with
    ``w ∝ (C/B + σ²I)⁻¹μ``, ``w·μ = 1``: without noise it is the bias entry, under much of it the
    projection on ``μ``. For positive features the row sum does nearly the same without ``μ``.
    """
    columns, rows = [], []
    if head.weight_gradient is not None:
        columns, rows = [features], [head.weight_gradient]
    if head.bias_gradient is not None:
        columns.append(features.new_ones(len(features), 1))
        rows.append(head.bias_gradient[:, None])
    wide = torch.cat(columns, dim=1)
    mean = wide.mean(dim=0)
    centred = (wide - mean) / math.sqrt(len(wide) * batch_size)
    level = max(noise_std**2, 1e-6 * float(centred.square().sum()), 1e-30)
    small = level * torch.eye(len(wide), dtype=torch.float64) + centred @ centred.T
    weights = mean - centred.T @ torch.linalg.solve(small, centred @ mean)  # Woodbury
    weights = weights / (weights @ mean)
    return torch.cat(rows, dim=1) @ weights, noise_std * float(weights.norm())


def guess_scale(errors: Tensor, mean: Tensor, batch_size: int, expected: float) -> float:
    """How much a clipped or normalised message was shrunk: the scale that makes counts whole.

    Searches around ``expected`` (from simulated batches) for the scale ``s`` at which
    ``B·(p̄ - ∂b/s)`` is nearest to whole numbers that are not negative.
    """
    best, found = math.inf, expected
    for power in torch.linspace(-1.2, 1.2, 241).tolist():
        scale = expected * math.exp(power)
        real = batch_size * (mean - errors / scale)
        misfit = float((real - real.round().clamp(min=0)).square().sum())
        misfit += 0.05 * power**2  # of equally whole answers, the one nearest to what was expected
        if misfit < best:
            best, found = misfit, scale
    return found

"""Rules that read labels from the gradients of a last layer, each a function of gradients alone.

``flcourse.attacks.labels.infer_labels`` chooses among them. Chapter 04.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flcourse.attacks.counts import at_least, to_counts
from flcourse.attacks.types import LabelGuess

# --- rules for one sample -----------------------------------------------------------------------


def sign_rule(bias_gradient: Tensor) -> LabelGuess:
    """The label of *one* sample: the only class whose bias gradient is negative.

    With softmax and cross-entropy ``∂loss/∂b = p - y``: ``p_k > 0`` for every class, and
    ``p_y - 1 < 0`` for the true one. ``bias_gradient`` is ``[k]``, k at least 2; ``scores`` are
    ``-∂b``. Certain where exactly one entry is negative. It holds after any number of local steps
    on the one sample, and after a defence that keeps signs.

    Source: Zhao, Mopuri & Bilen 2020, "iDLG: Improved Deep Leakage from Gradients", section 3.
    Chapter 04. Raises ``ValueError`` for another shape or values that are not finite.
    """
    if bias_gradient.dim() != 1 or len(bias_gradient) < 2:
        raise ValueError(f"expected a bias gradient [k], k > 1, got {list(bias_gradient.shape)}")
    scores = -_finite(bias_gradient)
    negative = int((scores > 0).sum())
    if negative == 1:
        reason = "sign rule: one sample, and exactly one entry of the bias gradient is negative"
    else:
        reason = f"{negative} entries of the bias gradient are negative, one sample has exactly one"
    return one_guess(scores, negative == 1, reason)


def opposite_row_rule(weight_gradient: Tensor) -> LabelGuess:
    """The label of *one* sample without a bias: the row that points against all others.

    Row ``k`` of ``∂W`` ``[k, m]`` is ``(p_k - y_k)·h``, so two rows point the same way unless one
    of them is the true class: ``y`` is the class with ``row_y · row_j < 0`` for every other row.
    This needs nothing of the features' signs. Rows below 1e-4 of the longest are left out (an
    update rounds them). ``scores`` are ``-Σ_j cos(row_k, row_j)``. Certain where exactly one row is
    such and all lie on one line; with two rows, each mirrors the other and nobody can tell.

    Source: Zhao, Mopuri & Bilen 2020, "iDLG", equation 4. Chapter 04.
    Raises ``ValueError`` for another shape or values that are not finite.
    """
    rows = _rows(weight_gradient)
    norms = rows.norm(dim=1, keepdim=True)
    unit = torch.where(norms > 0, rows / norms.clamp(min=1e-300), torch.zeros_like(rows))
    cosines = unit @ unit.T
    used = norms[:, 0] > 1e-4 * norms.max()
    pairs = used[:, None] & used & ~torch.eye(len(rows), dtype=torch.bool)
    scores = -(cosines * pairs).sum(dim=1)
    against = (((cosines < 0) | ~pairs).all(dim=1) & used).sum()
    on_a_line = bool((cosines[pairs].abs() > 0.99).all())
    proven = int(against) == 1 and on_a_line and int(used.sum()) > 2
    reason = (
        "opposite-row rule: one sample, and exactly one row of the last weight gradient points "
        "against all others"
        if proven
        else f"{int(against)} rows of the last weight gradient point against all others: with two "
        "classes, or after noise, they do not tell"
    )
    return one_guess(scores, proven, reason)


def row_sum_rule(weight_gradient: Tensor, bias_gradient: Tensor | None = None) -> LabelGuess:
    """The label of *one* sample under noise: the class whose whole gradient row has the least sum.

    Row ``k`` sums to ``(p_k - y_k)·(Σ_j h_j [+ 1])``. If the features ``h`` are positive (after a
    sigmoid or a ReLU), only the true class's sum is negative, and summing ``m`` values makes
    independent noise matter ``√m`` times less than the bias entry alone does. With features of both
    signs (tanh) the sum may have either sign, and the rule fails: ``infer_labels`` weighs each row
    by the features' mean instead. ``scores`` are minus the sums; never certain.

    Chapter 04. Raises ``ValueError`` for other shapes or values that are not finite.
    """
    sums = _rows(weight_gradient).sum(dim=1)
    if bias_gradient is not None:
        if bias_gradient.shape != sums.shape:
            raise ValueError(
                f"a bias gradient of shape {list(bias_gradient.shape)} does not go with "
                f"{len(sums)} rows"
            )
        sums = sums + _finite(bias_gradient)
    reason = "row-sum rule: likeliest where the features are positive, but noise may reverse it"
    return one_guess(-sums, False, reason)


# --- one logit, and batches ---------------------------------------------------------------------


def one_logit(
    bias_gradient: Tensor,
    batch_size: int = 1,
    *,
    negative: float = 0.5,
    positive: float = 0.5,
    exact: bool = True,
) -> LabelGuess:
    """Labels 0 or 1 where the model has one logit: ``∂b = mean(σ(z_i) - y_i)``, ``[1]``.

    For one sample the sign is the label: negative for 1, positive for 0. In a batch,
    ``B·∂b = n_1·(π_1 - 1) + n_0·π_0``, with ``negative`` ``π_0`` and ``positive`` ``π_1`` the mean
    ``σ(z)`` over samples of either class. Since ``0 < σ < 1``, ``n_1 ≥ -B·∂b`` and ``n_0 ≥ B·∂b``:
    certain where the two bounds leave no choice. ``exact=False``: the value was altered, nothing is
    proven. ``scores`` ``[2]`` are estimated counts.

    Chapter 04. Raises ``ValueError`` for another shape or a value that is not finite.
    """
    if bias_gradient.shape != (1,):
        raise ValueError(f"expected the gradient of one bias, [1], got {list(bias_gradient.shape)}")
    error = float(_finite(bias_gradient))
    gap = 1 - positive + negative
    mean = (positive + negative) / 2
    ones = batch_size * ((negative - error) / gap if gap > 0.1 else mean - error)
    if batch_size == 1:  # the sign says it all: no estimate of σ enters
        ones = float(error < 0)
    scores = torch.tensor([batch_size - ones, ones], dtype=torch.float64)
    least = torch.zeros(2, dtype=torch.float64)
    if exact:
        both = torch.tensor([-error, error], dtype=torch.float64)
        least = at_least(both, batch_size, equal=True)
    proven = int(least.sum()) == batch_size and error != 0
    counts = to_counts(scores, batch_size, least if int(least.sum()) <= batch_size else None)
    reason = (
        "sign of the one bias gradient: every σ(z) lies between 0 and 1, so no other labels fit"
        if proven
        else "one logit: the count of ones is estimated from the model's mean answer"
    )
    return LabelGuess(torch.arange(2).repeat_interleave(counts), counts, proven, reason, scores)


def label_counts(bias_gradient: Tensor, batch_size: int, mean_prediction: Tensor) -> LabelGuess:
    """How many samples of each class: ``n = B·(p̄ - ∂b)``, rounded to whole numbers that sum to B.

    ``mean_prediction`` ``p̄`` ``[k]`` is the mean softmax over the batch; an untrained model gives
    nearly the same to any picture. ``scores`` are the real-valued counts. Certain where what
    ``∂b`` proves, ``n_k ≥ -B·∂b_k``, leaves no choice.

    Source: Wainakh et al. 2022, "User-Level Label Leakage from Gradients in Federated Learning",
    section 4. Chapter 04. Raises ``ValueError`` for shapes that differ, or values not finite.
    """
    if bias_gradient.dim() != 1 or bias_gradient.shape != mean_prediction.shape:
        raise ValueError(
            f"bias gradient {list(bias_gradient.shape)} and mean prediction "
            f"{list(mean_prediction.shape)} must both be [k]"
        )
    errors = _finite(bias_gradient)
    real = batch_size * (_finite(mean_prediction) - errors)
    return counts_guess(
        real, at_least(errors, batch_size, equal=True), batch_size, "mean prediction"
    )


# --- what they share ------------------------------------------------------------------------------


def counts_guess(
    real: Tensor, least: Tensor, size: int, source: str, *, proof: bool = True
) -> LabelGuess:
    proven = proof and int(least.sum()) == size
    counts = to_counts(real, size, least if int(least.sum()) <= size else None)
    reason = (
        "counts proven by the bias gradient: every probability is positive, so n_k ≥ -B·∂b_k, and "
        "these bounds already sum to the batch size"
        if proven
        else f"counts estimated from {source}: {int(least.sum())} of {size} labels are proven"
    )
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    return LabelGuess(labels, counts, proven, reason, real)


def one_guess(scores: Tensor, certain: bool, reason: str) -> LabelGuess:
    label = scores.argmax().reshape(1)
    return LabelGuess(label, label.bincount(minlength=len(scores)), certain, reason, scores)


def _finite(values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the gradient holds NaN or infinity: no rule applies")
    return values.detach().cpu().double()


def _rows(weight_gradient: Tensor) -> Tensor:
    if weight_gradient.dim() != 2 or len(weight_gradient) < 2:
        raise ValueError(
            f"expected a weight gradient [k, m], k > 1, got {list(weight_gradient.shape)}"
        )
    return _finite(weight_gradient)

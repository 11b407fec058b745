"""Which labels a client trained on, read from the last layer of its message. Chapter 04."""

from __future__ import annotations

import torch
from torch import Tensor

from flcourse.attacks.types import LabelGuess


def sign_rule(bias_gradient: Tensor) -> LabelGuess:
    """The label of *one* sample: the only class whose bias gradient is negative.

    With softmax and cross-entropy ``∂loss/∂b = p - y``: ``p_k > 0`` for every class, and
    ``p_y - 1 < 0`` for the true one. ``bias_gradient`` is ``[k]``, k at least 2; ``scores`` are
    ``-∂b``. Certain where exactly one entry is negative.

    Source: Zhao, Mopuri & Bilen 2020, "iDLG: Improved Deep Leakage from Gradients", section 3.
    Chapter 04. Raises ``ValueError`` for another shape or values that are not finite.
    """
    if bias_gradient.dim() != 1 or len(bias_gradient) < 2:
        raise ValueError(f"expected a bias gradient [k], k > 1, got {list(bias_gradient.shape)}")
    if not bool(torch.isfinite(bias_gradient).all()):
        raise ValueError("the bias gradient holds NaN or infinity: no rule applies")
    scores = -bias_gradient.detach().cpu().double()
    negative = int((scores > 0).sum())
    if negative == 1:
        reason = "the sign rule: one sample, and exactly one entry of the bias gradient is negative"
    else:
        reason = f"{negative} entries of the bias gradient are negative, one sample has exactly one"
    label = scores.argmax().reshape(1)
    counts = label.bincount(minlength=len(scores))
    return LabelGuess(label, counts, negative == 1, reason, scores)

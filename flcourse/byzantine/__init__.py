"""Byzantine clients: what a liar can send, and rules that stand it.

Chapters 15, 16 and 17.
"""

from flcourse.byzantine.attacks import (
    alie,
    alie_z,
    constant,
    gaussian,
    ipm,
    mimic,
    min_max,
    min_sum,
    sign_flip,
)
from flcourse.byzantine.catalogue import ATTACKS, Lie, as_transform
from flcourse.byzantine.poisoning import label_flip, poison

__all__ = [
    "ATTACKS",
    "Lie",
    "alie",
    "alie_z",
    "as_transform",
    "constant",
    "gaussian",
    "ipm",
    "label_flip",
    "mimic",
    "min_max",
    "min_sum",
    "poison",
    "sign_flip",
]

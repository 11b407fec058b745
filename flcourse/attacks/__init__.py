"""Attacks on the messages of federated learning: what they see and get. Chapters 03 to 06.

An attack is a function of a model and a ``Leak``; the pictures are not in it:

    leak = observe_gradient(model, images, labels)
    recovery = match_gradients(model, leak)        # or peel, divide, exact_batch, recover
    scores = score(recovery, images, labels)       # the only one that sees the truth
"""

from flcourse.attacks.exact import exact_batch
from flcourse.attacks.explain import Explanation, explain
from flcourse.attacks.features import invert_features
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.labels import infer_labels
from flcourse.attacks.linear import divide
from flcourse.attacks.observe import (
    aggregate,
    observe_gradient,
    observe_models,
    observe_round,
    observe_step,
    observe_update,
)
from flcourse.attacks.recover import recover
from flcourse.attacks.recursive import peel
from flcourse.attacks.scoring import score, succeeded, summary
from flcourse.attacks.types import LabelGuess, Layer, Leak, Recovery, Scores, Snapshot

__all__ = [
    "Explanation",
    "LabelGuess",
    "Layer",
    "Leak",
    "Recovery",
    "Scores",
    "Snapshot",
    "aggregate",
    "divide",
    "exact_batch",
    "explain",
    "infer_labels",
    "invert_features",
    "match_gradients",
    "observe_gradient",
    "observe_models",
    "observe_round",
    "observe_step",
    "observe_update",
    "peel",
    "recover",
    "score",
    "succeeded",
    "summary",
]

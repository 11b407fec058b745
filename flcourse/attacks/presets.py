"""The options of ``match_gradients`` and the settings of published attacks. Chapters 03 and 06."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from flcourse.attacks.basis import BASES
from flcourse.attacks.objective import DISTANCES, SUPPORTS, Weights
from flcourse.attacks.optimise import OPTIMISERS, SCHEDULES

STARTS = ("auto", "exact", "grey", "normal", "uniform", "fourier")
KEEPS = ("best", "last")


@dataclass(frozen=True, eq=False)
class Options:
    """Every option of ``match_gradients``; None means: chosen by what the leak and the model are.

    What is matched: ``distance``, ``layers`` (names of parameters or layers), ``layer_weights``
    (``"none"``; ``"balanced"``, one over each parameter's norm; ``"equal"``, over its square;
    numbers; or a mapping from layers to numbers), ``support`` (``"kept"`` leaves the
    exact zeros of a pruned message out), ``tv``, ``prior`` (see ``objective.Matching``),
    ``unroll`` (compute local steps one by one).
    The unknown: ``basis`` (``"dct"``, ``"pixels"``), ``spectrum`` ``[c, h, w]`` of ``"dct"``.
    The start: ``start`` by name or pictures ``[b, ...]`` or ``[restarts, b, ...]``, and
    ``start_scale``, which multiplies the random part. ``"exact"`` begins at the exact features of a
    later layer (batch 1, see ``features``).
    The search: ``optimiser``, ``line_search`` and ``history`` (L-BFGS), ``lr``, ``momentum`` (SGD),
    ``schedule``, ``steps`` (evaluations of a restart), ``patience`` and ``tolerance`` (stop where
    the objective fell by less than this part for so long), ``clamp`` (pictures stay in [0, 1]: each
    step of a first-order method is put back; for L-BFGS, leaving the box has a price).
    The answer: ``keep`` the best or the last point; ``candidates``: how many labels are tried where
    the label of a single sample is not certain.
    """

    distance: str | None = None
    layers: Sequence[str] | None = None
    layer_weights: Weights = None
    support: str = "auto"
    tv: float = 0.0
    prior: float | None = None
    unroll: bool | None = None
    basis: str | None = None
    spectrum: Tensor | None = None
    start: str | Tensor = "auto"
    start_scale: float = 1.0
    optimiser: str = "lbfgs"
    line_search: bool = True
    history: int = 100
    lr: float | None = None
    momentum: float = 0.0
    schedule: str = "none"
    steps: int | None = None
    patience: int | None = None
    tolerance: float = 0.0
    clamp: bool = False
    keep: str = "best"
    candidates: int = 12

    def __post_init__(self) -> None:
        choices = {
            "support": SUPPORTS,
            "optimiser": OPTIMISERS,
            "schedule": SCHEDULES,
            "keep": KEEPS,
            "distance": (None, *DISTANCES),
            "basis": (None, *BASES),
        }
        if isinstance(self.start, str):
            choices["start"] = STARTS
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                names = [str(choice) for choice in allowed if choice is not None]
                near = _near(value, names)
                raise ValueError(
                    f"{name}={value!r} is unknown: use one of {', '.join(names)}{near}"
                )
        for name in ("history", "steps", "patience", "candidates"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value != int(value)):
                raise ValueError(f"{name}={value} must be a whole number, at least 1")
        for name in ("tv", "prior", "start_scale", "tolerance"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be 0 or more")
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr={self.lr} must be a positive number")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must lie in [0, 1)")
        if self.schedule != "none" and self.optimiser == "lbfgs":
            raise ValueError(
                f"schedule={self.schedule!r} is for first-order methods: L-BFGS finds its own step"
            )


# The loop of DLG's and iDLG's programs: 300 calls of L-BFGS with 20 iterations each, learning rate
# 1, no line search.
_PUBLISHED_LOOP: dict[str, Any] = {
    "distance": "squared",
    "basis": "pixels",
    "start": "normal",
    "line_search": False,
    "steps": 6000,
    "keep": "last",
    "support": "all",
    "unroll": False,
}

# Each as its authors have it; the label is a part of the method, see ``match_gradients``.
PRESETS: dict[str, dict[str, Any]] = {
    # Zhu, Liu & Han 2019, "Deep Leakage from Gradients", algorithm 1: picture and label together.
    "zhu2019": {**_PUBLISHED_LOOP, "labels": "optimise"},
    # Zhao, Mopuri & Bilen 2020, "iDLG", algorithm 1: the same with the label by the sign rule.
    "zhao2020": _PUBLISHED_LOOP,
    # Geiping et al. 2020, "Inverting Gradients", section 4 and their code.
    "geiping2020": {
        "distance": "cosine",
        "tv": 1e-2,
        "basis": "pixels",
        "start": "normal",
        "optimiser": "signed-adam",
        "lr": 0.1,
        "schedule": "steps",
        "steps": 4800,
        "clamp": True,
        "support": "all",
        "keep": "last",
    },
}


def resolve(preset: str | None, given: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """The options of a call: the preset's, then what was given; and the preset's other settings.

    Raises ``ValueError`` for an unknown preset or value, ``TypeError`` for an unknown option.
    """
    if preset is not None and preset not in PRESETS:
        names = list(PRESETS)
        raise ValueError(
            f"preset={preset!r} is unknown: use one of {', '.join(names)}{_near(preset, names)}"
        )
    settings = {**PRESETS.get(preset or "", {}), **given}
    known = [option.name for option in fields(Options)]
    extra = {name: settings.pop(name) for name in ("labels",) if name in settings}
    for name in settings:
        if name not in known:
            raise TypeError(
                f"match_gradients has no option {name!r}{_near(name, known)}; "
                f"its options are {', '.join(known)}"
            )
    return Options(**settings), extra


def _near(value: object, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

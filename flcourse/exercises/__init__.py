"""Checks and hints for the exercises of the chapters: ``check("01.1", weighted_mean)``.

``check`` prints a card and never raises, so an unsolved exercise does not stop a chapter. Solutions
are not here: each stands in its chapter. Checks of chapter NN live in ``chNN.py``.
"""

from flcourse.exercises._core import (
    CheckResult,
    Wrong,
    check,
    exercise,
    exercises,
    expect_close,
    hint,
)

__all__ = ["CheckResult", "Wrong", "check", "exercise", "exercises", "expect_close", "hint"]

"""What all checks share: the registry, the card, and comparisons that say what is wrong."""

from __future__ import annotations

import functools
import html
import importlib
import importlib.util
import inspect
import pkgutil
import re
import signal
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import display
from torch import Tensor

CHECK_MIME = "application/vnd.flcourse.check+json"
SECONDS = 30  # an answer that takes longer has most likely a loop without an end

Test = Callable[[Any], "str | None"]


class Wrong(Exception):
    """Raised by a check: what is wrong, and where to look. The text is shown to the student."""


class _NotFilledIn(Exception):
    """The stub is still there."""


class _Raised(Exception):
    """The student's code raised the exception that is this one's cause."""


class _OutOfTime(BaseException):
    """Not an ``Exception``: ``except Exception`` in a student's loop does not swallow it."""


@dataclass(frozen=True)
class Exercise:
    """A registered check with its title and hints."""

    id: str
    title: str
    hints: tuple[str, ...]
    test: Test
    takes: str  # "function" or "value"


@dataclass(frozen=True)
class CheckResult:
    """What ``check`` found. ``message`` says what is wrong; ``where`` names the student's line."""

    id: str
    title: str
    passed: bool
    message: str
    where: str = ""

    def _ipython_display_(self) -> None:
        """Nothing: ``check`` has shown the card; the end of a cell shall not show it again."""


class _Card:
    """A result as the reader sees it."""

    def __init__(self, result: CheckResult, hints: int) -> None:
        self.result, self.hints = result, hints

    def _parts(self) -> tuple[str, str, str]:
        result = self.result
        mark, state = ("✓", "passed") if result.passed else ("○", "not yet")
        name = f"Exercise {result.id}" + (f" · {result.title}" if result.title else "")
        more = ""
        if not result.passed and self.hints:
            count = "is a hint" if self.hints == 1 else f"are {self.hints} hints"
            more = f'There {count}: hint("{result.id}")'
        return f"{mark} {name}: {state}", result.message, more

    def __repr__(self) -> str:
        head, message, more = self._parts()
        return "\n".join(part for part in (head, message, self.result.where, more) if part)

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        page = self._html()
        return {"text/html": page, "text/plain": repr(self), CHECK_MIME: asdict(self.result)}

    def _html(self) -> str:
        head, message, more = (html.escape(part) for part in self._parts())
        where = html.escape(self.result.where)
        colour, kind = ("#009E73", "pass") if self.result.passed else ("#E69F00", "fail")
        return (
            f'<div class="flc-check flc-check-{kind}" '
            f'style="border-left:4px solid {colour};padding:.5em .8em">'
            f'<strong>{head}</strong><div style="white-space:pre-line">{message}</div>'
            + (f'<pre style="margin:.4em 0;white-space:pre-wrap">{where}</pre>' if where else "")
            + (f"<div>{more}</div>" if more else "")
            + "</div>"
        )


_REGISTRY: dict[str, Exercise] = {}


def exercise(
    id: str, *, title: str, hints: Sequence[str], takes: str = "function"
) -> Callable[[Test], Test]:
    """Register a check: ``@exercise("01.1", title=…, hints=(…))`` above ``def …(answer)``.

    The function raises ``Wrong`` with what is wrong, or returns a sentence for who has it right.
    ``takes="value"`` for an answer that is not a function. Raises ``ValueError`` for an id that is
    not ``NN.n``, for one that is taken, and where there is no hint.
    """
    if not re.fullmatch(r"\d\d\.\d+", id):
        raise ValueError(f"exercise id {id!r} must be chapter, dot, number, such as '01.1'")
    if not hints:
        raise ValueError(f"exercise {id} needs at least one hint")
    if takes not in ("function", "value"):
        raise ValueError(f"takes={takes!r} must be 'function' or 'value'")

    def register(test: Test) -> Test:
        known = _REGISTRY.get(id)
        if known is not None and known.test.__module__ != test.__module__:
            raise ValueError(f"exercise {id} is registered by {known.test.__module__} already")
        _REGISTRY[id] = Exercise(id, title, tuple(hints), test, takes)
        return test

    return register


def exercises() -> dict[str, Exercise]:
    """All exercises of all chapters, by id in order."""
    package = importlib.import_module("flcourse.exercises")
    for module in pkgutil.iter_modules(package.__path__):
        if re.fullmatch(r"ch\d\d", module.name):
            importlib.import_module(f"flcourse.exercises.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def check(id: str, answer: object) -> CheckResult:
    """Check ``answer`` to exercise ``id``, show a card, and return what was found. Never raises.

    A stub that is not filled in, an exception in the answer and a loop without an end all give a
    card that says so.
    """
    found = _find(id)
    if found is None:
        known = ", ".join(exercises())
        result = CheckResult(
            str(id), "", False, f"There is no exercise {id!r}. There are: {known}."
        )
        display(_Card(result, 0))
        return result
    passed, message, where = _judge(found, answer)
    result = CheckResult(found.id, found.title, passed, message, where)
    display(_Card(result, len(found.hints)))
    return result


def hint(id: str, n: int = 1) -> None:
    """Show hint ``n`` (1, 2, …) of an exercise, and how many there are."""
    found = _find(id)
    if found is None:
        display(_Hint(f"There is no exercise {id!r}. There are: {', '.join(exercises())}."))
        return
    count = len(found.hints)
    if not (isinstance(n, int) and 1 <= n <= count):
        display(_Hint(f"Exercise {id} has {count} hint(s): hint({id!r}, 1) shows the first."))
        return
    more = f" The next: hint({id!r}, {n + 1})." if n < count else ""
    display(_Hint(f"Hint {n} of {count}. {found.hints[n - 1]}{more}"))


@dataclass(frozen=True)
class _Hint:
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        style = "border-left:4px solid #0072B2;padding:.5em .8em"
        page = f'<div class="flc-hint" style="{style}">{html.escape(self.text)}</div>'
        return {"text/html": page, "text/plain": self.text}


# --- helpers for checks -------------------------------------------------------------------------


def expect_close(
    actual: object,
    expected: Tensor,
    what: str,
    hint: str = "",
    *,
    mistakes: Mapping[str, object] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> None:
    """Raise ``Wrong`` with the reason unless ``actual`` equals ``expected`` to rounding.

    ``what`` names the value in a sentence ("the mean"), ``hint`` is added to general reasons.
    ``mistakes`` maps a message to the value which that mistake gives here: it is told in its own
    words. Otherwise reports type, shape, NaN, sign, whole numbers, a factor or the worst place.
    """
    got = as_tensor(actual, what)
    for message, value in (mistakes or {}).items():
        wrong = torch.as_tensor(value, dtype=torch.float64)
        told_apart = not _close(wrong, expected.double(), rtol, atol)
        if told_apart and _close(got, wrong, rtol, atol):
            raise Wrong(message)
    reason = _difference(got, expected.double(), rtol, atol)
    if reason:
        raise Wrong(f"{what[0].upper()}{what[1:]} {reason} {hint}".strip())


def expect_functions(answer: object, number: str, names: str) -> tuple[Callable[..., Any], ...]:
    """The functions of an answer that has several: ``names`` as ``check`` is to be given them."""
    count = names.count(",") + 1
    if not (isinstance(answer, tuple) and len(answer) == count and all(map(callable, answer))):
        many = "both" if count == 2 else f"all {count}"
        raise Wrong(f'Give check {many} functions: check("{number}", ({names})).')
    return answer


def as_tensor(value: object, what: str) -> Tensor:
    """``value`` as a float64 tensor, detached; raises ``Wrong`` where it is no numbers."""
    if inspect.isgenerator(value):
        raise Wrong(f"{what} is a generator: use return, not yield, and list(...) or torch.stack.")
    if isinstance(value, (Tensor, np.ndarray, np.generic, float, int, list, tuple)):
        try:
            if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
                value = torch.stack([torch.as_tensor(v) for v in value])
            return torch.as_tensor(value).detach().cpu().to(torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise Wrong(f"{what} cannot be read as a tensor: {error}") from error
    raise Wrong(f"{what} should be a tensor of numbers, but it is a {type(value).__name__}.")


def _difference(got: Tensor, expected: Tensor, rtol: float, atol: float) -> str:
    """What differs, as the end of a sentence, or nothing."""
    if got.shape != expected.shape:
        turned = got.dim() > 1 and got.shape == expected.shape[::-1]
        extra = " (it is transposed)." if turned else "."
        return f"has shape {list(got.shape)}, expected {list(expected.shape)}{extra}"
    if bad := int((~got.isfinite()).sum()):
        return f"has {bad} of {got.numel()} values that are NaN or infinite: what is divided by 0?"
    if _close(got, expected, rtol, atol):
        return ""
    if _close(got, -expected, rtol, atol):
        return "has the opposite sign."
    if _close(got, expected.trunc(), rtol, atol):
        return "is cut off to whole numbers: compute with floats."
    factor = float((got * expected).sum() / expected.square().sum().clamp_min(1e-300))
    if abs(factor) > 1e-9 and _close(got, factor * expected, rtol, atol * abs(factor)):
        return f"is {factor:.4g} times what it should be."
    place = int((got - expected).abs().argmax())
    index = list(map(int, np.unravel_index(place, tuple(expected.shape)))) if got.dim() else []
    at = f" at {index}" if index else ""
    return f"is {got.flatten()[place]:.4g}{at}, expected {expected.flatten()[place]:.4g}."


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol)


# --- how a check is run -------------------------------------------------------------------------


def _find(id: object) -> Exercise | None:
    if not isinstance(id, str) or not re.fullmatch(r"\d\d\.\d+", id):
        return None
    module = f"flcourse.exercises.ch{id[:2]}"
    if id not in _REGISTRY and importlib.util.find_spec(module) is not None:
        importlib.import_module(module)
    return _REGISTRY.get(id)


def _judge(exercise: Exercise, answer: object) -> tuple[bool, str, str]:
    """Whether the answer passes, what to tell, and the student's line that raised."""
    try:
        with _time_limit(SECONDS):
            told = exercise.test(_prepared(exercise, answer))
        return True, told or "Correct.", ""
    except _NotFilledIn as stub:
        return False, str(stub), ""
    except Wrong as wrong:
        return False, str(wrong), ""
    except _Raised as raised:
        error = raised.__cause__ or raised
        return False, f"Your code raised {_short(error)}", _student_line(error)
    except _OutOfTime:
        text = f"No answer within {SECONDS} seconds. Does a loop never end?"
        return False, text, ""
    except KeyboardInterrupt:
        return False, "Stopped before the check was done.", ""
    except Exception as error:
        # The answer had a form that the check did not foresee: that, too, must not stop the page.
        return False, f"The check could not read this answer ({_short(error)}).", ""


def _prepared(exercise: Exercise, answer: object) -> object:
    if answer is None or answer is Ellipsis:
        raise _NotFilledIn("Nothing is filled in yet: replace the … of the stub by your answer.")
    if exercise.takes == "value":
        return answer
    if not callable(answer):
        kind = type(answer).__name__
        raise Wrong(
            f'Give check the function itself: check("{exercise.id}", name) without parentheses '
            f"behind the name. It got a {kind}, which is perhaps the function's result."
        )
    return _guarded(answer)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The student's function; what it raises becomes ``_Raised``, a stub ``_NotFilledIn``."""

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
        except NotImplementedError:
            raise _NotFilledIn(
                "The function still raises NotImplementedError: fill it in."
            ) from None
        except (KeyboardInterrupt, _OutOfTime):
            raise
        except BaseException as error:
            if isinstance(error, TypeError) and "ellipsis" in str(error):
                raise _NotFilledIn("There is still a … in the function: replace it.") from None
            raise _Raised from error
        if result is None or result is Ellipsis:
            raise _NotFilledIn("The function returns nothing yet: fill it in, and mind the return.")
        return result

    return call


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 240 else text[:237] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _student_line(error: BaseException) -> str:
    """The last line of the student's own code in the traceback, e.g. ``line 3: x = y / 0``."""
    paths = sysconfig.get_paths()
    foreign = (
        str(Path(__file__).parents[1]),
        *(paths[k] for k in ("stdlib", "purelib", "platlib")),
    )
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*foreign, "<frozen"))]
    return f"line {own[-1].lineno}: {own[-1].line}" if own and own[-1].line else ""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``_OutOfTime`` in the block after ``seconds``; without effect where there is no alarm.

    Alarms exist on POSIX, in the main thread: that is where notebooks and tests run.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

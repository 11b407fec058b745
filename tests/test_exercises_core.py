"""Checks never raise; right answers pass, stubs get help, catalogued mistakes are told why."""

import contextlib
import importlib
import json

import pytest
import torch

from flcourse import exercises
from flcourse.exercises import Wrong, _core, check, expect_close, hint
from tests.wrong import ch01, ch02

WRONG = {**ch01.WRONG, **ch02.WRONG}
CASES = [(id, *case) for id, cases in WRONG.items() for case in cases]
RIGHT = {
    "01.1": lambda rows, weights: (weights[:, None] * rows).sum(0) / weights.sum(),
    "01.2": ch01.split,
    "01.3": ch01.trained(),
    "01.4": lambda num_values, clients, rounds: 8 * num_values * clients * rounds / 1e6,
    "02.1": lambda w, b: w[b.abs().argmax()] / b[b.abs().argmax()],
    "02.3": ch02.RIGHT,
    "02.2": lambda m, o, t: (m < t).float().mean() - (o < t).float().mean(),
}


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> list:
    cards: list = []
    monkeypatch.setattr(_core, "display", cards.append)
    return cards


@pytest.mark.parametrize("id", RIGHT)
def test_a_right_answer_passes(id: str) -> None:
    assert (result := check(id, RIGHT[id])).passed, result.message


def test_other_right_answers_pass() -> None:
    assert check("01.1", lambda rows, weights: weights.float() / weights.sum() @ rows).passed
    assert check("02.1", lambda w, b: b @ w / b.dot(b)).passed, "least squares over all rows"
    assert check("02.3", {k.title(): list(v) for k, v in ch02.RIGHT.items()}).passed
    assert check("02.2", lambda m, o, t: float((m < t).double().mean() - (o < t).double().mean()))


@pytest.mark.parametrize(
    ("id", "name", "answer", "words"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES]
)
def test_a_catalogued_mistake_is_told_why(id: str, name: str, answer: object, words: str) -> None:
    result = check(id, answer)
    assert not result.passed and words in result.message, result.message


@pytest.mark.parametrize("id", RIGHT)
def test_a_stub_fails_with_help(id: str) -> None:
    def todo(*args):
        raise NotImplementedError

    for stub in (None, ..., lambda *args: None, lambda *args: ..., todo, lambda *a: ... + 1):
        result = check(id, stub)
        assert not result.passed
        if id != "02.3":
            assert "fill" in result.message or "replace" in result.message, result.message


def test_every_exercise_has_two_hints_and_three_mistakes() -> None:
    known = exercises.exercises()
    assert known.keys() >= RIGHT.keys()
    for id in RIGHT:
        assert len(known[id].hints) >= 2 and len(WRONG[id]) >= 3


def test_an_exception_is_shown_short_with_the_students_line(shown: list) -> None:
    def weighted_mean(rows, weights):
        total = weights.sum() - weights.sum()
        return rows[int(1 / float(total))]

    result = check("01.1", weighted_mean)
    assert result.message == "Your code raised ZeroDivisionError: float division by zero"
    assert result.where.endswith("return rows[int(1 / float(total))]")
    page = shown[0]._repr_mimebundle_()["text/html"]
    assert "flc-check-fail" in page and "return rows" in page and "Traceback" not in page


def exits(*args):
    raise SystemExit(3)


def recurses(*args):
    return recurses(*args)


@pytest.mark.parametrize("answer", [exits, recurses, 3, "x", dict, lambda: 0, lambda *a: (yield)])
def test_strange_answers_do_not_stop_a_page(answer: object) -> None:
    for id in RIGHT:
        assert not check(id, answer).passed


def test_a_loop_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(*args):
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    monkeypatch.setattr(_core, "SECONDS", 0.2)
    assert "Does a loop never end?" in check("01.1", spin).message


def test_the_result_of_a_call_is_recognised() -> None:
    assert "without parentheses" in check("01.1", torch.ones(3)).message


def test_the_card_carries_its_data_and_escapes(shown: list) -> None:
    def bad(rows, weights):
        raise ValueError("<img src=x>")

    check("01.1", bad)
    bundle = shown[0]._repr_mimebundle_()
    assert "<img" not in bundle["text/html"]
    data = json.loads(json.dumps(bundle[_core.CHECK_MIME]))
    assert data["id"] == "01.1" and data["passed"] is False
    assert 'hint("01.1")' in bundle["text/plain"]


def test_unknown_exercises_and_hints_list_what_exists(shown: list) -> None:
    for id in ("99.1", "1", None, ["01.1"]):
        assert "01.1" in check(id, 1).message
    hint("01.1"), hint("01.1", 2), hint("01.1", 9), hint("99.1")
    texts = [repr(card) for card in shown[-4:]]
    assert texts[0].startswith("Hint 1 of 2.") and "hint('01.1', 2)" in texts[0]
    assert texts[1].startswith("Hint 2 of 2.") and "has 2 hint(s)" in texts[2]
    assert "There are: 01.1" in texts[3]


EXPECTED = torch.tensor([[1.0, -2.0, 3.5]])


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        ("three", "should be a tensor of numbers, but it is a str"),
        (EXPECTED[0], r"has shape \[3\], expected \[1, 3\]"),
        (EXPECTED.T, "transposed"),
        (EXPECTED / 0 * 0, "3 of 3 values that are NaN"),
        (-EXPECTED, "opposite sign"),
        (EXPECTED.int(), "cut off to whole numbers"),
        (EXPECTED * 3, "is 3 times what it should be"),
        (EXPECTED + torch.tensor([0, 0, 1.0]), r"is 4.5 at \[0, 2\], expected 3.5"),
        ((x for x in EXPECTED), "generator"),
        ([[1.0], [2.0, 3.0]], "cannot be read as a tensor"),
    ],
)
def test_expect_close_says_what_differs(actual: object, words: str) -> None:
    with pytest.raises(Wrong, match=words):
        expect_close(actual, EXPECTED, "the row")


def test_expect_close_takes_what_is_equal_to_rounding() -> None:
    expect_close((EXPECTED * (1 + 1e-6)).double().requires_grad_(), EXPECTED, "the row")
    expect_close(EXPECTED.numpy(), EXPECTED, "the row")
    expect_close([row.tolist() for row in EXPECTED], EXPECTED, "the row")


def test_exercises_are_registered_with_care() -> None:
    for wrong in ({"id": "1.1"}, {"hints": ()}, {"takes": "class"}):
        options = {"id": "97.1", "title": "x", "hints": ("h",), "takes": "value"} | wrong
        with pytest.raises(ValueError):
            exercises.exercise(options.pop("id"), **options)
    importlib.reload(importlib.import_module("flcourse.exercises.ch01"))

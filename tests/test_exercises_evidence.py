"""Evidence of a flaw: what is read, what is refused, and that the refusal says what to return."""

import pytest
import torch

from flcourse.exercises._core import Wrong
from flcourse.exercises._evidence import nothing_found, read_case, read_rows

ROWS = torch.ones(5, 2)
OPTIONS = {"most": 5, "least": 1, "order": " with the lies last", "remark": "at least 1"}


def test_evidence_is_read_and_nothing_is_nothing():
    rows, f = read_case((ROWS, 2), **OPTIONS)
    assert torch.equal(rows, ROWS) and f == 2
    assert read_case((), **OPTIONS) is None
    assert nothing_found((), "rows") and not nothing_found(ROWS, "rows")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (True, "evidence itself: \\(rows, f\\)"),
        (ROWS, "two things, \\(rows, f\\) with the lies last"),
        ((ROWS, 0), "f = 0 must be a whole number, at least 1"),
        ((ROWS, 1.5), "f = 1.5 must be"),
        ((ROWS, True), "f = True must be"),
        ((ROWS.long(), 1), "float tensor"),
        ((ROWS[0], 1), "float tensor"),
        ((ROWS * torch.nan, 1), "finite"),
        ((torch.ones(6, 2), 1), "more than it takes"),
        ((torch.ones(2, 10_001), 1), "more than it takes"),
    ],
)
def test_what_is_no_evidence_is_refused(found, words):
    with pytest.raises(Wrong, match=words):
        read_case(found, **OPTIONS)


def test_rows_alone_are_checked_alike():
    with pytest.raises(Wrong, match="more than it takes"):
        read_rows(ROWS, most=4)

"""Figures of chapter 13: captions from the data, and a sequence drawn from real messages."""

import numpy as np
import pytest

from flcourse import viz
from flcourse.secagg import secure_sum
from tests.figures import assert_speaks_for_itself

VALUES, MASKS = (8, 5, 11), {(2, 1): 4, (3, 1): 7, (3, 2): 2}
WORDS = {name: np.arange(2**16, dtype=np.uint32) << 16 for name in ("a", "b", "c")}
TIMED = {
    10: {"client": (0.01, 0.03, 0.02), "server": (0.1,)},
    1000: {"client": (0.2,), "server": (3.0, 5.0, 4.0)},
}


def sequence(**dropouts: list[int]) -> viz.Figure:
    result = secure_sum(np.zeros((5, 3)), clip=1.0, threshold=3, dropouts=dropouts)
    return viz.message_sequence(result.transcript, 5, result.survivors)


FIGURES = {
    "sum": lambda: viz.masked_sum(VALUES, MASKS),
    "normal": lambda: viz.normal_masks((1, 100), (12.5, 0.4), (1e-6, 1e-3), modular=(0.7, 1e-8)),
    "words": lambda: viz.word_histograms(WORDS, 32),
    "sequence": sequence,
    "bytes": lambda: viz.bytes_over_plain((10, 100), {"all pairs": (1.0, 1.5)}),
    "seconds": lambda: viz.round_seconds({"all pairs": TIMED, "neighbours": TIMED}, TIMED),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_captions_are_computed_from_what_is_drawn() -> None:
    assert "receives −3, 7, 20; their sum is 24" in FIGURES["sum"]().caption
    assert "12 σ at a scale of 1 and 0.4 σ at 100" in FIGURES["normal"]().caption
    assert "a: 1.6 to 1.6 %" in FIGURES["words"]().caption
    assert "all pairs: 1.50" in FIGURES["bytes"]().caption
    seconds = FIGURES["seconds"]().caption  # the middle of the runs
    assert "server, all pairs: 4.0 s at 1,000; client, all pairs: 200 ms at 1,000" in seconds


def test_the_sequence_names_who_vanishes_and_what_is_sent() -> None:
    """Sizes by the wire format: 22 + 64 bytes around each body."""
    assert sequence().caption.startswith("Bytes that each client sends: 1 keys 182")
    gone = sequence(masked_input=[2], unmasking=[4]).caption
    assert gone.startswith("Clients 3, 5 vanish. ")
    assert "3 vectors 98" in gone
    assert sequence(masked_input=[0]).caption.startswith("Client 1 vanishes. ")


def test_masked_sum_has_room_for_three() -> None:
    with pytest.raises(ValueError, match="3 clients"):
        viz.masked_sum((1, 2), {(2, 1): 4})

"""Figures: deterministic, small, with alt text and computed captions, in the house style."""

import matplotlib
import numpy as np
import pytest
import torch

from flcourse import viz
from flcourse.viz.base import INK, spread
from flcourse.viz.leakage import byte_picture, first_bytes
from tests.figures import assert_speaks_for_itself

ROUNDS = np.arange(1, 6)
CURVES = {"IID": [ROUNDS / 10, ROUNDS / 10 + 0.1], "Dirichlet(0.1)": [ROUNDS / 12]}
PHOTO = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
PLANE = np.linspace(-0.5, 1.5, 12)
X, Y = np.meshgrid(PLANE, PLANE)
POINTS = {"global": (0.0, 0.0), "A": (0.0, 1.0), "B": (1.0, 0.0), "average": (0.5, 0.5)}
STACK = {"TLS": {"network": 1}, "clipping": {}, "auditing": {"network": 0.5}}

FIGURES = {
    "learning_curves": lambda: viz.learning_curves(CURVES, reference=("one place", 0.9)),
    "megabytes": lambda: viz.accuracy_against_megabytes(
        {
            "IID": {"E = 1": (ROUNDS * 4.0, CURVES["IID"])},
            "by label": {"E = 1": (ROUNDS, ROUNDS / 20)},
        },
        target=0.4,
    ),
    "partition": lambda: viz.partition_bars(
        {"IID": [torch.tensor([0, 1, 1]), torch.tensor([0, 2])]}, ("a", "b", "c")
    ),
    "drift": lambda: viz.client_drift(
        PLANE, PLANE, X**2 + (Y - 1) ** 2, (X - 1) ** 2 + Y**2, POINTS
    ),
    "line": lambda: viz.drift_line([-0.5, 0, 0.5, 1, 1.5], [2, 1, 2, 3, 4], [4, 3, 2, 1, 2]),
    "grid": lambda: viz.picture_grid(PHOTO[None].repeat(3, 1, 1, 1), ("a", "b", "c")),
    "reconstruction": lambda: viz.reconstruction(
        PHOTO,
        PHOTO + 0.01,
        {"PSNR (dB)": 40.0, "SSIM": 0.9},
        11.2,
        gradient=PHOTO.flatten()[:50] - 0.5,
    ),
    "hero": lambda: viz.hero(PHOTO, torch.ones(99), PHOTO, float("inf"), 11.2),
    "federation": lambda: viz.federation_diagram(photo=PHOTO),
    **{f"round {n}": lambda n=n: viz.round_diagram(n) for n in range(1, 6)},
    "adversaries": viz.adversary_map,
    "stack": lambda: viz.privacy_stack(STACK, adversaries=("network", "colluders")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name], words=name != "grid")


def test_captions_are_computed_from_what_is_drawn() -> None:
    assert "IID: 50.0–60.0 %; Dirichlet(0.1): 41.7 %" in FIGURES["learning_curves"]().caption
    assert "IID — E = 1: 16 MB; by label — E = 1: not reached" in FIGURES["megabytes"]().caption
    assert "IID: 2–3 samples a client, 2.0 of 3 classes" in FIGURES["partition"]().caption
    assert "PSNR 40 dB" in FIGURES["reconstruction"]().caption
    assert "would score 11.2 dB" in FIGURES["reconstruction"]().caption
    assert "exact (PSNR ∞)" in FIGURES["hero"]().caption
    assert "(1.00 and 1.00) and higher at the average (2.00 and 2.00)" in FIGURES["line"]().caption
    assert "1 of the 3 layers" in FIGURES["stack"]().caption


def test_histories_are_drawn_like_accuracies() -> None:
    class Record:
        def __init__(self, accuracy: float) -> None:
            self.accuracy = accuracy

    class History:
        rounds = tuple(map(Record, ROUNDS / 10))

    assert (
        viz.learning_curves({"a": [History()]}).png == viz.learning_curves({"a": [ROUNDS / 10]}).png
    )


def test_the_readers_own_style_is_neither_used_nor_changed() -> None:
    plain = FIGURES["line"]().png
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        assert FIGURES["line"]().png == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_text_has_contrast_on_white() -> None:
    def luminance(colour: str) -> float:
        parts = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    assert 1.05 / (luminance(INK) + 0.05) > 7
    assert set(viz.COLOURS) == {"client", "private", "server", "attacker", "defence", "warning"}


def test_labels_move_apart_as_little_as_may_be() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    moved = spread([0.1, 0.12, 0.13, 0.9], 0.1)
    assert np.diff(moved).min() >= 0.1 - 1e-12 and moved[3] == 0.9


def test_the_bytes_that_travel_are_drawn_as_they_are() -> None:
    assert first_bytes(torch.tensor([1.0, -2.0])) == "00 00 80 3f 00 …"
    picture = byte_picture(torch.full((8192,), 1.0))
    assert picture.shape == (64, 64, 3)
    assert picture[0, :4, 0].tolist() == [0, 0, 128 / 255, 63 / 255]


def test_a_record_is_a_table_that_can_be_read_aloud() -> None:
    table = viz.record_table_comparison(
        ("radius <mm>", "texture"), torch.tensor([10.0, 20.0]), torch.tensor([10.0, 21.0])
    )
    page = table._repr_mimebundle_()["text/html"]
    assert "radius &lt;mm&gt;" in page and page.count('scope="row"') == 2
    assert "largest relative error is 5 %" in table.caption
    with pytest.raises(ValueError, match="1 names, 2 true"):
        viz.record_table_comparison(("a",), torch.ones(2), torch.ones(2))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="alt text"):
        viz.Figure(viz.new_figure(2, 1)[0], alt=" ")
    with pytest.raises(ValueError, match=r"have \[5, 4\] rounds"):
        viz.learning_curves({"a": [ROUNDS, ROUNDS[:4]]})
    with pytest.raises(ValueError, match="7 lines, but only 5 colours"):
        viz.learning_curves({f"{n}": [ROUNDS] for n in range(7)})
    with pytest.raises(ValueError, match="1 to 5"):
        viz.round_diagram(6)
    with pytest.raises(ValueError, match="at all"):
        viz.privacy_stack({"TLS": {"network": 0.7}})
    with pytest.raises(ValueError, match="one picture"):
        viz.picture_grid([torch.ones(2, 4, 4)])

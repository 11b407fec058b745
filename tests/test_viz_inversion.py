"""Figures of the attack chapters: they speak for themselves, and say what their data say."""

import functools

import numpy as np
import pytest
import torch

from flcourse import viz
from flcourse.attacks.types import Layer, Recovery, Scores, Snapshot
from flcourse.metrics import psnr
from flcourse.viz.emerging import thin
from flcourse.viz.inversion import _blurred, _damaged_to, _noisy, picture_psnr
from tests.figures import assert_speaks_for_itself

GENERATOR = torch.Generator().manual_seed(0)
PHOTOS = torch.rand(4, 3, 8, 8, generator=GENERATOR)
GRADIENT = np.array([0.1, 0.2, -0.9, 0.3, 0.3])
SNAPSHOTS = tuple(Snapshot(e, 1 / e, PHOTOS[:1] + 1 / e) for e in (1, 4, 16, 64))
RECOVERY = Recovery(PHOTOS[:1], None, "m", history=(1.0, 0.1, 0.01), snapshots=SNAPSHOTS)
SUMMARY = {"n": 24, "success": 0.5, "psnr": 40.0, "psnr_low": 30.0, "psnr_high": 45.0,
           "psnr_min": 9.0, "ssim": 0.9, "floor": 12.0, "label_match": 1.0}  # fmt: skip
EXACT = {"loss": [1.0, 0.1], "psnr": [[1, 9.0], [2, float("inf")]]}
STORED = {"loss": [1.0, 0.5], "psnr": [[1, 9.0], [2, 20.0]]}

FIGURES = {
    "recovered_grid": lambda: viz.recovered_grid(
        PHOTOS, {"a": PHOTOS, "b": [*PHOTOS[:3], None]}, {"a": [40, 41, 42, 43], "b": [9, 8, 7, 0]},
        [12.0, 11, 10, 13],
    ),
    "loss_and_psnr": lambda: viz.loss_and_psnr(
        {"live": RECOVERY, "kept": STORED, "exact": EXACT}, PHOTOS[0], 12.0
    ),
    "decibel_ladder": lambda: viz.decibel_ladder(PHOTOS[0], (5, 10, 20)),
    "success": lambda: viz.success_over_seeds(
        {"a": [10.0, 30.0, float("inf"), 22.0], "b": [5.0, 6.0, 7.0, 8.0]}, [12.0, 11, 10, 20]
    ),
    "sweep": lambda: viz.sweep(
        {"known": {"1": [40, 42, 44], "32": [20, 21, 28]}, "inferred": {1: [39], 8: [30]}},
        "pictures", floor={1: [12, 13], 32: 11}, log_x=True,
    ),
    "gradient": lambda: viz.gradient_by_class(GRADIENT, "abcde", truth=2),
    "gradient of many": lambda: viz.gradient_by_class(np.resize(GRADIENT, 20), truth=[2, 3]),
    "label_and_picture": lambda: viz.label_and_picture(
        {"none": 1.0, "noise": 0.95, "more": 0.2},
        {"none": (70, 73, 75), "noise": (11, 12, 13), "more": (8, 9, 10)}, 11.0,
    ),
    "attackers": lambda: viz.attackers_by_defence(
        {"plain": {"none": [18, 19, 17], "noise": [5, 6, 4]},
         "adapts": {"none": [40, 41, 39], "noise": [20, 21, float("inf")]}}, 12.0,
    ),
    "layers": lambda: viz.layer_protocol(
        [Layer("7 Linear", "input", 0.0), ("0 Conv2d", "picture", 2e-5)]
    ),
    "equations": lambda: viz.equations_and_unknowns(
        [("a", 900, 3072), ("b", 9999, 768), ("c", None, 5)]
    ),
}  # fmt: skip


@functools.cache
def figure_of(name: str) -> viz.Figure:
    return FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_captions_are_computed_from_what_is_drawn() -> None:
    said = {name: figure_of(name).caption for name in FIGURES}
    assert "a: median 41.5 dB, least 40.0 dB; b: median 7.5 dB" in said["recovered_grid"]
    assert "(10.0–13.0 dB)" in said["recovered_grid"]
    assert "kept: loss 1 to 0.5, 20.0 dB at the end; exact: loss" in said["loss_and_psnr"]
    # 22 dB is above the threshold, but only 2 dB above its floor
    assert "a: 50 %, median 26 dB (4 runs); b: 0 %" in said["success"]
    assert "known: 42 at 1, 21 at 32; inferred: 39 at 1, 30 at 8" in said["sweep"]
    assert "Negative: c. True: c, so the sign gives the label away" in said["gradient"]
    assert "1 of 2 labels (1 missed, 3 wrong)" in said["gradient of many"]
    assert "90 % of runs or more: noise." in said["label_and_picture"]
    assert "none: 18, 40; noise: 5, 21." in said["attackers"]
    assert "largest 2e−05, at 0 Conv2d" in said["layers"]
    assert "or not solved: a, c." in said["equations"]


def test_damage_meets_its_level_and_blur_ends_at_the_flat_picture() -> None:
    smooth = torch.linspace(0, 1, 32).expand(3, 32, 32).double().numpy()
    flat = picture_psnr(smooth, np.full_like(smooth, smooth.mean()))
    for damage in (_noisy(smooth), _blurred(smooth)):
        damaged = _damaged_to(20, smooth, damage)
        assert damaged is not None and 0 <= damaged.min() <= damaged.max() <= 1
        assert picture_psnr(smooth, damaged) == pytest.approx(20, abs=0.01)
    assert _damaged_to(flat - 1, smooth, _blurred(smooth)) is None


def test_one_pictures_score_is_that_of_metrics() -> None:
    guess = PHOTOS[1] * 1.3 - 0.1
    assert picture_psnr(PHOTOS[0], guess) == pytest.approx(
        float(psnr(PHOTOS[:1], guess[None])), abs=1e-4
    )


def test_a_picture_emerges_under_a_slider() -> None:
    control = viz.emerging(PHOTOS[0], SNAPSHOTS, 12.0, frames=3)
    page = control.html()
    assert page.count('class="flc-frame"') == 3 and 'type="range"' in page
    assert [c.texts for c in control.choices] == [("1", "16", "64")] and control.start == 2
    scores = [picture_psnr(PHOTOS[0], SNAPSHOTS[n].images[0]) for n in (0, 3)]
    assert f"{scores[0]:.1f} to {scores[1]:.1f} dB (floor 12.0 dB)" in control.caption
    assert all(figure.alt.startswith("After ") for figure in control.figures)
    assert [s.evaluation for s in thin(SNAPSHOTS, 9)] == [1, 4, 16, 64]
    with pytest.raises(ValueError, match="1 snapshots"):
        viz.emerging(PHOTOS[0], SNAPSHOTS[:1], 12.0)


def test_a_table_compares_cost_as_a_ratio() -> None:
    rows = {"slow <as published>": SUMMARY | {"seconds": 10.0}, "fast": SUMMARY | {"seconds": 0.1}}
    page = viz.attack_table(rows)._repr_mimebundle_()["text/html"]
    assert "slow &lt;as published&gt;" in page and page.count('scope="row"') == 2
    assert "1/100<" in page and "50 %" in page and "30.0–45.0" in page
    bare = viz.attack_table({"a": SUMMARY | {"label_match": None}}).html()
    assert "CPU" not in bare and ">label<" not in bare and ">label<" in page
    with pytest.raises(ValueError, match="without rows"):
        viz.attack_table({})


def test_the_table_takes_what_scoring_returns() -> None:
    from flcourse.attacks.scoring import summary

    values = torch.tensor([30.0, 10.0])
    scores = Scores(values, values / 40, values / 1e3, values * 0 + 9, torch.arange(2))
    assert "20.0" in viz.attack_table({"a": summary([scores])}).html()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="4 true pictures, but 'a' has 3 pictures and 4 scores"):
        viz.recovered_grid(PHOTOS, {"a": PHOTOS[:3]}, {"a": [1, 2, 3, 4]}, [1] * 4)
    with pytest.raises(ValueError, match="4 pictures, but 1 floors"):
        viz.recovered_grid(PHOTOS, {"a": PHOTOS}, {"a": [1, 2, 3, 4]}, [1])
    with pytest.raises(ValueError, match="give truth=picture"):
        viz.loss_and_psnr({"live": RECOVERY})
    with pytest.raises(ValueError, match="'a' has 2 runs, but there are 3 floors"):
        viz.success_over_seeds({"a": [1.0, 2.0]}, [1, 2, 3])
    with pytest.raises(ValueError, match="5 gradients, but 2 names"):
        viz.gradient_by_class(GRADIENT, "ab")
    with pytest.raises(ValueError, match=r"needs the defences \['none'\]"):
        viz.attackers_by_defence({"a": {"none": [1]}, "b": {"sign": [1]}}, 1.0)
    with pytest.raises(ValueError, match="labels under"):
        viz.label_and_picture({"a": 1.0}, {"b": (1, 2, 3)}, 1.0)

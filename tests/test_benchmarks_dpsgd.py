"""The benchmark of DP-SGD: every way does the same step, and the stored file has what it says."""

import json

import pytest
import torch

from benchmarks import dpsgd_step


def test_every_way_makes_the_same_step():
    pytest.importorskip("opacus")
    found = dpsgd_step.disagreement("LeNet")
    assert set(found) == {*dpsgd_step.OURS, *dpsgd_step.THEIRS}
    # Opacus' is read from the weights, whose rounding is 64 / 0.01 times as large there.
    assert max(found[name] for name in dpsgd_step.OURS) < 1e-5
    assert max(found[name] for name in dpsgd_step.THEIRS) < 2e-3


def test_noise_is_part_of_what_is_timed():
    inputs, labels = dpsgd_step.batch(8)
    ends = []
    for noise in (1.0, 2.0):
        model = dpsgd_step.MODELS["LeNet"]()
        before = dpsgd_step._row(model)
        dpsgd_step.make_step("ghost", model, noise)(inputs, labels)
        ends.append(dpsgd_step._row(model) - before)
    expected = dpsgd_step.LR * dpsgd_step.CLIP_NORM / dpsgd_step.BATCH
    assert float((ends[1] - ends[0]).std()) == pytest.approx(expected, rel=0.05)


def test_the_stored_file_has_every_way():
    stored = json.loads(dpsgd_step.RESULT.read_text(encoding="utf-8"))
    for rows in stored["models"].values():
        assert tuple(rows) == dpsgd_step.STEPS
        assert all(row["CPU milliseconds"] > 0 and row["peak MiB"] >= 0 for row in rows.values())
    assert torch.tensor(stored["models"]["SimpleCNN"]["ghost"]["disagreement"]) < 1e-4

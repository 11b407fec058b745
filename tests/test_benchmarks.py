"""The benchmarks' own code, without Flower: it must not rot between two runs."""

import json

import pytest
import torch

from benchmarks import fedavg_rounds, record_ci
from benchmarks.federation import Setting, make_clients


def test_federations_have_the_sizes_they_say():
    clients = make_clients(Setting("MLP", 5, 7))
    assert [len(client) for client in clients] == [7] * 5


def test_both_engines_take_turns_and_end_with_the_same_model(monkeypatch):
    monkeypatch.setattr(fedavg_rounds, "first_round", lambda setting: 1.0)
    entry = fedavg_rounds.measure(Setting("LightCNN", 3, 8), 2, 1.0, flower=False)
    assert entry["difference"]["batched"] < 1e-5
    assert [len(entry["seconds"][name]) for name in ("loop", "batched", "flower")] == [2, 2, 0]
    row = fedavg_rounds.row(entry, 1.0)
    assert row["clients × samples"] == "3 × 8" and row["Flower, rounds/s"] == "not run"
    json.dumps(entry)


def test_a_competitor_that_did_other_work_is_found():
    start, end = torch.zeros(3), torch.ones(3)
    with pytest.raises(AssertionError, match="flower"):
        fedavg_rounds.differences({"loop": end, "flower": end * 1.01}, start, 1e-3)


def test_ratios_are_formed_within_a_turn():
    assert fedavg_rounds.ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == "×3 (2–4)"
    assert fedavg_rounds.rate([0.5, 0.25]) == "3 (2–4)"


def test_stages_are_read_from_the_log_of_ci(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record_ci, "RESULT", tmp_path / "stages.json")
    log = tmp_path / "ci.log"
    log.write_text("::: book\nnoise\ntime: set-up 90 s\ntime: test 31 s\ntime: book 70 s\n")
    monkeypatch.setattr("sys.argv", ["record_ci.py", str(log)])
    assert record_ci.main() == 0
    rows = json.loads((tmp_path / "stages.json").read_text())["rows"]
    assert {row["seconds"] for row in rows} == {90, 31, 70}
    log.write_text("time: test 31 s\n")
    assert record_ci.main() == 1
    assert "set-up" in capsys.readouterr().err

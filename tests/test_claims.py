"""Claims hold or raise, and say so in every form; stored results round-trip."""

import json
import math

import numpy as np
import pytest
import torch

from flcourse import claims
from flcourse.claims import CLAIM_MIME, Claim, ClaimError, claim, save_stored, stored


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Claim]:
    seen: list[Claim] = []
    monkeypatch.setattr(claims, "display", seen.append)
    return seen


def test_a_claim_is_shown_as_text_page_and_data(shown: list[Claim]) -> None:
    claim("PSNR {psnr:.1f} dB > {floor} dB", torch.tensor(True), psnr=torch.tensor(25.25), floor=12)
    bundle = shown[0]._repr_mimebundle_()
    assert bundle["text/plain"] == "✓ PSNR 25.2 dB > 12 dB"
    assert "PSNR 25.2 dB &gt; 12 dB" in bundle["text/html"]
    data = json.loads(json.dumps(bundle[CLAIM_MIME]))
    assert data["values"] == {"psnr": 25.25, "floor": 12} and data["profile"] == "quick"


def test_values_are_escaped(shown: list[Claim]) -> None:
    claim("read {word}", True, word="<script>alert(1)</script>")
    assert "<script>" not in shown[0]._repr_mimebundle_()["text/html"]


def test_backticks_become_code_on_a_page_only(shown: list[Claim]) -> None:
    claim("a call of `mean` > a loop", True)
    bundle = shown[0]._repr_mimebundle_()
    assert "a call of <code>mean</code> &gt; a loop" in bundle["text/html"]
    assert bundle["text/plain"] == "✓ a call of `mean` > a loop"


def test_a_false_claim_names_the_values(shown: list[Claim]) -> None:
    with pytest.raises(ClaimError, match=r"'0.30 is above 0.5'.*accuracy=0.3"):
        claim("{accuracy:.2f} is above 0.5", 0.3 > 0.5, accuracy=0.3)
    assert not shown


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ValueError, match=r"names 'psnr'.*given were \['floor'\]"):
        claim("{psnr:.1f} dB, floor {floor}", True, floor=1)


@pytest.mark.parametrize("value", [math.nan, torch.tensor(float("nan")), [1.0, {"a": math.nan}]])
def test_nan_never_holds(value: object) -> None:
    with pytest.raises(ClaimError, match="loss is not a number"):
        claim("done", True, loss=value)


@pytest.mark.parametrize("holds", [1, None, torch.tensor([True, True]), np.array([True]), "yes"])
def test_holds_must_be_one_truth_value(holds: object) -> None:
    with pytest.raises(TypeError, match="one truth value"):
        claim("so it is", holds)


@pytest.mark.parametrize("holds", [True, np.bool_(True), torch.tensor(True), np.array(True)])
def test_truth_values_of_the_libraries_are_taken(holds: object, shown: list[Claim]) -> None:
    claim("so it is", holds)
    assert len(shown) == 1


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model\['net'\] is a Linear"):
        claim("so it is", True, model={"net": torch.nn.Linear(1, 1)})


def test_stored_round_trips(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    results = {"accuracy": torch.tensor([0.1, 0.2]), "rows": np.arange(3), "name": "iid"}
    path = save_stored("cifar10", config={"seeds": [0, 1], "lr": 0.01}, results=results)
    result = stored("cifar10")
    assert dict(result) == {"accuracy": [0.1, 0.2], "rows": [0, 1, 2], "name": "iid"}
    assert result.seeds == [0, 1] and result.config["lr"] == 0.01
    assert result.note.startswith("Stored, made on ") and result.note.endswith(", 2 seeds.")
    assert {"commit", "packages", "device"} <= result.provenance.keys()
    assert path.stat().st_size < 2000
    with pytest.raises(KeyError, match="holds no 'loss'"):
        result["loss"]


def test_stored_thumbnails_come_back_by_name(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    ramp = torch.linspace(0, 1, 32).expand(3, 32, 32)
    given = {"ramp": ramp, "turned": ramp.flip(2), "out of range": 2 * ramp}
    save_stored("pictures", config={"seed": 0}, results={"psnr": 1.0}, pictures=given)
    made = stored("pictures")
    assert list(made.pictures) == list(given) and dict(made) == {"psnr": 1.0}
    for name, picture in given.items():
        assert (made.pictures[name] - picture.clamp(0, 1)).abs().max() < 0.03, name


def test_an_unknown_stored_name_lists_what_exists(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    save_stored("dlg", config={"seed": 3}, results={"psnr": 1.0})
    with pytest.raises(FileNotFoundError, match=r"no stored result 'dgl'.*\['dlg'\]"):
        stored("dgl")


def test_what_should_not_be_stored_is_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="must name the seeds"):
        save_stored("x", config={}, results={})
    with pytest.raises(ValueError, match="NaN"):
        save_stored("x", config={"seed": 0}, results={"loss": math.nan})
    with pytest.raises(ValueError, match="bytes of the wheel"):
        save_stored("x", config={"seed": 0}, results={"model": list(range(100_000))})
    assert not list(tmp_path.iterdir())

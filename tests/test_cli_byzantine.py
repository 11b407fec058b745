"""`python -m flcourse byzantine`: what it prints and writes, what it refuses."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from flcourse.byzantine import ATTACKS, MIXINGS, RULES, Setting, run_cell
from tests.command import run_command

QUICK = ["--rounds", "1", "--epochs", "1", "--clients", "7", "--byzantine", "2"]


@pytest.fixture
def byzantine(tmp_path, capsys, monkeypatch):
    """Run it in-process; returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*given):
        return run_command(capsys, "byzantine", *given)

    return call


def test_a_part_of_the_matrix_is_printed_and_written(byzantine, tmp_path):
    given = [*QUICK, "--partition", "iid", "--seeds", "2"]
    given += ["--attacks", "none", "constant:value=nan", "--rules", "mean", "bulyan", "krum"]
    code, out, err = byzantine(*given, "--json", "a.json", "--heatmap", "a.png")
    assert code == 0
    assert "bulyan is not defined for 2 of 7 rows: n ≥ 4f + 3; left out" in err
    assert "none × krum, seed 1: accuracy" in out and "stopped in round 1: krum needs" in out
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert len(found["cells"]) == 8 and found["seeds"] == [0, 1]
    assert found["undefined"] == [["none", "bulyan"], ["constant:value=nan", "bulyan"]]
    assert found["setting"]["partition"] == "iid" and found["provenance"]["packages"]["torch"]
    setting = Setting(num_clients=7, num_byzantine=2, rounds=1, epochs=1, partition="iid")
    again = run_cell("none", "krum", setting, seed=1)
    cell = next(c for c in found["cells"] if (c["rule"], c["seed"]) == ("krum", 1))
    assert (cell["accuracy"], cell["cosine"]) == (again.accuracy, again.cosine)
    for name in ("a.png", "a-cosine.png"):
        assert Image.open(tmp_path / name).width > 1000
    assert "written: a.json" in out and not list(tmp_path.glob("*.part"))


def test_files_that_are_there_are_kept(byzantine, tmp_path):
    (tmp_path / "a-cosine.png").write_text("mine")
    code, out, err = byzantine(*QUICK, "--heatmap", "a.png")
    assert code == 2 and "a-cosine.png is there already" in err and not out
    given = ["--attacks", "none", "--rules", "mean", "--quiet"]
    assert byzantine(*QUICK, *given, "--heatmap", "a.png", "--overwrite") == (0, "", "")
    assert Image.open(tmp_path / "a-cosine.png").width > 1000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--attacks", "flip"], "no attack 'flip': use one of none, label_flip, sign_flip"),
        (["--rules", "median"], "'median' is unknown: use one of mean"),
        (["--attacks", "alie:z"], "'z' is no option=value"),
        (["--byzantine", "20"], "leave at least one honest client"),
        (["--partition", "iid:0.5"], "iid has no alpha"),
        (["--partition", "evenly"], "use one of iid, dirichlet"),
        (["--partition", "dirichlet:-1"], "is no positive number"),
        (["--model", "light-cnn", "--data-set", "breast_cancer"], "wants pictures"),
        (["--seeds", "0"], "no whole number of at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(byzantine, given, words):
    code, out, err = byzantine(*given)
    assert code == 2 and words in err and err.count("\n") == 1 and not out


def test_a_data_set_that_is_not_there(byzantine):
    code, _, err = byzantine("--data-set", "cifar10", "--root", "nowhere")
    assert code == 1 and "nowhere" in err


def test_the_list_has_every_name(byzantine):
    code, out, _ = byzantine("--list")
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert code == 0 and listed == {"none", "label_flip", *ATTACKS, *RULES, *MIXINGS}
    assert "n ≥ 4f + 3" in out and "mean and spread" in out


def test_help_comes_without_torch():
    code = "import sys, flcourse.cli as c\ntry: c.main(['byzantine', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"  # noqa: E501
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--heatmap" in shown.stdout and "chapter 16" in shown.stdout

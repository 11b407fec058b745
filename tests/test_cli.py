"""The command line: what a run leaves behind, interruption and resuming, refusals."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from flcourse.cli import main
from flcourse.data import load_dataset
from flcourse.models import MLP, LightCNN, Logistic, Normalise, SimpleCNN
from flcourse.privacy import epsilon
from flcourse.runs import make_model
from flcourse.vectors import flatten
from tests.command import run_command

SMALL = ["train", "--data-set", "digits", "--clients", "4", "--fraction", "0.5"]


@pytest.fixture
def train(tmp_path, capsys, monkeypatch):
    """Run `train` in-process; returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLCOURSE_DATASET", raising=False)

    def call(*options, start=SMALL):
        return run_command(capsys, *start, *options)

    return call


def numbers(folder):
    """All of a run that must not depend on when it ran: its records without the seconds."""
    records = json.loads((folder / "run.json").read_text())["rounds"]
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def row(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["row"]


def test_a_run_leaves_its_configuration_its_rounds_and_a_figure(train, tmp_path):
    code, out, err = train("--rounds", "3", "--tag", "a", "--batch-size", "all", "--lr", "0.2")
    assert code == 0, err
    assert out.count("accuracy") == 3 and "runs/a/run.json" in out
    content = json.loads((tmp_path / "runs/a/run.json").read_text())
    config = content["config"]
    assert config["data_set"] == "digits" and config["partition"] == "iid"
    assert config["model"] == "mlp" and config["num_values"] == 64 * 64 + 64 + 650
    assert config["lr"] == 0.2 and config["batch_size"] is None and config["seed"] == 0
    assert config["num_clients"] == 4 and config["alpha"] is None
    assert [record["round"] for record in content["rounds"]] == [1, 2, 3]
    assert content["provenance"]["device"] and content["provenance"]["packages"]["torch"]
    assert (tmp_path / "runs/a/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.part"))


def test_quiet_prints_nothing_and_the_default_tag_says_what_was_run(train, tmp_path):
    code, out, err = train("--rounds", "1", "--quiet", "--out", "here", "--seed", "3")
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "here/digits-iid-mlp-s3/run.json").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_process_goes_on_to_the_same_numbers_and_model(train, tmp_path, how):
    options = ["--rounds", "40", "--epochs", "3", "--server-momentum", "0.5", "--seed", "1"]
    command = [sys.executable, "-m", "flcourse", *SMALL, *options, "--tag", "cut"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "FLCOURSE_PROGRESS": "0"},
        # Where the tests themselves run in the background, an interrupt is ignored: not here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round   3"):
            process.send_signal(how)
            break
    _, err = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "python -m flcourse train --tag cut --resume" in err and "Traceback" not in err
    else:
        assert process.returncode == -signal.SIGKILL
    folder = tmp_path / "runs/cut"
    assert not (folder / "run.json").exists(), "the run was over before it was interrupted"
    assert train("--tag", "cut", "--resume", start=["train"])[0] == 0
    assert train(*options, "--tag", "whole")[0] == 0
    assert numbers(folder) == numbers(tmp_path / "runs/whole")
    assert torch.equal(row(folder), row(tmp_path / "runs/whole"))


def test_a_finished_run_can_be_given_more_rounds(train, tmp_path):
    train("--rounds", "2", "--tag", "more")
    code, _, err = train("--tag", "more", "--resume", "--rounds", "4", start=["train"])
    assert code == 0, err
    train("--rounds", "4", "--tag", "whole")
    assert numbers(tmp_path / "runs/more") == numbers(tmp_path / "runs/whole")
    code, _, err = train("--tag", "more", "--resume", "--rounds", "1", start=["train"])
    assert code == 2 and "4 rounds are done" in err


def test_a_private_run_states_its_price_and_goes_on_to_the_same_model(train, tmp_path):
    dp = ["--clients", "40", "--defense", "dp", "--clip-norm", "0.5", "--noise-multiplier", "1.2"]
    code, out, err = train("--rounds", "4", "--tag", "whole", *dp)
    assert code == 0, err
    assert "ε = " in out and "for each client" in out
    config = json.loads((tmp_path / "runs/whole/run.json").read_text())["config"]
    assert config["epsilon_spent"] == pytest.approx(epsilon(1.2, 4, 1e-5, 0.5), rel=1e-6)
    assert (config["delta"], config["clip_norm"], config["noise_multiplier"]) == (1e-5, 0.5, 1.2)
    cohorts = [len(record["clients"]) for record in numbers(tmp_path / "runs/whole")]
    assert len(set(cohorts)) > 1, "drawn by coins, not a fixed number"
    train("--rounds", "2", "--tag", "more", *dp)
    code, _, err = train("--tag", "more", "--resume", "--rounds", "4", start=["train"])
    assert code == 0, err
    assert numbers(tmp_path / "runs/more") == numbers(tmp_path / "runs/whole")
    assert torch.equal(row(tmp_path / "runs/more"), row(tmp_path / "runs/whole"))


def test_a_budget_is_met_and_cannot_be_overspent(train, tmp_path):
    dp = ["--clients", "40", "--defence", "dp", "--epsilon", "3", "--delta", "1e-4"]
    assert train("--rounds", "2", "--tag", "a", *dp)[0] == 0
    config = json.loads((tmp_path / "runs/a/run.json").read_text())["config"]
    assert config["epsilon"] == 3 and 2.99 < config["epsilon_spent"] <= 3
    code, _, err = train("--tag", "a", "--resume", "--rounds", "3", start=["train"])
    assert code == 2 and "more would overspend it" in err


def test_defences_change_what_clients_send(train, tmp_path):
    models = {}
    for name in ("none", "clip", "prune", "quantise", "sign"):
        clip = ["--clip-norm", "0.1"] if name == "clip" else []
        code, _, err = train("--rounds", "1", "--tag", name, "--defence", name, *clip)
        assert code == 0, err
        models[name] = row(tmp_path / "runs" / name)
    start = flatten(MLP(64, num_classes=10))
    moved = {name: model - start for name, model in models.items()}
    assert float(moved["clip"].norm()) <= 0.1001 < float(moved["none"].norm())
    assert (moved["prune"] == 0).double().mean() > 0.7  # two clients keep a tenth each
    assert 0 < float((moved["quantise"] - moved["none"]).norm()) < 0.1 * moved["none"].norm()
    assert len(moved["sign"].mul(1e4).round().unique()) < 30  # sums of two clients' plus or minus


def test_a_taken_tag_is_refused_and_overwrite_starts_again(train, tmp_path):
    train("--rounds", "1", "--tag", "a")
    code, _, err = train("--rounds", "1", "--tag", "a")
    assert code == 2 and "--overwrite" in err and "finished" in err
    assert train("--rounds", "2", "--tag", "a", "--overwrite")[0] == 0
    assert len(numbers(tmp_path / "runs/a")) == 2
    (tmp_path / "runs/a/run.json").unlink()
    code, _, err = train("--rounds", "1", "--tag", "a")
    assert code == 2 and "--resume" in err and "interrupted" in err


def test_nonsense_with_overwrite_leaves_the_old_run_alone(train, tmp_path):
    train("--rounds", "1", "--tag", "a")
    assert train("--clients", "9999", "--tag", "a", "--overwrite")[0] == 2
    assert (tmp_path / "runs/a/run.json").exists()


def test_resuming_with_another_configuration_names_the_option(train, tmp_path):
    train("--rounds", "2", "--tag", "a")
    for option, value, words in (
        ("--lr", "0.3", "--lr is 0.05 in the stored run, not 0.3"),
        ("--batch-size", "all", "--batch-size is 32 in the stored run, not all"),
        ("--alpha", "0.1", "--alpha is unused in the stored run, not 0.1"),
    ):
        code, _, err = train(option, value, "--tag", "a", "--resume", start=["train"])
        assert code == 2 and words in err
    code, _, err = train("--tag", "b", "--resume")
    assert code == 2 and "nothing to resume" in err
    (tmp_path / "runs/a/checkpoint.pt").write_bytes(b"damage")
    code, _, err = train("--tag", "a", "--resume")
    assert code == 2 and "no checkpoint" in err


@pytest.mark.parametrize(
    "options, words",
    [
        (["--rounds", "0"], "--rounds: '0' is no whole number of at least 1"),
        (["--rounds", "2.5"], "--rounds: '2.5' is no whole number"),
        (["--fraction", "1.5"], "--fraction: '1.5' is no number above 0 and at most 1"),
        (["--fraction", "0"], "--fraction"),
        (["--lr", "nan"], "--lr: 'nan' is no positive number"),
        (["--lr", "inf"], "--lr"),
        (["--momentum", "1"], "--momentum: '1' is no number from 0 to below 1"),
        (["--proximal", "-1"], "--proximal"),
        (["--batch-size", "-1"], "--batch-size"),
        (["--partition", "fair"], "'fair' is unknown: use iid, dirichlet"),
        (["--model", "gpt"], "'gpt' is unknown: use logistic"),
        (["--data-set", "mnits"], "no data set 'mnits': use one of glyphs"),
        (["--alpha", "0.1"], "--alpha does nothing with --partition iid"),
        (["--shards-per-client", "2"], "use --partition shards"),
        (["--clients", "5000"], "num_clients=5000"),
        (["--partition", "writer"], "does not know who made its samples"),
        (["--num-train", "100"], "digits has no option 'num_train'"),
        (["--data-set", "zen"], "no test samples"),
        (["--data-set", "breast_cancer", "--model", "light-cnn"], "wants pictures"),
        (["--defence", "dp"], "give --epsilon or --noise-multiplier"),
        (["--noise-multiplier", "1"], "--noise-multiplier does nothing without --defence dp"),
        (["--defence", "clip", "--delta", "1e-5"], "--delta does nothing without --defence dp"),
        (["--defense", "hope"], "'hope' is unknown: use none, clip, dp"),
        (["--defence", "dp", "--epsilon", "1", "--noise-multiplier", "1"], "leave one of them"),
        (["--tag", "../up"], "--tag '../up'"),
        (["--resume", "--overwrite"], "not allowed with"),
        (["--round", "2"], "unrecognized arguments"),
    ],
)
def test_nonsense_is_refused_in_one_line(train, tmp_path, options, words):
    code, out, err = train(*options)
    assert code == 2 and words in err
    assert out == "" and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_fails_says_so_in_one_line_and_exits_with_1(train, tmp_path):
    missing = train("--data-set", "cifar10", "--root", str(tmp_path / "none"))
    diverged = train("--lr", "1e30", "--tag", "d")
    (tmp_path / "file").write_text("")
    unwritable = train("--out", "file/x")
    for (code, _, err), words in (
        (missing, "python -m flcourse data cifar10"),
        (diverged, "NaN or infinite"),
        (unwritable, "file/x"),
    ):
        assert code == 1 and words in err and err.count("\n") == 1


def test_a_wrong_device_is_refused_before_anything_is_written(train, tmp_path, monkeypatch):
    monkeypatch.setenv("FLCOURSE_DEVICE", "abacus")
    code, _, err = train()
    assert code == 2 and "abacus" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data_set, name, kind",
    [
        ("digits", "logistic", Logistic),
        ("digits", "mlp", MLP),
        ("digits", "light-cnn", LightCNN),
        ("digits", "simple-cnn", SimpleCNN),
        ("photos", "simple-cnn", Normalise),
        ("breast_cancer", "mlp", Normalise),
    ],
)
def test_models_fit_the_data_and_normalise_where_it_has_units(data_set, name, kind):
    data = load_dataset(data_set).train
    model = make_model(name, data, seed=0)
    first = model[0] if kind is Normalise else model
    assert isinstance(first, kind)
    assert model(data.inputs[:5]).shape == (5, len(data.classes))
    if kind is Normalise:
        out = first(data.inputs).transpose(0, 1).flatten(1)  # [channels or features, everything]
        assert torch.allclose(out.mean(1), torch.zeros(len(out)), atol=1e-3)
        assert torch.allclose(out.std(1), torch.ones(len(out)), atol=1e-3)


@pytest.mark.parametrize("command", [[], ["train"], ["data"]])
def test_help_has_a_description_and_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "python -m flcourse" in out and len(out.splitlines()) > 8
    assert "examples:" in out


def test_help_does_without_torch():
    code = "import sys\nfrom flcourse.cli import main\ntry:\n    main(['train', '--help'])\n"
    code += "except SystemExit:\n    sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_data_is_mounted(capsys):
    assert main(["data"]) == 0
    assert "cifar10" in capsys.readouterr().out
    assert main(["data", "nowhere"]) == 2


def test_no_command_and_unknown_commands_are_refused(capsys):
    for argv in ([], ["trian"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_training_under_encryption_is_training_with_clipped_updates(tmp_path):
    pytest.importorskip("tenseal")
    short = ["--rounds", "1", "--clients", "3", "--num-train", "300", "--quiet"]
    rows = {}
    for defence in ("clip", "he"):
        out = ["--out", str(tmp_path), "--tag", defence, "--defence", defence]
        assert main(["train", *short, *out]) == 0
        rows[defence] = torch.load(tmp_path / defence / "checkpoint.pt", weights_only=True)["row"]
    apart = (rows["he"] - rows["clip"]).abs().max()
    assert 0 < float(apart) < 1e-4  # 16 bits a value

"""`python -m flcourse attack`: what it writes, what the attack is given, refusals."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from PIL import Image
from scipy.stats import norm

from flcourse import attack_options as options
from flcourse import defences
from flcourse.attack_options import settings_of
from flcourse.attack_runs import complete
from flcourse.attacks import basis, objective, optimise, presets, report, scene
from flcourse.attacks.observe import aggregate, observe_gradient, observe_round
from flcourse.attacks.recover import METHODS
from flcourse.attacks.types import Leak
from flcourse.cli import main
from flcourse.data import load_dataset
from flcourse.models import LeNet, Normalise
from flcourse.vectors import flatten
from tests.command import run_command

SEARCH = ["--method", "match", "--labels", "known", "--steps", "5"]
DIVIDED = ["--model", "mlp", "--data", "digits"]
PHOTOS = load_dataset("photos").train


@pytest.fixture
def attack(tmp_path, capsys, monkeypatch):
    """Run `attack` in-process; returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*given):
        return run_command(capsys, "attack", *given)

    return call


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def scene_of(**given):
    return scene.make_scene(settings_of(given))


# ------------------------------------------------------------------------------ what is written


def test_the_closed_form_leaves_scores_and_a_protocol(attack, tmp_path):
    code, out, err = attack("--indices", "3", "--out", "a")
    assert code == 0, err
    found = read(tmp_path / "a/metrics.json")
    assert found["method"] == "peel" and found["success"] == [True]
    assert found["psnr"][0] > 50 > found["floor"][0] and found["ssim"][0] > 0.99
    assert found["labels"] == found["true_labels"] == [3] and found["label_match"] == 1
    assert found["run"]["packages"]["torch"] and found["run"]["cpu_seconds"] > 0
    assert "PSNR" in out and "floor 11.8" in out and "written: a" in out
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "config.json", "metrics.json", "reconstruction.png", "loss.csv", "layers.png",
        "leak.pt", "model.pt", "recovery.pt",
    }  # fmt: skip
    config = read(tmp_path / "a/config.json")
    assert config["settings"]["indices"] == [3] and config["known_labels"] == {"client-0": None}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    for name in ("one", "two"):
        assert main(["attack", *SEARCH, "--quiet", "--out", str(folder / name)]) == 0
    return folder


def test_a_search_leaves_its_loss_and_the_picture_emerging(searched):
    one = searched / "one"
    lines = (one / "loss.csv").read_text().splitlines()
    assert lines[0] == "evaluation,loss" and len(lines) == 6
    assert float(lines[-1].split(",")[1]) < float(lines[1].split(",")[1])
    gif = Image.open(one / "emerging.gif")
    assert gif.n_frames == 5 and gif.info["loop"] == 0
    for name in ("reconstruction.png", "loss.png"):
        assert Image.open(one / name).width > 1000


def test_two_runs_leave_the_same_bytes(searched):
    names = sorted(file.name for file in (searched / "one").iterdir())
    assert names == sorted(file.name for file in (searched / "two").iterdir())
    for name in set(names) - {"metrics.json"}:
        one, two = ((searched / run / name).read_bytes() for run in ("one", "two"))
        assert one == two, name
    one, two = (read(searched / run / "metrics.json") for run in ("one", "two"))
    assert one.pop("run").keys() == two.pop("run").keys() and one == two


def test_a_fresh_process_repeats_the_attack_without_the_picture(searched, tmp_path):
    (tmp_path / "kept").mkdir()
    for name in ("config.json", "model.pt", "leak.pt"):
        shutil.copy(searched / "one" / name, tmp_path / "kept")
    command = [sys.executable, "-m", "flcourse", "attack", "--repeat", "kept", "--out", "again"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for name in ("recovery.pt", "loss.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (searched / "one" / name).read_bytes()
    numbers = read(tmp_path / "again/metrics.json")
    assert "psnr" not in numbers and "true_labels" not in numbers
    stored = torch.load(tmp_path / "kept/leak.pt", weights_only=True)
    assert all(value.shape != (1, 3, 32, 32) for value in stored["values"].values())


def test_repeating_may_use_another_attack(searched, attack, tmp_path):
    one = str(searched / "one")
    code, out, err = attack("--repeat", one, "--method", "peel", "--out", "p")
    assert code == 0 and "peel" in out and "no truth, so no score" in out, err
    for given, words in (
        (["--data", "photos"], "--data does nothing with --repeat"),
        (["--method", "peel", "--steps", "3"], "--steps does nothing with --method peel"),
        (["--out", one, "--overwrite"], "what --repeat reads"),
    ):
        code, _, err = attack("--repeat", one, *given)
        assert code == 2 and words in err
    assert attack("--repeat", "none")[0] == 2
    (tmp_path / "p/leak.pt").write_bytes(b"damage")
    code, _, err = attack("--repeat", "p", "--out", "q")
    assert code == 2 and "cannot be repeated" in err


def test_each_client_and_the_aggregate_have_their_folders(attack, tmp_path):
    given = [*DIVIDED, "--clients", "2", "--client", "all", "--mode", "both"]
    code, out, err = attack(*given, *SEARCH, "--out", "b")
    assert code == 0, err
    names = ["client-0", "client-1", "aggregate"]
    assert list(read(tmp_path / "b/metrics.json")) == names
    assert [read(tmp_path / "b" / n / "metrics.json")["batch_size"] for n in names] == [1, 1, 2]
    assert Image.open(tmp_path / "b/aggregate/emerging.gif").n_frames > 2
    assert out.count("PSNR") == 3
    code, _, err = attack("--repeat", "b", "--method", "divide")
    assert code == 2 and "batch_size=2" in err, "the aggregate is no single sample"
    assert not (tmp_path / "runs").exists(), "an attack that refuses leaves nothing behind"


def test_a_taken_folder_is_refused_and_overwrite_replaces_it(attack, tmp_path):
    assert attack(*DIVIDED, "--clients", "2", "--client", "all", "--out", "a")[0] == 0
    (tmp_path / "a/client-1/mine.txt").write_text("keep")
    code, _, err = attack(*DIVIDED, "--out", "a")
    assert code == 2 and "--overwrite" in err
    assert attack(*DIVIDED, "--out", "a", "--overwrite", "--quiet") == (0, "", "")
    assert not (tmp_path / "a/client-0").exists()
    assert [file.name for file in (tmp_path / "a/client-1").iterdir()] == ["mine.txt"]
    assert read(tmp_path / "a/metrics.json")["method"] == "divide"


def test_an_attack_that_stops_says_where_and_one_that_goes_on_has_a_score(attack, tmp_path):
    given = ["--model", "simple-cnn", "--indices", "3"]
    code, out, err = attack(*given, "--method", "peel", "--out", "a")
    assert code == 0 and "no picture, peel stopped at 5 (MaxPool2d)" in out, err
    numbers = read(tmp_path / "a/metrics.json")
    assert numbers["success"] == [False] and not numbers["recovered"]
    assert numbers["psnr"][0] < numbers["floor"][0] and (tmp_path / "a/reconstruction.png").exists()
    went_on = numbers | {"recovered": True, "method": "peel, then features"}
    assert "client-0: peel, then features, PSNR" in report.sentence("client-0", went_on)


def test_your_own_picture(attack, tmp_path):
    pixels = (PHOTOS.inputs[2] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "me.png")
    code, _, err = attack("--picture", "me.png", "--label", "7", "--model", "mlp", "--out", "a")
    assert code == 0, err
    stored = torch.load(tmp_path / "a/recovery.pt", weights_only=True)
    assert (stored["images"] - PHOTOS.inputs[2:3]).abs().max() < 0.01
    assert read(tmp_path / "a/metrics.json")["labels"] == [7]
    code, _, err = attack("--picture", "gone.png")
    assert code == 1 and "no picture gone.png" in err and err.count("\n") == 1


# -------------------------------------------------------------------------- what is observed


def test_signals_are_those_of_observe():
    model = LeNet(10, seed=0)
    plain = scene_of(num_clients=2, client=1)
    assert len(plain.targets) == 1
    same = observe_gradient(model, PHOTOS.inputs[1:2], PHOTOS.labels[1:2])
    assert torch.equal(plain.targets[0].leak.row, same.row)

    many = scene_of(signal="update", epochs=2, batch_size=1, samples=2, lr=0.05, momentum=0.5)
    leak = many.targets[0].leak
    assert (leak.epochs, leak.local_batch_size, leak.momentum, leak.lr) == (2, 1, 0.5, 0.05)
    clients = scene.make_clients(PHOTOS.inputs[:2], PHOTOS.labels[:2], 1)
    _, like = observe_round(model, clients, client=0, round=1, epochs=2, batch_size=1, lr=0.05,
                            momentum=0.5)  # fmt: skip
    assert leak.steps == 4 and torch.equal(leak.row, like.row)


def test_a_later_round_is_that_of_the_federation():
    found = scene_of(signal="update", round=3, num_clients=3, client=2, lr=0.1, epochs=2, seed=4)
    clients = scene.make_clients(PHOTOS.inputs[:3], PHOTOS.labels[:3], 3)
    model, leak = observe_round(LeNet(10, seed=4), clients, client=2, round=3, epochs=2,
                                batch_size=None, lr=0.1, seed=4)  # fmt: skip
    assert torch.equal(flatten(found.model), flatten(model))
    assert torch.equal(found.targets[0].leak.row, leak.row)


def test_aggregates_normalised_or_seen_through_the_model():
    shared = {"num_clients": 3, "signal": "step", "lr": 0.1}
    each = [t.leak for t in scene_of(**shared, client="all").targets]
    plain = scene_of(**shared, mode="aggregated").targets[0].leak
    assert torch.equal(plain.row, aggregate(each).row) and plain.num_clients == 3
    unit = scene_of(**shared, normalize_clients=True).targets[0].leak
    assert unit.normalised and torch.equal(unit.row, aggregate(each, normalise=True).row)
    seen = scene_of(**shared, apply_step=True, server_lr=0.5).targets[0].leak
    assert (seen.num_clients, seen.batch_size, seen.lr) == (3, 3, 0.1)
    assert torch.allclose(seen.row, plain.row, atol=1e-6) and not torch.equal(seen.row, plain.row)


def test_defences_by_name_and_step_by_step():
    raw = scene_of().targets[0].leak
    named = scene_of(defence="keep-10").targets[0].leak
    assert torch.equal(named.row, defences.prune(raw.row, 0.1))
    stepped = scene_of(clip=0.5, noise=1e-3, prune=0.2, quantise=8, sign=True).targets[0].leak
    assert (stepped.clip_norm, stepped.noise_std) == (0.5, 1e-3)
    assert len(stepped.row.abs().unique()) == 2, "one size, and zero where it was pruned"
    two = scene_of(num_clients=2, client="all", noise=1.0, indices=[0, 0]).targets
    assert not torch.equal(two[0].leak.row, two[1].leak.row), "each client draws its own noise"


def defended(**given):
    return scene.make_scene(complete(given)).targets[0].leak


def test_plain_defences_have_their_parameters():
    raw = scene_of().targets[0].leak
    assert torch.equal(defended(defence="none").row, raw.row)
    for given, expected in (
        ({"defence": "clip"}, defences.clip(raw.row, 1.0)),
        ({"defence": "clip", "clip_norm": 0.3}, defences.clip(raw.row, 0.3)),
        ({"defence": "prune"}, defences.prune(raw.row, 0.1)),
        ({"defence": "prune", "prune": 0.02}, defences.prune(raw.row, 0.02)),
        ({"defence": "quantise"}, defences.quantise(raw.row, 8)),
        ({"defence": "quantise", "quantise": 4}, defences.quantise(raw.row, 4)),
        ({"defence": "sign"}, defences.sign(raw.row)),
    ):
        assert torch.equal(defended(**given).row, expected), given


def test_dp_clips_and_adds_the_noise_that_its_budget_needs():
    """The multiplier by scipy's closed form of one Gaussian release (Balle and Wang 2018)."""
    raw = scene_of().targets[0].leak
    leak = defended(defence="dp", epsilon=2.0, delta=1e-6, clip_norm=0.5)
    mu = 0.5 / leak.noise_std
    spent = norm.cdf(mu / 2 - 2 / mu) - math.exp(2) * norm.cdf(-mu / 2 - 2 / mu)
    assert spent == pytest.approx(1e-6, rel=1e-3)
    noise = leak.row - defences.clip(raw.row, 0.5)
    assert leak.clip_norm == 0.5
    assert float(noise.std()) == pytest.approx(leak.noise_std, rel=0.03)
    given = complete({"defence": "dp", "noise_multiplier": 3.0})
    assert (given["clip_norm"], given["noise"], given["delta"]) == (1.0, 3.0, 1e-5)
    assert given["epsilon_spent"] == pytest.approx(1.2719, rel=1e-3)
    assert scene.make_scene(given).targets[0].leak.noise_std == 3.0


def test_a_private_message_is_attacked_and_the_price_is_printed(attack, tmp_path):
    given = ["--defense", "dp", "--epsilon", "4", "--out", "a"]
    code, out, err = attack(*SEARCH, *given)
    assert code == 0, err
    assert "ε = 4 at δ = 1e-05 for each client" in out
    stored = read(tmp_path / "a/config.json")["settings"]
    assert stored["noise_multiplier"] == pytest.approx(1.081, abs=1e-3)
    assert stored["epsilon_spent"] == pytest.approx(4, rel=1e-3)
    assert attack("--repeat", "a", "--out", "b", "--seed", "1")[0] == 0
    code, _, err = attack("--repeat", "a", "--out", "c", "--epsilon", "9")
    assert code == 2 and "--epsilon does nothing with --repeat" in err


def test_models_as_asked_and_trained_on_others_only():
    made = scene_of(model="lenet", activation="tanh", init_scale=0.1, normalize=True, classes=25)
    assert isinstance(made.model[0], Normalise) and isinstance(made.model[1][1], torch.nn.Tanh)
    weights = flatten(made.model)
    assert 0.09 < float(weights.abs().max()) <= 0.1
    assert made.model(PHOTOS.inputs[:1]).shape == (1, 25)
    wide = scene_of(model="mlp", data="digits", hidden=200)
    assert wide.model[1].out_features == 200
    settings = settings_of({"indices": [1, 4]})
    _, labels, others = scene.private_pictures(settings, PHOTOS)
    assert len(others) == len(PHOTOS) - 2 and labels.tolist() == PHOTOS.labels[[1, 4]].tolist()
    assert not any(torch.equal(one, PHOTOS.inputs[4]) for one in others.inputs)
    trained = scene_of(trained=2).model
    assert not torch.equal(flatten(trained), flatten(LeNet(10, seed=0)))


def test_a_stored_model_is_the_model(tmp_path):
    made = scene_of(model="mlp", data="digits", normalize=True, trained=1)
    scene.save_model(tmp_path / "model.pt", made)
    made.targets[0].leak.save(tmp_path / "leak.pt")
    again = scene.load_scene(tmp_path, {"client-0": [3]})
    assert torch.equal(flatten(again.model), flatten(made.model))
    x = load_dataset("digits").train.inputs[:4]
    assert torch.equal(again.model(x), made.model(x)), "its normalisation, too"
    assert again.targets[0].truth is None and again.targets[0].known.tolist() == [3]
    assert isinstance(again.targets[0].leak, Leak)


# ------------------------------------------------------------------------- options and refusals


def test_the_lists_of_names_are_those_of_the_attacks():
    assert options.METHODS == METHODS
    assert tuple(scene.MODELS) == options.MODELS
    assert tuple(scene.ACTIVATIONS) == options.ACTIVATIONS
    assert tuple(map(scene.slug, defences.SIMPLE_DEFENCES)) == options.DEFENCES
    assert tuple(presets.PRESETS) == options.PRESETS
    for own, theirs in (
        (options.DISTANCES, objective.DISTANCES),
        (options.SUPPORTS, objective.SUPPORTS),
        (options.BASES, basis.BASES),
        (options.STARTS, presets.STARTS),
        (options.OPTIMISERS, optimise.OPTIMISERS),
        (options.SCHEDULES, optimise.SCHEDULES),
        (options.KEEPS, presets.KEEPS),
    ):
        assert set(own) == set(theirs)
    known = {field.name for field in fields(presets.Options)} - {"spectrum"}  # a tensor
    assert set(options.MATCH) == known | {"preset", "restarts"}


@pytest.mark.parametrize(
    "given, words",
    [
        (["--samples", "0"], "--samples: '0' is no whole number of at least 1"),
        (["--indices", "3;4"], "'3;4' is no list of numbers such as 3,5,8 or 4-7"),
        (["--indices", "99"], "picture 99 of photos, which has 20"),
        (["--samples", "4", "--clients", "9"], "picture 35 of photos"),
        (["--indices", "1,2,3", "--clients", "2"], "3 pictures for --clients 2"),
        (["--indices", "1", "--samples", "2"], "--samples does nothing with --indices"),
        (["--label", "3,4"], "--label has 2 value(s) for 1 pictures"),
        (["--label", "10"], "raise --classes"),
        (["--client", "1"], "--client 1 of --clients 1: they count from 0"),
        (["--epochs", "5"], "--epochs does nothing with --signal gradient"),
        (["--lr", "0.1"], "--lr does nothing for a gradient in round 1"),
        (["--mode", "aggregated", "--client", "0"], "use --mode both"),
        (["--mode", "per-client", "--apply-step", "--signal", "step"], "use --mode aggregated"),
        (["--apply-step"], "use --signal step or update"),
        (["--server-lr", "2"], "without --apply-step"),
        (["--defence", "sign", "--clip", "1"], "--clip does nothing with --defence"),
        (["--defence", "hope"], "'hope' is unknown: use none, clip, dp"),
        (["--defense", "dp"], "give --epsilon or --noise-multiplier"),
        (["--defense", "dp", "--epsilon", "1", "--noise-multiplier", "1"], "leave one of them out"),
        (["--epsilon", "1"], "--epsilon does nothing without --defence dp"),
        (["--defense", "prune", "--clip-norm", "1"], "without --defence clip, dp or he"),
        (["--defense", "dp", "--epsilon", "1", "--noise", "1"], "--noise does nothing with"),
        (["--defense", "dp", "--epsilon", "1", "--delta", "1"], "'1' is no number between"),
        (["--defense", "quantise", "--prune", "0.5"], "--prune does nothing with --defence"),
        (["--prune", "1.5"], "'1.5' is no number above 0 and at most 1"),
        (["--quantise", "99"], "bits=99"),
        (["--method", "peel", "--restarts", "4"], "use --method match"),
        (["--method", "peel", "--samples", "2"], "one sample; use match_gradients"),
        (["--method", "divide"], "use peel"),
        (["--hidden", "9"], "--hidden does nothing with --model lenet"),
        (["--model", "gpt"], "'gpt' is unknown: use lenet"),
        (["--data", "zen"], "holds no pictures"),
        (["--data", "mnits"], "no data set 'mnits'"),
        (["--data", "digits", "--image-size", "64"], "digits has no option 'image_size'"),
        (["--split", "test"], "no samples in --split test"),
        (["--clamp", "maybe"], "'maybe' is unknown: use yes, no"),
        (["--schedule", "cosine"], "L-BFGS finds its own step"),
        (["--rounds", "2"], "unrecognized arguments"),
    ],
)
def test_nonsense_is_refused_in_one_line(attack, tmp_path, given, words):
    code, out, err = attack(*given)
    assert code == 2 and words in err, err
    assert out == "" and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_cannot_be_read_or_written_exits_with_1(attack, tmp_path):
    code, _, err = attack("--data", "cifar10", "--root", "none")
    assert code == 1 and "python -m flcourse data cifar10" in err and err.count("\n") == 1
    (tmp_path / "file").write_text("")
    code, _, err = attack(*DIVIDED, "--out", "file/x")
    assert code == 1 and "file/x" in err and err.count("\n") == 1


def test_help_is_grouped_has_examples_and_does_without_torch():
    code = "import sys\nfrom flcourse.cli import main\ntry:\n    main(['attack', '--help'])\n"
    code += "except SystemExit:\n    sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for words in ("the private pictures:", "what the attacker sees:", "examples:", "--repeat"):
        assert words in done.stdout


# ---------------------------------------------------------------------------------- encryption


def test_an_encrypted_message_gives_the_attack_nothing(attack, tmp_path):
    pytest.importorskip("tenseal")
    for name, given in (("plain", ()), ("he", ("--defense", "he", "--precision", "20"))):
        code, out, err = attack(*DIVIDED, "--labels", "known", *given, "--out", name)
        assert code == 0, err
    assert "ciphertexts" in out and "20 bits" in out
    plain, sealed = (read(tmp_path / name / "metrics.json") for name in ("plain", "he"))
    assert float(plain["psnr"][0]) > 60 and plain["success"] == [True]
    assert sealed["success"] == [False]
    if sealed["recovered"]:
        assert float(sealed["psnr"][0]) < float(sealed["floor"][0]) + 1
    row = Leak.load(tmp_path / "he" / "leak.pt").row
    truth = Leak.load(tmp_path / "plain" / "leak.pt").row
    correlation = torch.corrcoef(torch.stack([row, truth]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(row.numel())


def test_paillier_with_a_key_of_ones_own(attack, tmp_path):
    pytest.importorskip("phe")
    settings = ["--defence", "he", "--key-bits", "512", "--precision", "8", *DIVIDED]
    code, out, err = attack(*settings, *SEARCH, "--clients", "2", "--mode", "both", "--out", "p")
    assert code == 0, err
    assert "Paillier, key of 512 bits" in out and "too short" in out
    for name in ("client-0", "aggregate"):
        row = Leak.load(tmp_path / "p" / name / "leak.pt").row
        assert row.abs().max() <= 1 and 0.5 < float(row.std()) < 0.65  # uniform: 1/√3


def test_who_holds_the_key_sees_the_sum(attack, tmp_path):
    """An attacker among the clients: the model before and after shows the decrypted mean."""
    pytest.importorskip("tenseal")
    given = ["--clients", "2", "--signal", "update", "--apply-step", *DIVIDED, *SEARCH]
    for name, defence in (("clip", "clip"), ("he", "he")):
        code, _, err = attack("--defence", defence, *given, "--out", name)
        assert code == 0, err
    rows = [Leak.load(tmp_path / name / "leak.pt").row for name in ("clip", "he")]
    assert 0 < float((rows[0] - rows[1]).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--key-bits", "2048"], "without --defence he"),
        (["--precision", "8"], "without --defence he"),
        (["--defence", "he", "--key-bits", "513"], "even"),
        (["--defence", "he", "--precision", "60"], "precision=60"),
    ],
)
def test_encryption_is_refused_where_it_makes_no_sense(attack, given, words):
    pytest.importorskip("tenseal")
    code, _, err = attack(*given)
    assert code == 2 and words in err


def test_encryption_without_its_library_says_how_to_get_it(attack, monkeypatch):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    code, _, err = attack("--defence", "he")
    assert code == 2 and "pip install tenseal" in err

import pytest
import torch

from flcourse import models, runtime


def test_streams_of_different_purposes_are_unrelated_and_repeatable():
    draw = lambda *purpose: torch.rand(4, generator=runtime.generator(0, *purpose)).tolist()  # noqa: E731
    assert draw("shuffle", 1, 2) == draw("shuffle", 1, 2)
    streams = [draw("shuffle", 1, 2), draw("shuffle", 2, 1), draw("noise", 1, 2), draw("shuffle")]
    assert len({tuple(stream) for stream in streams}) == len(streams)


def test_the_seed_of_a_purpose_never_changes():
    # Stored results depend on it: a change here silently invalidates all of them.
    assert runtime.derive_seed(0, "shuffle", 1, 2) == 3500136253338706765


def test_a_number_and_its_text_are_different_purposes():
    assert runtime.derive_seed(0, 1) != runtime.derive_seed(0, "1")


def test_seeded_restores_the_global_state():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with runtime.seeded(0, "model"):
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


def test_forced_device(monkeypatch):
    monkeypatch.setenv("FLCOURSE_DEVICE", "cpu")
    assert runtime.device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch, name):
    monkeypatch.setenv("FLCOURSE_DEVICE", name)
    with pytest.raises(ValueError, match=name):
        runtime.device()


def test_profile(monkeypatch):
    monkeypatch.delenv("FLCOURSE_PROFILE", raising=False)
    assert runtime.by_profile(quick=1, full=2) == 1
    monkeypatch.setenv("FLCOURSE_PROFILE", "full")
    assert runtime.by_profile(quick=1, full=2) == 2
    monkeypatch.setenv("FLCOURSE_PROFILE", "fast")
    with pytest.raises(ValueError, match="quick, full"):
        runtime.profile()


def test_progress_is_silent_when_told_so(monkeypatch, capsys):
    monkeypatch.setenv("FLCOURSE_PROGRESS", "0")
    assert list(runtime.progress(range(3), "rounds")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_provenance_names_versions_device_and_profile():
    facts = runtime.provenance()
    assert torch.__version__.startswith(facts["packages"]["torch"].split("+")[0])
    assert {"device", "profile", "threads", "date", "commit"} <= set(facts)


@pytest.mark.parametrize(
    "model, size",
    [
        (models.MLP(), 50_890),
        (models.LightCNN(), 19_306),
        (models.SimpleCNN(), 1_107_722),
        (models.LeNet(num_classes=10), 15_826),
        (models.Logistic(30, 2), 62),
    ],
)
def test_models_have_their_published_sizes(model, size):
    assert sum(parameter.numel() for parameter in model.parameters()) == size


def test_models_are_the_same_for_a_seed_whatever_ran_before():
    first = models.LeNet(seed=3)
    torch.rand(17)
    again, other = models.LeNet(seed=3), models.LeNet(seed=4)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert float(first[0].weight.detach().abs().max()) <= 0.5


def test_normalise_works_on_pictures_and_tables_and_refuses_a_zero_spread():
    layer = models.Normalise([0.5, 0.0], [0.25, 2.0])
    assert layer(torch.ones(1, 2, 3, 3))[0, :, 0, 0].tolist() == [2.0, 0.5]
    assert layer(torch.tensor([[1.0, 4.0]])).tolist() == [[2.0, 2.0]]
    with pytest.raises(ValueError, match="positive"):
        models.Normalise([0.0], [0.0])


def test_next_token_model_gives_logits():
    assert models.NextToken(88)(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 88)


def test_a_seed_does_not_depend_on_the_kind_of_integer():
    import numpy as np

    assert runtime.derive_seed(0, "a", np.int64(3)) == runtime.derive_seed(0, "a", 3)
    with pytest.raises(TypeError):
        runtime.derive_seed(0.9)


def test_the_commit_is_not_taken_from_a_repository_around_the_environment(monkeypatch, tmp_path):
    import subprocess

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "runtime.py").write_text("")
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "runtime.py"))
    assert runtime.provenance()["commit"] == "unknown"


def test_normalise_refuses_what_it_would_spoil():
    layer = models.Normalise([0.5] * 3, [0.2] * 3)
    with pytest.raises(ValueError, match="uint8"):
        layer(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="3 channels"):
        layer(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="one length"):
        models.Normalise([0.5], [0.2, 0.2])
    assert layer.double().mean.dtype == torch.float64

"""The yardstick is what its papers say, and the leakage benchmark runs from end to end."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import leakage, leakage_parts, leakage_table, peers_leakage
from flcourse.attacks.observe import observe_gradient
from flcourse.data import load_dataset
from flcourse.models import LeNet


def small_message(dtype=torch.float32):
    """One photo's gradient, with the truth for scoring."""
    photos = load_dataset("photos").train
    images, labels = photos.inputs[:1].to(dtype), photos.labels[:1]
    model = LeNet().to(dtype)
    return model, observe_gradient(model, images, labels), images, labels


def start(shape, seed=0):
    """The peers' start, drawn as they draw it."""
    draws = peers_leakage.generator(seed, "peer, start")
    return torch.randn(shape, generator=draws), draws


def fixed_step_lbfgs(evaluate, x, iterations):
    """L-BFGS with step length 1, by its textbook recursion (Nocedal & Wright, algorithm 7.4)."""
    g = evaluate(x)
    step = min(1.0, 1.0 / np.abs(g).sum()) * -g
    pairs = []
    for k in range(iterations):
        x = x + step
        if k == iterations - 1:
            return x
        new = evaluate(x)
        if (new - g) @ step > 1e-10:
            pairs.append((step, new - g))
        g = new
        q, alphas = -g.copy(), []
        for s, y in reversed(pairs):
            alphas.append((s @ q) / (s @ y))
            q -= alphas[-1] * y
        s, y = pairs[-1]
        q *= (s @ y) / (y @ y)
        for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
            q += s * (alpha - (y @ q) / (s @ y))
        step = q


def test_idlg_walks_as_lbfgs_without_a_line_search(monkeypatch):
    model, leak, images, labels = small_message(torch.float64)  # the path amplifies rounding
    leaked = torch.cat([g.flatten() for g in leak.gradients.values()])

    def evaluate(x):
        """Gradient of ‖∇loss(x) - leaked‖², by another way: a Jacobian-vector product."""
        picture = torch.tensor(x).reshape(images.shape).requires_grad_()
        made = torch.autograd.grad(
            F.nll_loss(F.log_softmax(model(picture), dim=1), labels),
            list(model.parameters()), create_graph=True,
        )  # fmt: skip
        made = torch.cat([g.flatten() for g in made])
        (slope,) = torch.autograd.grad(made, picture, grad_outputs=2 * (made - leaked).detach())
        return slope.flatten().numpy()

    first, _ = start(images.shape)
    inner = 6
    monkeypatch.setattr(peers_leakage, "INNER", inner)
    run = peers_leakage.idlg(model, leak, outer=1)
    begin = first.double().flatten().numpy()
    expected = fixed_step_lbfgs(evaluate, begin, inner)
    error = np.linalg.norm(run.images.flatten().numpy() - expected)
    assert error < 1e-8 * np.linalg.norm(expected - begin)
    assert run.labels.tolist() == labels.tolist()
    assert run.evaluations == inner + 2  # before and after the step, too


def test_dlg_searches_the_label_too_and_counts_its_evaluations():
    model, leak, images, _ = small_message()
    run = peers_leakage.dlg(model, leak, outer=1)
    _, draws = start(images.shape)
    logits = torch.randn(1, 100, generator=draws)
    first = F.cross_entropy(model(start(images.shape)[0]), logits.softmax(dim=1))
    made = torch.autograd.grad(first, list(model.parameters()))
    expected = sum(
        float((a - b).square().sum()) for a, b in zip(made, leak.gradients.values(), strict=True)
    )
    assert run.losses[0] == pytest.approx(expected, rel=1e-4)
    assert run.evaluations <= 22


def test_idlg_stops_only_where_its_program_looks(monkeypatch):
    model, leak, _, _ = small_message()
    monkeypatch.setattr(peers_leakage, "STOP_LOSS", np.inf)
    run = peers_leakage.idlg(model, leak, outer=2)
    assert run.stopped is not None and len(run.stopped.losses) == 2  # after the first step
    monkeypatch.setattr(peers_leakage, "STOP_LOSS", 0.0)
    assert peers_leakage.idlg(model, leak, outer=2).stopped is None


@pytest.mark.parametrize("change", ["line_search", "grey_start", "cosine_basis"])
def test_one_change_leaves_the_rest_of_the_loop_as_it_was(change):
    model, leak, _, labels = small_message()
    plain = peers_leakage.gradient_loop(model, leak, labels=labels, outer=1)
    changed = peers_leakage.gradient_loop(model, leak, labels=labels, outer=1, **{change: True})
    same_start = changed.losses[0] == pytest.approx(plain.losses[0], rel=1e-4)
    assert same_start == (change != "grey_start")
    assert not torch.equal(changed.images, plain.images)


def test_the_line_search_and_the_basis_make_the_loop_converge():
    model, leak, images, labels = small_message()
    run = peers_leakage.gradient_loop(
        model, leak, labels=labels, outer=8, line_search=True, grey_start=True, cosine_basis=True
    )
    assert float((run.images - images).square().mean()) < 0.01 and not run.diverged
    assert all(b <= a for a, b in zip(run.losses, run.losses[1:], strict=False))


def test_inverting_gradients_first_step_is_signed_and_boxed():
    model, leak, images, labels = small_message()
    run = peers_leakage.inverting_gradients(model, leak, labels=labels, steps=8)
    first, _ = start(images.shape)
    leaked = torch.cat([g.flatten() for g in leak.gradients.values()])

    def objective(picture):
        made = torch.autograd.grad(
            F.cross_entropy(model(picture), labels), list(model.parameters()), create_graph=True
        )
        flat = torch.cat([g.flatten() for g in made])
        variation = picture.diff(dim=2).abs().mean() + picture.diff(dim=3).abs().mean()
        return 1 - F.cosine_similarity(flat, leaked, dim=0) + 0.01 * variation

    picture = first.clone().requires_grad_()
    before = objective(picture)
    (slope,) = torch.autograd.grad(before, picture)
    second = (first - 0.1 * slope.sign()).clamp(0, 1)  # Adam's first step has length lr everywhere
    assert run.losses[0] == pytest.approx(before.item(), rel=1e-4)
    assert run.losses[1] == pytest.approx(objective(second).item(), rel=1e-3)
    assert abs(run.losses[1] - run.losses[0]) > 0.01
    assert float(run.images.min()) >= 0 and float(run.images.max()) <= 1


def test_a_run_that_left_the_picture_space_has_diverged():
    grey = torch.full((1, 3, 4, 4), 0.5)
    run = peers_leakage.Run(grey, torch.tensor([0]), 1.0, 3, 0.1)
    assert not run.diverged
    for value in (11.0, float("nan"), float("-inf")):
        spoilt = grey.clone()
        spoilt[0, 0, 0, 0] = value
        assert peers_leakage.Run(spoilt, torch.tensor([0]), 1.0, 3, 0.1).diverged


# --- the measurement ----------------------------------------------------------------------------


def test_a_quick_run_fills_every_row():
    available = leakage_parts.parts(leakage_parts.QUICK)
    pictures = leakage_parts.load_pictures("photos")
    wanted = [name for name in available if "SimpleCNN" not in name]
    record = leakage.run(wanted, available, pictures, leakage_parts.QUICK)
    assert [(row["part"], row["attack"]) for row in record["lines"]] == [
        (name, attack) for name in wanted for attack in available[name].attacks
    ]
    assert all(0 < row["floor"] < 30 and row["cpu_seconds"] >= 0 for row in record["lines"])
    table = leakage_table.markdown(record["lines"])
    assert len(table.splitlines()) == 2 + len(record["rows"]) and "peel" in table
    assert any(line.startswith(("reached", "MISSED")) for line in record["verdicts"])
    json.dumps(record)


def records(seconds, psnrs, attack):
    return [
        {
            "part": "p", "attack": attack, "picture": k, "seed": 0, "cpu_seconds": s, "psnr": [x],
            "ssim": [0.5], "floor": [10.0], "success": [x > 20], "label_match": 1.0,
        }
        for k, (s, x) in enumerate(zip(seconds, psnrs, strict=True))
    ]  # fmt: skip


def test_ratios_are_formed_within_a_message_and_medians_over_pictures():
    slow, fast = (
        records([10.0, 40.0, 6.0], [10, 30, 50], "slow"), records([1.0, 10.0, 2.0], [20, 30, 40],
        "fast"),
    )  # fmt: skip
    first, second = leakage_table.rows(slow + fast, {"p": "slow"})
    assert first["faster"] is None and second["faster"] == [4.0, 3.0, 10.0]
    assert (second["psnr"], second["least"], second["quartiles"]) == (30, 20, [25, 35])
    assert second["success"] == pytest.approx(2 / 3)


def test_a_verdict_says_what_was_missed():
    line = {"part": "LeNet, one picture", "attack": "peel", "faster": [150.0, 1, 2], "least": 40.0,
            "psnr": 60.0}  # fmt: skip
    said = leakage_table.verdicts([line], {"restarts": 8, "peak_mib": 3000.0})
    assert [sentence.split(":")[0] for sentence in said] == ["reached", "MISSED", "MISSED"]


def test_a_batch_is_made_of_different_pictures_and_an_update_of_as_many_steps():
    available = leakage_parts.parts(leakage_parts.FULL)
    pictures = leakage_parts.load_pictures("photos")
    message = available["LeNet, batch of 4"].message(pictures, 1, 0)
    assert torch.equal(message.images, pictures.inputs[4:8])
    assert message.leak.batch_size == 4
    update = available["LeNet, update of 5 local steps"].message(pictures, 0, 0).leak
    assert (update.kind, update.steps, update.lr) == ("update", 5, leakage_parts.UPDATE_LR)


def test_finished_messages_are_not_measured_again(tmp_path):
    budget = leakage_parts.QUICK
    part = leakage_parts.parts(budget)["LeNet, batch of 2"]
    pictures, work = leakage_parts.load_pictures("photos"), tmp_path / "part.jsonl"
    first = leakage.measure(part, pictures, budget, work)
    assert [record["picture"] for record in first] == [0] and len(first[0]["psnr"]) == 2
    assert leakage.measure(part, pictures, budget, work) == first  # seconds, too


def test_unknown_pictures_are_refused():
    with pytest.raises(ValueError, match="photos64"):
        leakage_parts.load_pictures("faces")

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flcourse.attacks.basis import fourier_noise, make_basis
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.objective import Matching, Objective, Target
from flcourse.attacks.observe import aggregate, observe_gradient, observe_step, observe_update
from flcourse.attacks.simulate import Client, graph_gradient
from flcourse.attacks.types import Leak
from flcourse.data import load_dataset
from flcourse.local import batches
from flcourse.metrics import match_batch, psnr
from flcourse.models import LeNet, Normalise, SimpleCNN
from flcourse.runtime import generator


@pytest.fixture(scope="module")
def photos():
    return load_dataset("photos").train


def small(classes=4, channels=2, seed=0):
    """A small smooth network on 8×8 pictures, in float64: quick, and exact to many digits."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(channels, 5, 3, stride=2, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(96, classes),
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model.double()


def pictures(count, channels=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, 8, 8, generator=rng, dtype=torch.float64)


def objective_of(model, leak, targets, basis="pixels", **matching):
    client = Client(model, leak, unroll=True)
    target = Target(leak, Matching(**matching), False, client.start[0])
    prior = matching.get("distance") == "map"
    return Objective(client, target, make_basis(basis, leak.image_shape, prior=prior), targets)


def point_of(objective, images):
    return objective.basis.encode(images).flatten().numpy()


def plain_gradients(model, images, labels):
    loss = F.cross_entropy(model(images), labels)
    return torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


# --- the objective against plain torch ----------------------------------------------------------


@pytest.mark.parametrize("distance", ["squared", "relative", "cosine"])
def test_distances_and_their_slopes_are_those_of_plain_torch(distance):
    model, labels = small(), torch.tensor([2, 0])
    leak = observe_gradient(model, pictures(2), labels)
    objective = objective_of(model, leak, F.one_hot(labels, 4)[None].double(), distance=distance)
    guess = pictures(2, seed=1).requires_grad_()
    ours = plain_gradients(model, guess, labels)
    a, b = (torch.cat([g.flatten() for g in group]) for group in (ours, leak.values.values()))
    oracle = {
        "squared": (a - b).square().sum(),
        "relative": (a - b).square().sum() / b.square().sum(),
        "cosine": 1 - F.cosine_similarity(a, b, dim=0),
    }[distance]
    (slope,) = torch.autograd.grad(oracle, guess)
    loss, gradient = objective([0], point_of(objective, guess.detach())[None])
    assert float(loss[0]) == pytest.approx(float(oracle.detach()), rel=1e-9)
    assert gradient[0] == pytest.approx(slope.flatten().numpy(), rel=1e-7, abs=1e-13)


def test_layers_and_their_weights():
    model, labels = small(), torch.tensor([1])
    leak = observe_gradient(model, pictures(1), labels)
    targets = F.one_hot(labels, 4)[None].double()
    guess = pictures(1, seed=1)
    errors = {
        name: float((mine - theirs).detach().square().sum())
        for (name, theirs), mine in zip(
            leak.values.items(), plain_gradients(model, guess, labels), strict=True
        )
    }

    def loss(**matching):
        objective = objective_of(model, leak, targets, distance="squared", **matching)
        return float(objective([0], point_of(objective, guess)[None])[0][0])

    first = errors["0.weight"] + errors["0.bias"]
    assert loss(layers=["0"]) == pytest.approx(first)
    assert loss(layers=["0.bias", "5"]) == pytest.approx(
        errors["0.bias"] + errors["5.weight"] + errors["5.bias"]
    )
    assert loss(layer_weights={"0": 3.0}) == pytest.approx(sum(errors.values()) + 2 * first)
    assert loss(layer_weights=[0, 0, 0, 0, 0, 2]) == pytest.approx(2 * errors["5.bias"])
    equal = sum(e / float(leak.values[n].square().sum()) for n, e in errors.items())
    assert loss(layer_weights="equal") == pytest.approx(equal)


def test_total_variation_is_the_published_one():
    model, labels = small(), torch.tensor([1])
    leak = observe_gradient(model, pictures(1), labels)
    targets, x = F.one_hot(labels, 4)[None].double(), pictures(1, seed=3)
    with_tv, without = (objective_of(model, leak, targets, tv=tv) for tv in (0.5, 0.0))
    point = point_of(with_tv, x)[None]
    rows = torch.mean(torch.abs(x[:, :, :, :-1] - x[:, :, :, 1:]))
    columns = torch.mean(torch.abs(x[:, :, :-1, :] - x[:, :, 1:, :]))
    extra = with_tv([0], point)[0] - without([0], point)[0]
    assert float(extra[0]) == pytest.approx(float(0.5 * (rows + columns)))


def test_map_is_the_log_density_of_noise_and_prior():
    """Against torch.distributions: the objective differs from -log p by a constant."""
    model, labels = small(), torch.tensor([3])
    clean = observe_gradient(model, pictures(1), labels)
    sigma, limit = 0.01, 0.3 * float(clean.row.norm())
    row = clean.row * 0.3 + sigma * torch.randn(len(clean.row), dtype=torch.float64)
    leak = clean.with_row(row, clip_norm=limit, noise_std=sigma)
    objective = objective_of(
        model, leak, F.one_hot(labels, 4)[None].double(), "dct", distance="map"
    )

    def oracle(images):
        g = torch.cat([g.detach().flatten() for g in plain_gradients(model, images, labels)])
        seen = torch.distributions.Normal(g * min(1, limit / float(g.norm())), sigma)
        unknown = make_basis("dct", (2, 8, 8), prior=True).encode(images)
        prior = torch.distributions.Normal(0, 1)
        return float(-seen.log_prob(row).sum() - prior.log_prob(unknown).sum())

    one, two = pictures(1), pictures(1, seed=2)
    losses = [objective([0], point_of(objective, x)[None])[0][0] for x in (one, two)]
    assert losses[1] - losses[0] == pytest.approx(oracle(two) - oracle(one), rel=1e-6)


def test_restarts_in_one_batch_are_restarts_one_by_one():
    model, labels = small(), torch.tensor([[2, 0], [1, 1], [3, 2]])
    leak = observe_gradient(model, pictures(2), labels[0])
    objective = objective_of(model, leak, F.one_hot(labels, 4).double(), "dct", tv=0.1)
    points = np.random.default_rng(0).normal(size=(3, 2 * 2 * 64))
    losses, slopes = objective([0, 1, 2], points)
    assert objective._vmap
    for k in range(3):
        loss, slope = objective([k], points[k : k + 1])
        assert losses[k] == pytest.approx(loss[0], rel=1e-10)
        assert slopes[k] == pytest.approx(slope[0], rel=1e-8, abs=1e-12)


# --- what a client computes ---------------------------------------------------------------------


def predicted(model, leak, images, labels, unroll=True):
    client = Client(model, leak, unroll=unroll)
    targets = F.one_hot(labels, 4).double()
    values = client.predicted(images, targets, graph_gradient)
    return dict(zip(client.names, values, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("epochs", "batch_size", "count"), [(5, None, 2), (1, 2, 5), (3, 1, 1)])
def test_unrolled_steps_are_local_training(momentum, epochs, batch_size, count):
    model, images = small(), pictures(count)
    labels = torch.arange(count) % 4
    leak = observe_update(
        model, images, labels, lr=0.1, epochs=epochs, batch_size=batch_size, momentum=momentum
    )
    # The client's own order of the first epoch: the attacker does not have it, and needs it not.
    order = torch.cat(list(batches(count, 1, None, generator(0, "shuffle", 0, 0))))
    ours = predicted(model, leak, images[order], labels[order])
    for name, value in leak.gradients.items():
        assert torch.allclose(ours[name], value, rtol=1e-8, atol=1e-10), name


def test_slopes_through_unrolled_steps_are_right():
    model, labels = small(), torch.tensor([2])
    leak = observe_update(
        model, pictures(1), labels, lr=0.5, epochs=4, batch_size=None, momentum=0.5
    )
    objective = objective_of(model, leak, F.one_hot(labels, 4)[None].double())
    point = point_of(objective, pictures(1, seed=1))
    _, slope = objective([0], point[None])
    for k in (0, 17, 100):
        step = np.zeros_like(point)
        step[k] = 1e-5
        up, down = (objective([0], (point + s * step)[None])[0][0] for s in (1, -1))
        assert slope[0, k] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kind", ["gradient", "update"])
def test_the_aggregate_of_clients_is_that_of_their_messages(kind, normalise):
    model, images, labels = small(), pictures(4), torch.tensor([0, 1, 2, 3])
    parts = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    if kind == "gradient":
        leaks = [observe_gradient(model, x, y) for x, y in parts]
    else:
        leaks = [observe_update(model, x, y, lr=0.2, epochs=3, batch_size=None) for x, y in parts]
    leak = aggregate(leaks, normalise=normalise)
    ours = predicted(model, leak, images, labels)
    for name, value in leak.gradients.items():
        assert torch.allclose(ours[name], value, rtol=1e-6, atol=1e-9), name


def test_clipping_of_each_client_is_part_of_the_message():
    model, images, labels = small(), pictures(4), torch.tensor([0, 1, 2, 3])
    leaks = []
    for k in (0, 2):
        clean = observe_gradient(model, images[k : k + 2], labels[k : k + 2])
        limit = 0.2
        row = clean.row * min(1.0, limit / float(clean.row.norm()))
        leaks.append(clean.with_row(row, clip_norm=limit))
    leak = aggregate(leaks)
    ours = predicted(model, leak, images, labels)
    assert torch.allclose(torch.cat([v.flatten() for v in ours.values()]), leak.row, atol=1e-10)


def test_batch_norm_and_dropout_are_guessed_in_the_clients_mode_and_the_model_stays():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sigmoid(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 4),
    ).double()
    model.eval()
    images, labels = pictures(3), torch.tensor([0, 1, 2])
    leak = observe_gradient(model, images, labels)
    before = copy.deepcopy(model.state_dict())
    ours = predicted(model, leak, images, labels)
    for name, value in leak.gradients.items():
        assert torch.allclose(ours[name], value, atol=1e-10), name
    recovery = match_gradients(model, leak, labels=labels, restarts=2, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and recovery.evaluations == 6


# --- the published attacks ----------------------------------------------------------------------


def dlg(model, leak, guess, logits, outer):
    """Deep Leakage from Gradients, written down from the paper's algorithm 1."""
    guess = guess.clone().requires_grad_()
    logits = logits.clone().requires_grad_()
    rule = torch.optim.LBFGS([guess, logits])
    seen = []

    def closure():
        rule.zero_grad()
        outputs = model(guess)
        loss = -(logits.softmax(-1) * outputs.log_softmax(-1)).sum(-1).mean()
        mine = torch.autograd.grad(loss, model.parameters(), create_graph=True)
        gap = sum(
            (a - b).square().sum() for a, b in zip(mine, leak.gradients.values(), strict=True)
        )
        gap.backward()
        seen.append(float(gap.detach()))
        return gap

    for _ in range(outer):
        rule.step(closure)
    return guess.detach(), seen


def test_zhu2019_is_deep_leakage_from_gradients():
    model = small()
    leak = observe_gradient(model, pictures(1), torch.tensor([2]))
    ours = match_gradients(model, leak, preset="zhu2019", steps=40, seed=3)
    rng = generator(3, "start", 0)
    start = torch.randn(1, 2, 8, 8, generator=rng).double()
    logits = torch.randn(4, generator=generator(3, "start labels", 0), dtype=torch.float64)[None]
    _, seen = dlg(model, leak, start, logits, outer=2)
    assert ours.history[:25] == pytest.approx(seen[:25], rel=1e-5)


def test_zhao2020_reads_the_label_and_runs_the_same_loop():
    model = small()
    leak = observe_gradient(model, pictures(1), torch.tensor([2]))
    ours = match_gradients(model, leak, preset="zhao2020", steps=20, seed=3)
    assert ours.labels.tolist() == [2]
    guess = torch.randn(1, 2, 8, 8, generator=generator(3, "start", 0)).double().requires_grad_()
    rule, seen = torch.optim.LBFGS([guess]), []

    def closure():
        rule.zero_grad()
        mine = plain_gradients(model, guess, torch.tensor([2]))
        gap = sum(
            (a - b).square().sum() for a, b in zip(mine, leak.gradients.values(), strict=True)
        )
        gap.backward()
        seen.append(float(gap.detach()))
        return gap

    rule.step(closure)
    assert ours.history == pytest.approx(seen, rel=1e-5)


def test_geiping2020_is_inverting_gradients():
    model, labels, steps = small(), torch.tensor([1]), 30
    leak = observe_gradient(model, pictures(1), labels)
    ours = match_gradients(
        model, leak, preset="geiping2020", labels=labels, steps=steps, tv=1e-3, seed=5
    )
    x = torch.randn(1, 2, 8, 8, generator=generator(5, "start", 0)).double().requires_grad_()
    rule = torch.optim.Adam([x], lr=0.1)
    decay = torch.optim.lr_scheduler.MultiStepLR(
        rule, [int(steps // 2.667), int(steps // 1.6), int(steps // 1.142)], gamma=0.1
    )
    seen = []
    for _ in range(steps):
        rule.zero_grad()
        mine = plain_gradients(model, x, labels)
        pairs = list(zip(mine, leak.gradients.values(), strict=True))
        dot, one, two = (
            sum((a * b).sum() for a, b in pairs),
            sum(a.square().sum() for a, _ in pairs),
            sum(b.square().sum() for _, b in pairs),
        )
        loss = 1 - dot / one.sqrt() / two.sqrt()
        rows = torch.mean(torch.abs(x[:, :, :, :-1] - x[:, :, :, 1:]))
        loss = loss + 1e-3 * (rows + torch.mean(torch.abs(x[:, :, :-1, :] - x[:, :, 1:, :])))
        loss.backward()
        seen.append(float(loss.detach()))
        x.grad.sign_()
        rule.step()
        decay.step()
        x.data = x.data.clamp(0, 1)
    assert ours.history == pytest.approx(seen, rel=1e-5)


# --- the default attack -------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "seed"), [(0, 0), (6, 1), (13, 2)])
def test_one_picture_comes_back_without_any_option(photos, index, seed):
    model = LeNet(100, seed=seed)
    x, y = photos.inputs[index : index + 1], photos.labels[index : index + 1]
    recovery = match_gradients(model, observe_gradient(model, x, y))
    assert recovery.labels.tolist() == y.tolist()
    assert float(psnr(x, recovery.images)) > 30
    assert recovery.evaluations == len(recovery.history) <= 250
    assert recovery.loss == pytest.approx(min(recovery.history))


def test_same_seed_same_pictures_and_the_leak_alone_suffices(tmp_path, photos):
    model = LeNet(100, seed=1)
    leak = observe_gradient(model, photos.inputs[2:3], photos.labels[2:3])
    leak.save(tmp_path / "leak.pt")
    one, two = (
        match_gradients(model, each, start="normal", restarts=2, seed=4, steps=8)
        for each in (leak, Leak.load(tmp_path / "leak.pt"))
    )
    assert torch.equal(one.images, two.images) and one.history == two.history
    other = match_gradients(model, leak, start="normal", restarts=2, seed=5, steps=8)
    assert not torch.equal(one.images, other.images)


def test_the_best_restart_is_chosen_by_the_attackers_own_objective():
    model, labels = small(), torch.tensor([2])
    leak = observe_gradient(model, pictures(1), labels)
    recovery = match_gradients(
        model,
        leak,
        labels=labels,
        start="normal",
        restarts=4,
        steps=30,
        snapshots=5,
        layer_weights="none",
    )
    assert len(recovery.restart_losses) == 4 and recovery.evaluations == 120
    assert recovery.loss == min(recovery.restart_losses) == min(recovery.history)
    assert recovery.snapshots[-1].evaluation == 30
    assert torch.equal(recovery.snapshots[-1].images, recovery.images)
    ours = predicted(model, leak, recovery.images, labels)
    gap = sum(float((ours[n] - v).detach().square().sum()) for n, v in leak.values.items())
    assert gap / float(leak.row.square().sum()) == pytest.approx(recovery.loss, rel=1e-6)


@pytest.mark.parametrize(
    "start", ["grey", "normal", "uniform", "fourier", torch.full((1, 2, 8, 8), 0.3)]
)
def test_every_start_recovers_a_small_picture(start):
    model, labels = small(), torch.tensor([2])
    leak = observe_gradient(model, pictures(1), labels)
    recovery = match_gradients(model, leak, labels=labels, start=start, steps=300, seed=1)
    assert float(psnr(pictures(1), recovery.images)) > 25


def test_starts_are_what_they_say():
    model, labels = small(), torch.tensor([2])
    leak = observe_gradient(model, pictures(1), labels)

    def first(start, **options):
        recovery = match_gradients(model, leak, labels=labels, start=start, steps=1, **options)
        return recovery.images

    assert torch.allclose(first("grey"), torch.full((1, 2, 8, 8), 0.5).double())
    assert float(first("uniform").min()) >= 0 and float(first("uniform").max()) <= 1
    small_start, large = (first("normal", start_scale=s) for s in (0.1, 10))
    assert torch.allclose(100 * small_start, large)
    assert float((first("fourier") - 0.5).std()) > 0.1
    with pytest.raises(ValueError, match="does not fit"):
        first(torch.zeros(2, 8, 8))


@pytest.mark.parametrize("optimiser", ["adam", "signed-adam", "adamw", "sgd"])
def test_every_first_order_method_lowers_the_objective(optimiser):
    model, labels = small(), torch.tensor([2])
    leak = observe_gradient(model, pictures(1), labels)
    recovery = match_gradients(
        model,
        leak,
        labels=labels,
        optimiser=optimiser,
        lr=5 if optimiser == "sgd" else 0.05,
        momentum=0.9 if optimiser == "sgd" else 0,
        steps=60,
        schedule="cosine",
        clamp=True,
    )
    assert recovery.loss < 0.5 * recovery.history[0]
    assert float(recovery.images.min()) >= 0 and float(recovery.images.max()) <= 1


def test_labels_optimised_with_the_picture():
    model, labels = small(), torch.tensor([2])
    leak = observe_gradient(model, pictures(1), labels)
    recovery = match_gradients(model, leak, labels="optimise", restarts=2, steps=250)
    assert recovery.labels.tolist() == [2]
    assert float(psnr(pictures(1), recovery.images)) > 30


def test_a_pruned_message_is_matched_where_it_has_values():
    model, labels = small(), torch.tensor([2])
    leak = observe_gradient(model, pictures(1), labels)
    row = leak.row
    kept = row.abs() >= row.abs().quantile(0.8)
    pruned = leak.with_row(row * kept)
    smart, blind = (
        match_gradients(model, pruned, labels=labels, support=support, steps=300)
        for support in ("auto", "all")
    )
    assert "kept values" in smart.method and "kept values" not in blind.method
    assert "kept values" not in match_gradients(model, leak, labels=labels, steps=1).method
    better = psnr(pictures(1), smart.images) - psnr(pictures(1), blind.images)
    assert float(better) > 3


def test_a_relu_network_has_zeros_of_its_own_and_is_not_taken_for_pruned(photos):
    model = SimpleCNN(10)
    leak = observe_gradient(model, photos.inputs[:1], photos.labels[:1])
    assert "kept values" not in match_gradients(model, leak, start="grey", steps=1).method


def test_behind_max_pools_the_exact_features_lead_to_the_picture(photos):
    model = SimpleCNN(10)
    x, y = photos.inputs[:1], photos.labels[:1]
    leak = observe_gradient(model, x, y)
    recovery = match_gradients(model, leak)
    assert "features" in recovery.method and recovery.labels.tolist() == y.tolist()
    assert float(psnr(x, recovery.images)) > 26
    with pytest.raises(ValueError):
        both = photos.inputs[:2]
        match_gradients(model, observe_gradient(model, both, photos.labels[:2]), start="exact")


def test_known_noise_changes_the_objective_and_helps(photos):
    model = LeNet(10, seed=0)
    x, y = photos.inputs[6:7], photos.labels[6:7]
    leak = observe_gradient(model, x, y)
    row = leak.row / leak.row.norm()
    row = row + 1e-3 * torch.randn(len(row), generator=torch.Generator().manual_seed(0))
    noisy = leak.with_row(row, clip_norm=1.0, noise_std=1e-3)
    aware = match_gradients(model, noisy, labels=y, steps=150)
    blind = match_gradients(model, noisy, labels=y, steps=150, distance="cosine")
    assert "map" in aware.method
    assert float(psnr(x, aware.images) - psnr(x, blind.images)) > 3
    assert float(psnr(x, aware.images)) > 20


def test_an_uncertain_label_is_chosen_by_the_objective():
    model, labels = small(), torch.tensor([2])
    leak = observe_gradient(model, pictures(1), labels)
    row = leak.row / leak.row.norm()
    row = row + 0.05 * torch.randn(len(row), generator=torch.Generator().manual_seed(1)).double()
    noisy = leak.with_row(row, clip_norm=1.0, noise_std=0.05)
    recovery = match_gradients(model, noisy, steps=100)
    assert recovery.labels.tolist() == [2]
    assert len(recovery.restart_losses) == 4  # one for each label


def test_an_update_is_unrolled_and_that_is_what_recovers_it():
    model, labels = small(), torch.tensor([2])
    leak = observe_update(model, pictures(1), labels, lr=0.5, epochs=6, batch_size=None)
    unrolled, blunt = (
        match_gradients(model, leak, labels=labels, unroll=unroll, steps=100)
        for unroll in (None, False)
    )
    assert "6 steps unrolled" in unrolled.method
    assert float(psnr(pictures(1), unrolled.images)) > 25
    assert float(psnr(pictures(1), unrolled.images) - psnr(pictures(1), blunt.images)) > 5


def test_one_step_is_a_gradient():
    model, labels = small(), torch.tensor([2])
    step = observe_step(model, pictures(1), labels, lr=0.1)
    plain = observe_gradient(model, pictures(1), labels)
    one, two = (match_gradients(model, leak, labels=labels, steps=50) for leak in (step, plain))
    assert torch.allclose(one.images, two.images, atol=1e-4)


# --- breadth ------------------------------------------------------------------------------------


def leaky():
    return nn.Sequential(
        Normalise([0.4], [0.3]),
        nn.Conv2d(1, 6, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(96, 3, bias=False),
    )


class Residual(nn.Module):
    """Not a chain of layers at all."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.two(x + torch.tanh(self.one(x)))


@pytest.mark.parametrize("build", [leaky, Residual])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_models_and_grey_pictures(build, dtype):
    torch.manual_seed(0)
    model = build().to(dtype)
    x, y = pictures(1, channels=1).to(dtype), torch.tensor([1])
    recovery = match_gradients(model, observe_gradient(model, x, y), labels=y, steps=300)
    assert recovery.images.dtype == dtype
    assert float(psnr(x, recovery.images)) > 30


def test_one_logit_and_a_table():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1)).double()
    x, y = torch.rand(1, 6, dtype=torch.float64) * 3, torch.tensor([1])
    recovery = match_gradients(model, observe_gradient(model, x, y), labels=y)
    assert torch.allclose(recovery.images, x, atol=1e-3)
    assert recovery.labels.tolist() == [1]


def test_a_batch_with_equal_labels_comes_apart():
    model, labels = small(), torch.tensor([2, 2])
    rng = torch.Generator().manual_seed(3)
    images = torch.stack([fourier_noise((2, 8, 8), rng) for _ in range(2)]).clamp(0, 1)
    leak = observe_gradient(model, images, labels)
    recovery = match_gradients(model, leak, labels=labels, steps=400)
    assert float(psnr(images, recovery.images[match_batch(images, recovery.images)]).min()) > 20


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "zhu2020"}, "preset='zhu2020' is unknown.*did you mean 'zhao2020'"),
        ({"distance": "cosin"}, "distance='cosin' is unknown.*did you mean 'cosine'"),
        ({"optimiser": "lion"}, "optimiser='lion' is unknown: use one of lbfgs, adam"),
        ({"start": "gray"}, "start='gray' is unknown.*did you mean 'grey'"),
        ({"restarts": 0}, "restarts=0 must be at least 1"),
        ({"steps": 0}, "steps=0 must be"),
        ({"tv": -1.0}, "tv=-1.0 must be 0 or more"),
        ({"lr": 0.0}, "lr=0.0 must be positive|lr=0.0 must be a positive"),
        ({"schedule": "cosine"}, "schedule='cosine' is for first-order methods"),
        ({"distance": "map"}, "noise_std is None"),
        ({"layers": ["9"]}, "layers: '9' is in no parameter name"),
        ({"layer_weights": [1, 2]}, "2 numbers for 6 parameters"),
        ({"layer_weights": "early"}, "layer_weights='early' is unknown"),
        ({"labels": torch.tensor([1, 2])}, "for a batch of 1"),
        ({"labels": torch.tensor([9])}, r"labels \[9\] must lie in 0 to 3"),
        ({"labels": "soft"}, "labels='soft' is unknown: use 'optimise'"),
    ],
)
def test_errors_name_the_value_and_the_remedy(options, words):
    model = small()
    leak = observe_gradient(model, pictures(1), torch.tensor([2]))
    with pytest.raises(ValueError, match=words):
        match_gradients(model, leak, **options)


def test_an_unknown_option_names_the_nearest():
    model = small()
    leak = observe_gradient(model, pictures(1), torch.tensor([2]))
    with pytest.raises(TypeError, match=r"no option 'optimizer' .did you mean 'optimiser'"):
        match_gradients(model, leak, optimizer="adam")


def test_another_models_leak_is_refused():
    leak = observe_gradient(small(), pictures(1), torch.tensor([2]))
    with pytest.raises(ValueError, match="give the model that was broadcast"):
        match_gradients(small(classes=5), leak)

import numpy as np
import pytest
import scipy.optimize
import torch

from flcourse.attacks.optimise import Batch, first_order, lbfgs, spaced

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(12, 8))
GOAL = RNG.normal(size=12)


def bent(x):
    """A smooth objective that is not quadratic; torch float64 in, scalar out."""
    y = torch.as_tensor(MATRIX) @ x
    return ((y - torch.as_tensor(GOAL)) ** 2).sum() + (1 + y**4).log().sum()


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def batched(function):
    """The objective as ``Batch`` wants it."""

    def evaluate(which, points):
        leaf = torch.tensor(points, requires_grad=True)
        losses = torch.stack([function(row) for row in leaf])
        (slopes,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach().numpy(), slopes.numpy()

    return evaluate


def torch_iterates(function, start, count, **options):
    """The points of ``torch.optim.LBFGS`` after each iteration, stepping one at a time."""
    x = torch.tensor(start, requires_grad=True)
    rule = torch.optim.LBFGS([x], max_iter=1, tolerance_grad=0, tolerance_change=0, **options)

    def closure():
        rule.zero_grad()
        loss = function(x)
        loss.backward()
        return loss

    seen = []
    for _ in range(count):
        rule.step(closure)
        seen.append(x.detach().numpy().copy())
    return seen


def our_iterates(function, start, count, **options):
    """The accepted points of our search: where a new direction begins."""
    search = lbfgs(start, flat=0.0, **options)
    asked, evaluate = [next(search)], batched(function)
    for _ in range(count):
        losses, slopes = evaluate([0], asked[-1][None])
        try:
            asked.append(search.send((float(losses[0]), slopes[0])))
        except StopIteration:  # nothing moves any more
            break
    return asked


@pytest.mark.parametrize("function", [bent, rosenbrock])
@pytest.mark.parametrize("history", [3, 100])
def test_without_line_search_the_iterates_are_those_of_torch(function, history):
    start = RNG.normal(size=8) * 0.1
    theirs = torch_iterates(function, start, 12, lr=0.3, history_size=history)
    ours = our_iterates(function, start, 12, lr=0.3, history=history, line_search=False)
    for k, point in enumerate(theirs):
        assert ours[k + 1] == pytest.approx(point, rel=1e-6, abs=1e-9), f"iteration {k + 1}"


@pytest.mark.parametrize("function", [bent, rosenbrock])
@pytest.mark.parametrize("seed", range(4))
def test_with_strong_wolfe_the_iterates_are_those_of_torch(function, seed):
    start = np.random.default_rng(seed).normal(size=8)
    theirs = torch_iterates(
        function, start, 12, lr=1, history_size=10, line_search_fn="strong_wolfe"
    )
    asked = np.stack(our_iterates(function, start, 80, history=10))
    at = 0
    for k, point in enumerate(theirs):  # our search also asks at points that it does not accept
        near = np.abs(asked[at:] - point).max(axis=1)
        assert near.min() < 1e-6, f"iteration {k + 1} is {near.min():.1e} away"
        at += int(near.argmin())


def test_the_published_loop_is_one_long_search():
    """Outer steps of 20 iterations, as in published attacks, are the same iterates."""
    start = RNG.normal(size=8) * 0.1
    x = torch.tensor(start, requires_grad=True)
    rule = torch.optim.LBFGS([x], lr=0.3, history_size=100)
    for _ in range(2):
        rule.step(lambda: _closure(rule, x))
    ours = our_iterates(bent, start, 40, lr=0.3, line_search=False)
    assert ours[40] == pytest.approx(x.detach().numpy(), rel=1e-4, abs=1e-5)


def _closure(rule, x):
    rule.zero_grad()
    loss = bent(x)
    loss.backward()
    return loss


def test_the_line_search_finds_what_scipy_finds():
    batch = Batch([lbfgs(np.zeros(8))], batched(bent))
    batch.advance(300)
    theirs = scipy.optimize.minimize(
        lambda x: float(bent(torch.tensor(x))), np.zeros(8), options={"gtol": 1e-9}
    )
    assert batch.tracks[0].best_loss == pytest.approx(theirs.fun, rel=1e-9)
    assert batch.tracks[0].stopped in ("flat", "no step")


@pytest.mark.parametrize("method", ["adam", "adamw", "sgd"])
def test_first_order_methods_are_those_of_torch(method):
    start = RNG.normal(size=8)
    rules = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    x = torch.tensor(start, requires_grad=True)
    extra = {"momentum": 0.9} if method == "sgd" else {}
    rule = rules[method]([x], lr=1e-3, **extra)
    losses = []
    for _ in range(30):
        rule.zero_grad()
        loss = bent(x)
        losses.append(float(loss.detach()))
        loss.backward()
        rule.step()
    batch = Batch([first_order(start, optimiser=method, lr=1e-3, **extra)], batched(bent))
    batch.advance(30)
    assert batch.tracks[0].losses == pytest.approx(losses, rel=1e-9)


def test_signed_adam_sees_only_the_sign():
    ask = first_order(np.zeros(3), optimiser="signed-adam", lr=0.1)
    next(ask)
    moved = ask.send((1.0, np.array([5.0, -1e-9, 0.0])))
    assert moved == pytest.approx([-0.1, 0.1, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("none", [1] * 8), ("steps", [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])],
)
def test_schedules(schedule, factors):
    ask = first_order(np.zeros(1), optimiser="sgd", lr=1, schedule=schedule, steps=8)
    points = [next(ask)] + [ask.send((0.0, np.ones(1))) for _ in range(8)]
    assert -np.diff(np.concatenate(points)) == pytest.approx(factors)


def test_the_cosine_schedule_falls_to_zero():
    ask = first_order(np.zeros(1), optimiser="sgd", lr=1, schedule="cosine", steps=8)
    points = [next(ask)] + [ask.send((0.0, np.ones(1))) for _ in range(9)]
    steps = -np.diff(np.concatenate(points))
    assert steps[[0, 4, 8]] == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert (np.diff(steps) < 0).all()


def test_a_box_holds_every_point():
    goal = torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64)

    def function(x):
        return ((x - goal) ** 2).sum()

    def box(x):
        return np.clip(x, 0, 1)

    batch = Batch([first_order(np.full(3, 0.4), lr=0.1, project=box)], batched(function))
    batch.advance(200)
    assert batch.tracks[0].last == pytest.approx([1, 0, 0.5], abs=1e-3)


def test_each_search_of_a_batch_goes_as_if_it_were_alone():
    starts = [np.random.default_rng(k).normal(size=8) for k in range(3)]
    together = Batch([lbfgs(s) for s in starts], batched(rosenbrock), chunk=2)
    together.advance(50)
    for start, track in zip(starts, together.tracks, strict=True):
        alone = Batch([lbfgs(start)], batched(rosenbrock))
        alone.advance(50)
        assert track.losses == pytest.approx(alone.tracks[0].losses)
        assert track.best_loss == min(track.losses)
    assert together.evaluations == 150
    assert together.tracks[together.ranking()[0]].best_loss == min(
        t.best_loss for t in together.tracks
    )


def test_a_search_that_meets_nan_keeps_its_best_and_the_others_go_on():
    calls = []

    def evaluate(which, points):
        calls.append(list(which))
        losses, slopes = batched(bent)(which, points)
        if len(calls) >= 5 and 0 in which:
            losses[which.index(0)] = np.nan
        return losses, slopes

    searches = [lbfgs(np.ones(8), lr=0.1, line_search=False) for _ in range(2)]
    batch = Batch(searches, evaluate)
    batch.advance(20)
    first, second = batch.tracks
    assert first.stopped == "not finite" and len(first.losses) == 5
    assert np.isfinite(first.best_loss) and np.isfinite(first.best).all()
    assert len(second.losses) == 20 and calls[5:] == [[1]] * 15


def test_a_line_search_steps_back_from_where_the_objective_is_not_finite():
    def barrier(x):
        return (-torch.log(x) + x).sum()  # not finite below zero; lowest at 1

    batch = Batch([lbfgs(np.full(2, 30.0), lr=100)], batched(barrier))
    batch.advance(80)
    assert batch.tracks[0].best == pytest.approx([1, 1], abs=1e-4)


def test_patience_stops_a_search_that_no_longer_improves():
    batch = Batch([first_order(np.zeros(8), lr=0.1)], batched(bent), patience=10, tolerance=1e-3)
    batch.advance(5000)
    track = batch.tracks[0]
    assert track.stopped == "patience" and len(track.losses) < 5000
    assert min(track.losses[:-10]) <= min(track.losses) * (1 + 1.1e-3)


def test_snapshots_are_spaced_and_hold_the_best_so_far():
    assert spaced(0, 100) == [] and spaced(1, 100) == [100]
    assert spaced(5, 10000) == [1, 10, 100, 1000, 10000]
    batch = Batch([lbfgs(np.zeros(8))], batched(bent), snapshot_at=[1, 4, 16])
    batch.advance(16)
    track = batch.tracks[0]
    assert [count for count, _, _ in track.snapshots] == [1, 4, 16]
    for count, loss, point in track.snapshots:
        assert loss == min(track.losses[:count])
        assert float(bent(torch.tensor(point))) == pytest.approx(loss)

"""What every rule must do: properties, the stated breakdown, and life inside the training loop."""

import math
import warnings

import pytest
import torch

import flcourse.byzantine as byzantine
from flcourse.byzantine import MIXINGS, RULES, DroppedRows, RobustAggregate, as_aggregate
from flcourse.data import load_dataset, partition
from flcourse.fedavg import train
from flcourse.models import MLP

N, F, D = 20, 4, 300
# Options for rows with honest lengths near `length`; those with a length in them scale with it.
OPTIONS = {
    "mean": lambda length: {},
    "coordinate_median": lambda length: {},
    "trimmed_mean": lambda length: {"num_byzantine": F},
    "krum": lambda length: {"num_byzantine": F},
    "multi_krum": lambda length: {"num_byzantine": F, "num_selected": N - F},
    "bulyan": lambda length: {"num_byzantine": F},
    "geometric_median": lambda length: {},
    "centered_clipping": lambda length: {"clip_norm": 0.5 * length},
    "norm_filter": lambda length: {"max_norm": 1.5 * length},
    "fltrust": lambda length: {"server_update": torch.full((D,), length / math.sqrt(D))},
    "cluster_filter": lambda length: {},
}
ROBUST = [name for name in OPTIONS if name != "mean"]
DIRECTIONAL = {"norm_filter", "fltrust", "cluster_filter"}  # these look at lengths and angles
LENGTH = math.sqrt(2 * D)  # of honest rows: 1 ± 1 in each coordinate


def honest_rows(n: int = N, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 1


def apply(name: str, rows: torch.Tensor, length: float = LENGTH, **more) -> torch.Tensor:
    return RULES[name].function(rows, **OPTIONS[name](length), **more)


def spread_of(rows: torch.Tensor) -> float:
    return float((rows - rows.mean(0)).norm(dim=1).max())


# --- properties --------------------------------------------------------------------------------


def test_every_rule_of_the_package_is_in_the_table() -> None:
    assert set(RULES) == set(OPTIONS)
    for name in (*RULES, *MIXINGS):
        assert name in byzantine.__all__


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_and_determinism(name: str, dtype: torch.dtype) -> None:
    rows = honest_rows(dtype=dtype)
    before = rows.clone()
    result = apply(name, rows)
    assert result.shape == (D,)
    assert result.dtype == dtype
    assert torch.equal(result, apply(name, rows))
    assert torch.equal(rows, before)
    result += 1  # the result is not a view of the rows
    assert torch.equal(rows, before)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_does_not_matter(name: str, seed: int) -> None:
    rows = torch.cat([honest_rows(N - F, seed), -honest_rows(F, seed + 9)])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(apply(name, rows[order]), apply(name, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - DIRECTIONAL))
@pytest.mark.parametrize("offset", [10.0, 1000.0, -1e5])
def test_moving_all_rows_moves_the_result(name: str, offset: float) -> None:
    rows = torch.cat([honest_rows(N - F), -honest_rows(F, 9)])
    moved = (rows + offset).double() - offset  # what is left of the rows after float32
    wanted, result = apply(name, moved.float()), apply(name, rows + offset).double() - offset
    assert (result - wanted).abs().max() < 4e-7 * abs(offset)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("scale", [2.0**-20, 1e-3, 7.0, 1e6, 1e15, 2.0**-70, 2.0**80])
def test_scaling_all_rows_scales_the_result(name: str, scale: float) -> None:
    rows = torch.cat([honest_rows(N - F), -honest_rows(F, 9)])
    result = apply(name, rows * scale, LENGTH * scale).double() / scale
    torch.testing.assert_close(result.float(), apply(name, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("lie", [-1.0, 1e4, -1e19, 3e38])
def test_where_honest_rows_agree_the_result_is_theirs(name: str, lie: float) -> None:
    agreed = torch.full((N - F, D), 0.3)
    agreed[:, ::2] = 0.7
    liars = torch.full((F, D), 3 * lie if name == "norm_filter" and lie < 1e30 else lie)
    length = float(agreed[0].norm())
    options = OPTIONS[name](length)
    if name == "fltrust":
        options = {"server_update": agreed[0]}
    result = RULES[name].function(torch.cat([liars, agreed]), **options)
    close = {"centered_clipping": F / N * 0.5 * length}.get(name, 2e-7)
    if name in ("fltrust", "cluster_filter") and lie > 0:
        close = 0.3 * length  # a boaster near the right direction is let in, cut to length
    assert (result - agreed[0]).norm() <= close * max(1, float(agreed[0].norm()))


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("lie", [-5.0, 30.0, -1e8, 1e19, -3e38])
def test_f_liars_cannot_take_the_result_away(name: str, lie: float) -> None:
    honest = honest_rows(N - F)
    for where in (0, N - F):
        rows = torch.cat([honest[:where], torch.full((F, D), lie), honest[where:]])
        error = float((apply(name, rows) - honest.mean(0)).norm())
        assert error < spread_of(honest), (name, where)


def test_the_mean_goes_wherever_one_liar_wants() -> None:
    rows = torch.cat([honest_rows(N - 1), torch.full((1, D), 1e6)])
    assert apply("mean", rows).mean() > 1e4


@pytest.mark.parametrize(
    "name",
    ["coordinate_median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median"],
)
@pytest.mark.parametrize("n", [7, 12, 23])
def test_the_stated_breakdown_is_reached_and_not_passed(name: str, n: int) -> None:
    """At ``max_byzantine(n)`` liars the rule holds; with one more it refuses or may be lost."""
    rule = RULES[name]
    most = rule.max_byzantine(n)
    honest = honest_rows(n)
    told = {"num_byzantine": most} if rule.checks else {}
    rows = torch.cat([torch.full((most, D), 1e6), honest[most:]])
    # Of a geometric median near one half: 2 (n − f) / (n − 2f) spreads, and no less.
    bound = 2 * (n - most) / (n - 2 * most) if name == "geometric_median" else 2
    assert (rule.function(rows, **told) - honest.mean(0)).norm() < bound * spread_of(honest)
    if rule.checks:
        with pytest.raises(ValueError, match="num_byzantine"):
            rule.function(rows, num_byzantine=most + 1)
    else:
        lost = torch.cat([torch.full((n // 2 + 1, D), 1e6), honest[n // 2 + 1 :]])
        assert rule.function(lost).mean() > 1e4


@pytest.mark.parametrize(
    ("name", "n", "most"),
    [
        ("mean", 20, 0),
        ("coordinate_median", 20, 9),
        ("coordinate_median", 5, 2),
        ("trimmed_mean", 21, 10),
        ("krum", 20, 8),
        ("krum", 5, 1),
        ("krum", 2, -1),
        ("multi_krum", 50, 23),
        ("bulyan", 20, 4),
        ("bulyan", 50, 11),
        ("bulyan", 5, 0),
        ("geometric_median", 4, 1),
        ("fltrust", 20, 20),
    ],
)
def test_what_a_rule_says_it_tolerates(name: str, n: int, most: int) -> None:
    assert RULES[name].max_byzantine(n) == most


@pytest.mark.parametrize("name", ROBUST)
def test_mixed_scales_and_offsets(name: str) -> None:
    """Honest lengths over three decades, an offset of 1,000 spreads, and one row of 3e38."""
    honest = honest_rows(N - 1) * torch.logspace(-1.5, 1.5, N - 1)[:, None]
    rows = torch.cat([honest, torch.full((1, D), 3e38)])
    result = apply(name, rows, float(honest.norm(dim=1).median()))
    assert torch.isfinite(result).all()
    assert (result - honest.mean(0)).norm() < spread_of(honest)
    far = honest_rows(N - 1) * 1e-3 + 1
    # A bound on what one client may move is a matter of the spread, not of the length.
    length = spread_of(far) if name == "centered_clipping" else float(far.norm(dim=1).mean())
    result = apply(name, torch.cat([far, torch.full((1, D), -3e38)]), length)
    assert (result - far.mean(0)).norm() < spread_of(far)


@pytest.mark.parametrize("name", OPTIONS)
def test_rows_that_are_not_finite_are_left_out_and_said(name: str) -> None:
    rows = honest_rows()
    rows[1, 7], rows[3, 0] = math.nan, math.inf
    options = OPTIONS[name](LENGTH)
    if name == "multi_krum":
        options["num_selected"] = 10
    if name == "bulyan":
        options["num_byzantine"] = 3
    with pytest.warns(DroppedRows, match=rf"{name} left out row\(s\) \[1, 3\] of 20"):
        result = RULES[name].function(rows, **options)
    kept = torch.cat([rows[:1], rows[2:3], rows[4:]])
    assert torch.equal(result, RULES[name].function(kept, **options))


@pytest.mark.parametrize("name", OPTIONS)
def test_what_runs_where_numpy_cannot_gives_the_same(name: str, monkeypatch) -> None:
    """The branch for a GPU, run here."""
    rows = torch.cat([honest_rows(N - F), -honest_rows(F, 9)])
    wanted = apply(name, rows)
    for module in (byzantine.geometry, byzantine.coordinates):
        monkeypatch.setattr(module, "on_cpu", lambda values: False)
    torch.testing.assert_close(apply(name, rows), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_gpu_gives_the_same_and_keeps_it_there(name: str) -> None:
    rows = torch.cat([honest_rows(N - F), torch.full((F, D), -3e38)])
    result = apply(name, rows.cuda())
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), apply(name, rows), rtol=1e-4, atol=1e-5)


# --- as_aggregate ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_an_aggregate_is_its_rule_and_ignores_weights(name: str) -> None:
    rows, options = honest_rows(), OPTIONS[name](LENGTH)
    aggregate = as_aggregate(name, **options)
    wanted = RULES[name].function(rows, **options)
    assert torch.equal(aggregate(rows, torch.ones(N)), wanted)
    aggregate.reset()
    assert torch.equal(aggregate(rows, torch.arange(N) + 1.0), wanted)
    assert torch.equal(as_aggregate(RULES[name].function, **options)(rows, torch.ones(N)), wanted)


def test_names_say_the_options() -> None:
    assert repr(as_aggregate("trimmed_mean", num_byzantine=4)) == "trimmed_mean(num_byzantine=4)"
    mixed = as_aggregate("coordinate_median", mix="nearest_neighbour_mixing", num_byzantine=2)
    name = "coordinate_median after nearest_neighbour_mixing(num_byzantine=2)"
    assert mixed.__name__ == name
    trusted = as_aggregate("fltrust", server_update=torch.zeros(3))
    assert repr(trusted) == "fltrust(server_update=tensor[3])"
    generator = torch.Generator().manual_seed(7)
    dealt = as_aggregate("krum", mix="bucketing", size=2, num_byzantine=1, generator=generator)
    assert repr(dealt) == "krum(num_byzantine=1) after bucketing(size=2, generator=generator(7))"


def test_dropped_rows_are_recorded_for_each_call_without_a_warning() -> None:
    rows = honest_rows()
    bad = rows.clone()
    bad[5] = math.nan
    aggregate = as_aggregate("trimmed_mean", num_byzantine=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for these in (rows, bad, rows):
            aggregate(these, torch.ones(N))
    assert aggregate.dropped == [[], [5], []]
    aggregate.reset()
    assert aggregate.dropped == []


def test_a_mix_comes_first_and_shares_the_number_of_liars() -> None:
    rows = torch.cat([honest_rows(N - F), torch.full((F, D), -3.0)])
    aggregate = as_aggregate("trimmed_mean", mix="nearest_neighbour_mixing", num_byzantine=F)
    mixed = byzantine.nearest_neighbour_mixing(rows, F)
    wanted = byzantine.trimmed_mean(mixed, F)
    assert torch.equal(aggregate(rows, torch.ones(N)), wanted)
    own = as_aggregate(byzantine.coordinate_median, mix=lambda rows: rows[:3])
    assert torch.equal(own(rows, torch.ones(N)), byzantine.coordinate_median(rows[:3]))


def test_clipping_goes_on_from_its_previous_step() -> None:
    first, second = honest_rows(seed=0), honest_rows(seed=1)
    aggregate = as_aggregate("centered_clipping", clip_norm=2.0)
    one, two = aggregate(first, torch.ones(N)), aggregate(second, torch.ones(N))
    assert torch.equal(one, byzantine.centered_clipping(first, 2.0))
    assert torch.equal(two, byzantine.centered_clipping(second, 2.0, one))
    assert not torch.equal(two, byzantine.centered_clipping(second, 2.0))
    aggregate.reset()
    assert torch.equal(aggregate(second, torch.ones(N)), byzantine.centered_clipping(second, 2.0))
    fixed = as_aggregate("centered_clipping", clip_norm=2.0, start=torch.zeros(D))
    fixed(first, torch.ones(N))
    wanted = byzantine.centered_clipping(second, 2.0, torch.zeros(D))
    assert torch.equal(fixed(second, torch.ones(N)), wanted)


def test_what_is_done_with_a_step_does_not_move_the_next_start() -> None:
    first, second = honest_rows(seed=0), honest_rows(seed=1)
    aggregate = as_aggregate("centered_clipping", clip_norm=2.0)
    step = aggregate(first, torch.ones(N))
    kept = step.clone()
    step *= -100
    wanted = byzantine.centered_clipping(second, 2.0, kept)
    assert torch.equal(aggregate(second, torch.ones(N)), wanted)


def test_a_refusal_says_which_rows_had_been_left_out() -> None:
    rows = honest_rows(11)
    rows[2] = math.inf
    aggregate = as_aggregate("krum", num_byzantine=4)
    message = r"there are 10; use .* \(row\(s\) \[2\] of 11 are not finite and were left out\)"
    with pytest.raises(ValueError, match=message):
        aggregate(rows, torch.ones(11))
    assert aggregate.dropped == [[2]]
    with pytest.raises(ValueError, match=r"row\(s\) \[0, 1\] of 2 are not finite"):
        as_aggregate("coordinate_median")(rows[:2] * math.nan, torch.ones(2))


def test_an_option_that_is_a_function_is_asked_each_round() -> None:
    updates = iter([torch.ones(D), -torch.ones(D)])
    aggregate = as_aggregate("fltrust", server_update=lambda: next(updates))
    assert aggregate(honest_rows(), torch.ones(N)).mean() > 0.5
    assert aggregate(honest_rows(), torch.ones(N)).abs().max() == 0


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("average", {}, r"rule='average' is unknown: use one of mean, coordinate_median"),
        ("krum", {}, r"krum needs \['num_byzantine'\]"),
        ("mean", {"num_byzantine": 2}, r"mean has no option \['num_byzantine'\]"),
        ("krum", {"num_byzantine": 2, "mix": "blend"}, "mix='blend' is unknown"),
        (
            "krum",
            {"num_byzantine": 2, "mix": "bucketing", "size": 2},
            r"bucketing needs \['generator'\]",
        ),
    ],
)
def test_what_is_wrong_with_the_options_is_said_at_once(rule, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        as_aggregate(rule, **options)


@pytest.mark.parametrize("name", ["coordinate_median", "multi_krum", "centered_clipping"])
def test_training_stands_liars_who_send_nan_and_3e38(name: str) -> None:
    split = load_dataset("digits")
    clients = partition(split.train, "iid", 10)
    options = {
        "coordinate_median": {},
        "multi_krum": {"num_byzantine": 2, "num_selected": 7},
        "centered_clipping": {"clip_norm": 1.0},
    }[name]
    aggregate = as_aggregate(name, **options)

    def lie(rows, context):
        rows = rows.clone()
        rows[0], rows[1] = math.nan, 3e38
        return rows

    model = MLP(split.train.inputs[0].numel())
    history = train(
        model, clients, split.test, rounds=4, epochs=5, lr=0.1, transform=lie, aggregate=aggregate
    )
    assert isinstance(aggregate, RobustAggregate)
    assert aggregate.dropped == [[0]] * 4
    assert history.accuracy[-1] > 0.7
    assert history.config["aggregate"] == repr(aggregate)

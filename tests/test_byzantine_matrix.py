"""The matrix runner against rounds written out by hand, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from flcourse.byzantine import Setting, Undefined, federation, run_cell, run_matrix
from flcourse.byzantine.matrix import Watch, build_rule, check_names, cosine, parse
from flcourse.fedavg import apply_update, evaluate, local_updates

SMALL = Setting(num_train=None, num_clients=7, num_byzantine=2, rounds=2, epochs=1, lr=0.1)


def by_hand(setting, seed, lie, rule):
    """Two rounds in plain torch; returns accuracies and cosines."""
    world, accuracies, cosines = federation(setting, seed), [], []
    for number in range(1, setting.rounds + 1):
        rows, _ = local_updates(
            world.model, world.clients, seed=seed, round=number, **setting.local
        )
        lying = torch.tensor([client.index in world.liars for client in world.clients])
        honest = rows[~lying].mean(dim=0)
        rows[lying] = lie(rows[~lying], rows[lying])
        step = rule(rows)
        cosines.append(float(torch.cosine_similarity(step, honest, dim=0)))
        apply_update(world.model, step)
        accuracies.append(evaluate(world.model, world.test)[0])
    return accuracies, cosines


@pytest.mark.parametrize(
    ("attack", "lie"),
    [
        ("sign_flip:scale=3", lambda honest, own: -3 * own),
        ("ipm:scale=2", lambda honest, own: -2 * honest.mean(dim=0).expand_as(own)),
        ("constant:value=0.5", lambda honest, own: torch.full_like(own, 0.5)),
    ],
)
@pytest.mark.parametrize(
    ("rule", "function"),
    [
        ("mean", lambda rows: rows.mean(dim=0)),
        ("trimmed_mean", lambda rows: rows.sort(dim=0).values[2:-2].mean(dim=0)),
        ("trimmed_mean:num_byzantine=1", lambda rows: rows.sort(dim=0).values[1:-1].mean(dim=0)),
    ],
)
def test_a_cell_is_two_rounds_by_hand(attack, lie, rule, function):
    cell = run_cell(attack, rule, SMALL, seed=3)
    accuracies, cosines = by_hand(SMALL, 3, lie, function)
    assert cell.accuracies == pytest.approx(accuracies, abs=0.003)
    assert cell.cosines == pytest.approx(cosines, abs=1e-4)
    assert cell.accuracy == cell.accuracies[-1] and cell.stopped is None
    assert cell.cosine == pytest.approx(sum(cosines) / 2, abs=1e-4)


def test_nobody_lies_and_the_mean_is_the_honest_mean():
    cell = run_cell("none", "mean", SMALL)
    assert cell.cosines == pytest.approx((1, 1), abs=1e-6)
    everyone = run_cell("label_flip", "mean", SMALL)
    assert everyone.cosine < 0.999


def test_rows_that_are_no_numbers_leave_the_mean_of_the_honest():
    cell = run_cell("constant:value=nan", "mean", SMALL)
    assert cell.cosines == pytest.approx((1, 1), abs=1e-6) and cell.stopped is None


def test_a_seed_deals_data_liars_and_model_and_the_root_set_is_nobodys():
    one, same, other = (federation(SMALL, seed) for seed in (0, 0, 1))
    assert one.liars == same.liars and len(one.liars) == 2
    assert torch.equal(one.clients[0].inputs, same.clients[0].inputs)
    assert {federation(SMALL, seed).liars for seed in range(6)} != {one.liars}
    assert len(one.clients[0]) != len(other.clients[0])
    held = {tuple(row.flatten().tolist()) for client in one.clients for row in client.inputs}
    root = {tuple(row.flatten().tolist()) for row in one.root.inputs}
    assert len(one.root) == 100 and not held & root
    assert sum(len(client) for client in one.clients) + 100 == 1437


def test_every_rule_gets_what_it_needs():
    """The server's own knowledge: f, the median length of the rows, the root set, a generator."""
    world, watch = (
        federation(SMALL, 0),
        Watch(torch.nn.Linear(1, 1), frozenset(), None, typical=3.0),
    )
    setting = replace(SMALL, clip=0.5, longest=2.0)

    def options(text):
        rule = build_rule(text, setting, watch, world, 0)
        return rule.options, rule.mix_options

    assert options("centered_clipping")[0]["clip_norm"]() == 1.5
    assert options("norm_filter")[0]["max_norm"]() == 6.0
    assert options("norm_filter:max_norm=9")[0] == {"max_norm": 9}
    assert options("nearest_neighbour_mixing+krum") == ({"num_byzantine": 2},) * 2
    assert set(options("bucketing:size=2+coordinate_median")[1]) == {"size", "generator"}
    expected, _ = local_updates(world.model, [world.root], round=1, **setting.local)
    assert torch.equal(options("fltrust")[0]["server_update"](), expected[0])


def test_typical_is_the_median_length_of_what_was_received():
    cell = run_cell("constant:value=100", "norm_filter", SMALL)
    mean = run_cell("constant:value=nan", "mean", SMALL)
    assert cell.accuracies == mean.accuracies, "the long rows, and only they, are left out"


def test_what_a_rule_refuses_is_undefined_and_what_stops_later_is_told():
    with pytest.raises(Undefined, match="krum is not defined for 2 of 6 rows"):
        run_cell("none", "krum", replace(SMALL, num_clients=6))
    with pytest.raises(Undefined, match="2 of 4 rows"):
        run_cell("none", "bucketing:size=2+trimmed_mean", SMALL)
    cell = run_cell("constant:value=nan", "krum", SMALL)
    assert cell.stopped.startswith("round 1: krum needs n ≥ 2f + 3")
    assert cell.accuracies == () and cell.cosines == (0.0,) and cell.accuracy < 0.3
    cell = run_cell("constant:value=3e38", "mean", replace(SMALL, rounds=5))
    assert cell.stopped.endswith("the step makes the model NaN or infinite")
    assert 1 <= len(cell.accuracies) < 5 and len(cell.cosines) == len(cell.accuracies) + 1


def test_a_lie_that_so_many_liars_cannot_tell_is_undefined_and_the_others_are_run():
    one = replace(SMALL, num_byzantine=1, rounds=1)
    with pytest.raises(Undefined, match=r"1 liar\(s\) of 7 clients: suppression.*at least two"):
        run_cell("suppression", "mean", one)
    found = list(run_matrix(["suppression", "none"], ["mean"], one, [0]))
    assert [cell is None for *_, cell in found] == [True, False]
    most = replace(one, num_byzantine=4)
    reasons = check_names(["alie", "alie:z=1", "stealth_suppression:target=0"], ["mean"], most)
    assert list(reasons) == ["alie"] and "minority" in reasons["alie"]


def test_the_matrix_is_every_cell_in_turn():
    found = list(run_matrix(["none", "alie"], ["mean", "bulyan"], SMALL, [0, 1]))
    assert [key[:3] for key in found] == [
        (attack, rule, seed)
        for attack in ("none", "alie")
        for rule in ("mean", "bulyan")
        for seed in (0, 1)
    ]
    assert [cell is None for *_, cell in found] == [False, False, True, True] * 2
    assert found[5][3] == run_cell("alie", "mean", SMALL, 1)


def test_texts():
    assert parse("none") == ("none", {})
    assert parse("alie:z=1.5") == ("alie", {"z": 1.5})
    name, options = parse("constant:value=nan")
    assert name == "constant" and options["value"] != options["value"]
    assert parse("min_max:direction=sign") == ("min_max", {"direction": "sign"})
    for text in ("alie:1.5", "alie:z=", "alie:z=1,,"):
        with pytest.raises(ValueError, match="no option=value"):
            parse(text)


@pytest.mark.parametrize(
    ("attack", "rule", "words"),
    [
        ("flip", "mean", "no attack 'flip'"),
        ("none", "median", "'median' is unknown: use one of mean"),
        ("none:scale=2", "mean", "none takes no options"),
        ("none", "stirring+mean", "'stirring' is unknown"),
        ("alie:scale=2", "mean", "alie has no option 'scale'"),
        ("none", "krum:size=2", "krum has no option"),
        ("sign_flip:scale=abc", "mean", "scale='abc' will not do, give float"),
        ("gaussian:generator=3", "mean", "generator=3 will not do, a text cannot give it"),
        ("sign_flip:scale=true", "mean", "scale=True will not do"),
        ("none", "krum:num_byzantine=1.5", "num_byzantine=1.5 will not do, give int"),
        ("none", "bucketing:size=0+mean", "size=0 must lie in 1 … 7"),
        ("none", "bucketing:size=8+mean", "size=8 must lie in 1 … 7"),
    ],
)
def test_a_wrong_text_is_refused(attack, rule, words):
    with pytest.raises(ValueError, match=words):
        run_cell(attack, rule, SMALL)


def test_a_setting_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one honest"):
        federation(replace(SMALL, num_byzantine=7), 0)
    with pytest.raises(ValueError, match="root_size=2000"):
        federation(replace(SMALL, root_size=2_000), 0)


def test_the_cosine():
    one = torch.tensor([1.0, 0.0])
    assert cosine(one, torch.tensor([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert cosine(one, torch.zeros(2)) == 0.0

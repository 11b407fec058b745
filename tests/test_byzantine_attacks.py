"""Each attack against its definition: a hand example, a brute force, a published number."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from flcourse import byzantine
from flcourse.byzantine import ATTACKS, as_transform
from flcourse.byzantine.attacks import DIRECTIONS, most_apart
from flcourse.byzantine.catalogue import KNOWLEDGE
from flcourse.data import Client, load_dataset, partition
from flcourse.fedavg import RoundContext, train
from flcourse.models import MLP, Logistic

HONEST = torch.tensor([[1.0, 2.0], [3.0, 0.0], [2.0, 4.0]])
OWN = torch.tensor([[1.0, -1.0], [0.5, 2.0]])


def drawn(n=9, d=40, seed=0, dtype=torch.float32, offset=0.0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw, dtype=dtype) * (1 + torch.arange(d)) / d + offset


def told(name, honest, own, **options):
    function = ATTACKS[name].function
    if "generator" in inspect.signature(function).parameters:
        options["generator"] = torch.Generator().manual_seed(1)
    return function(honest, own, **options)


# ------------------------------------------------------------------------------- by hand


def test_the_blind_attacks_by_hand():
    flipped = byzantine.sign_flip(HONEST, OWN, scale=5.0)
    assert flipped.tolist() == [[-5.0, 5.0], [-2.5, -10.0]]
    assert byzantine.constant(HONEST, OWN, value=7.0).tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert byzantine.ipm(HONEST, OWN, scale=2.0).tolist() == [[-4.0, -4.0]] * 2
    expected = [2 - 1.5 * 1.0, 2 - 1.5 * 2.0]  # standard deviations over n − 1: 1 and 2
    assert byzantine.alie(HONEST, OWN, z=1.5).tolist() == [expected] * 2


@pytest.mark.parametrize(("scale", "turns"), [(3.9, False), (4.1, True)])
def test_the_mean_turns_round_only_if_f_times_scale_exceeds_the_honest(scale, turns):
    """16 honest, 4 liars: the threshold is (n − f)/f = 4, for flips of equal rows and for IPM."""
    honest = HONEST[:1].expand(16, 2)
    for rows in (
        byzantine.sign_flip(honest, honest[:4], scale=scale),
        byzantine.ipm(honest, honest[:4], scale=scale),
    ):
        mean = torch.cat([honest, rows]).mean(dim=0)
        assert bool(mean @ honest[0] < 0) is turns
        assert torch.allclose(mean, (16 - 4 * scale) / 20 * honest[0], atol=1e-6)


def test_gaussian_has_the_stated_spread_and_follows_its_generator():
    own = torch.zeros(3, 20_000)
    rows = told("gaussian", HONEST.new_zeros(2, 20_000), own, std=2.0)
    assert float(rows.std()) == pytest.approx(2, rel=0.02) and abs(float(rows.mean())) < 0.03
    assert torch.equal(rows, told("gaussian", own, own, std=2.0))
    assert not torch.equal(rows[0], rows[1])


# ------------------------------------------------------------------------------ definitions


@pytest.mark.parametrize(("n", "f"), [(20, 4), (50, 11), (50, 24), (10, 1), (7, 3)])
def test_the_z_of_alie_leaves_its_supporters_further_out(n, f):
    """With z, s of the n − f honest clients are expected beyond it: with the liars a majority."""
    z = byzantine.alie_z(n, f)
    beyond = (n - f) * norm.sf(z)
    assert beyond + f == pytest.approx(n // 2 + 1)
    if (n, f) == (50, 24):  # s = 2: the paper's example, Φ⁻¹(24/26)
        assert z == pytest.approx(1.426, abs=1e-3)
    honest = drawn(n - f)
    rows = byzantine.alie(honest, honest[:f])
    assert torch.allclose(rows, byzantine.alie(honest, honest[:f], z=z))


def distances(rows, point):
    return (rows.double() - point.double()).norm(dim=1)


def furthest(fits):
    """The largest γ that fits, by bisection as in the paper."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def push(honest, direction):
    mean = honest.double().mean(dim=0)
    vectors = {
        "spread": -honest.double().std(dim=0),
        "sign": -mean.sign(),
        "mean": -mean / mean.norm(),
    }
    return mean, vectors[direction]


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_min_max_and_min_sum_go_as_far_as_their_bound_allows(direction, offset):
    honest = drawn(offset=offset)
    mean, away = push(honest, direction)
    pairs = torch.stack([distances(honest, row) for row in honest])
    widest, most = pairs.max(), pairs.square().sum(dim=1).max()

    gamma = furthest(lambda g: distances(honest, mean + g * away).max() <= widest)
    row = byzantine.min_max(honest, honest[:2], direction=direction)[0]
    assert torch.allclose(row.double(), mean + gamma * away, rtol=1e-5, atol=1e-5)

    gamma = furthest(lambda g: distances(honest, mean + g * away).square().sum() <= most)
    row = byzantine.min_sum(honest, honest[:2], direction=direction)[0]
    assert torch.allclose(row.double(), mean + gamma * away, rtol=1e-5, atol=1e-5)


def test_honest_rows_that_agree_leave_no_room():
    honest = HONEST[:1].expand(5, 2).clone()
    for name in ("alie", "min_max", "min_sum", "mimic"):
        assert torch.equal(told(name, honest, OWN), honest[:2]), name


def test_mimic_copies_one_row_and_finds_the_one_apart():
    rows = byzantine.mimic(HONEST, OWN, target=1)
    assert rows.tolist() == [[3.0, 0.0]] * 2
    honest = 0.1 * drawn(12, 30, seed=3)
    honest[7] += 5
    assert most_apart(honest) == 7 and torch.equal(
        byzantine.mimic(honest, OWN.new_zeros(1, 30))[0], honest[7]
    )
    for seed in range(5):
        honest = drawn(8, 20, seed=seed, dtype=torch.float64)
        centred = honest - honest.mean(dim=0)
        first = torch.linalg.svd(centred).Vh[0]
        assert most_apart(honest) == int((centred @ first).abs().argmax())


# ------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_attack_keeps_shape_and_type_and_touches_nothing(name, dtype):
    honest, own = drawn(dtype=dtype), drawn(3, seed=1, dtype=dtype)
    kept = honest.clone(), own.clone()
    rows = told(name, honest, own)
    assert rows.shape == own.shape and rows.dtype == dtype and rows.is_contiguous()
    rows.zero_()
    assert torch.equal(honest, kept[0]) and torch.equal(own, kept[1])


@pytest.mark.parametrize("name", ATTACKS)
def test_what_an_attack_is_said_to_know_is_all_it_uses(name):
    """Change what it does not know: the lie stays."""
    lie, honest, own = ATTACKS[name], drawn(), drawn(3, seed=1)
    assert lie.knows in KNOWLEDGE and lie.knows.split()[0] in ("own", "mean", "all")
    rows = told(name, honest, own)
    if lie.knows == "own row":
        assert torch.equal(rows, told(name, drawn(seed=5), own))
    else:
        assert torch.equal(rows, told(name, honest, drawn(3, seed=6)))
        assert not torch.equal(rows, told(name, drawn(seed=5), own))
    if lie.knows in ("mean of the honest rows", "mean and spread"):
        mirrored = 2 * honest.mean(dim=0) - honest  # the same mean and spread, other rows
        assert torch.allclose(rows, told(name, mirrored, own), atol=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_refuses_what_does_not_fit(name):
    with pytest.raises(ValueError, match="expected honest rows"):
        told(name, HONEST, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one float dtype"):
        told(name, HONEST.double(), OWN)
    if ATTACKS[name].knows != "own row":
        with pytest.raises(ValueError, match="0 honest"):
            told(name, HONEST[:0], OWN)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sign_flip", {"scale": -1.0}, "positive"),
        ("ipm", {"scale": 0.0}, "positive"),
        ("gaussian", {"std": math.inf}, "positive"),
        ("alie", {"z": math.nan}, "finite"),
        ("constant", {"value": -1e39}, r"is no torch.float32: use at most 3.4028e\+38, or inf"),
        ("min_max", {"direction": "up"}, "unknown: use spread, sign, mean"),
        ("mimic", {"target": 3}, "none of the 3"),
    ],
)
def test_options_outside_their_range_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        told(name, HONEST, OWN, **options)


def test_z_needs_a_minority():
    for n, f in ((10, 0), (10, 5), (3, 2)):
        with pytest.raises(ValueError, match="minority"):
            byzantine.alie_z(n, f)


# ---------------------------------------------------------------------------- poisoned data


def test_labels_are_flipped_by_hand():
    client = Client(3, torch.zeros(4, 2), torch.tensor([0, 1, 9, 5]))
    flipped = byzantine.label_flip(client, 10)
    assert flipped.labels.tolist() == [9, 8, 0, 4] and flipped.index == 3
    assert client.labels.tolist() == [0, 1, 9, 5]
    one = byzantine.label_flip(client, 10, source=1, target=7)
    assert one.labels.tolist() == [0, 7, 9, 5]
    assert torch.equal(byzantine.label_flip(flipped, 10).labels, client.labels), "twice is none"
    with pytest.raises(ValueError, match="label 9 is none of the 9"):
        byzantine.label_flip(client, 9)
    with pytest.raises(ValueError, match="give both"):
        byzantine.label_flip(client, 10, source=1)


def test_only_the_liars_are_poisoned():
    clients = [Client(index, torch.zeros(2, 2), torch.tensor([0, 1])) for index in (4, 5, 6)]
    labels = [c.labels.tolist() for c in byzantine.poison(clients, (5,), 3)]
    assert labels == [[0, 1], [2, 1], [0, 1]]


# ---------------------------------------------------------------------------- in a round


def context(indices, number=1):
    cohort = [Client(index, torch.zeros(1, 2), torch.zeros(1).long()) for index in indices]
    return RoundContext(number, 0, cohort, torch.ones(len(cohort)), Logistic(2, 2))


def test_only_liars_of_the_cohort_lie():
    rows = torch.cat([HONEST, OWN])
    lying = as_transform("sign_flip", liars=(7, 2), scale=2.0)
    sent = lying(rows, context([0, 2, 5, 6, 8]))
    assert torch.equal(sent[1], -2 * rows[1])
    assert torch.equal(sent[[0, 2, 3, 4]], rows[[0, 2, 3, 4]])
    assert torch.equal(lying(rows, context([0, 1, 5, 6, 8])), rows)
    told_all = as_transform(byzantine.ipm, liars=(2,), scale=1.0)(rows, context([0, 2, 5, 6, 8]))
    assert torch.allclose(told_all[1], -rows[[0, 2, 3, 4]].mean(dim=0))


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, set])
def test_liars_may_be_named_in_a_tensor(kind):
    """A tensor's elements are never found in a set of them: nobody would lie, silently."""
    rows, liars = torch.cat([HONEST, OWN]), kind([2, 8])
    sent = as_transform("sign_flip", liars)(rows, context([0, 2, 5, 6, 8]))
    assert torch.equal(sent[[1, 4]], -rows[[1, 4]])
    assert torch.equal(sent[[0, 2, 3]], rows[[0, 2, 3]])
    clients = [Client(index, torch.zeros(2, 2), torch.tensor([0, 1])) for index in (1, 2, 8)]
    labels = [c.labels.tolist() for c in byzantine.poison(clients, liars, 3)]
    assert labels == [[0, 1], [2, 1], [2, 1]]


def test_a_mask_of_liars_is_refused():
    for mask in (torch.tensor([True, False]), [True, False], np.array([True, False])):
        with pytest.raises(ValueError, match=r"is no client index.*mask.nonzero"):
            as_transform("sign_flip", mask)
        with pytest.raises(ValueError, match="is no client index"):
            byzantine.poison([], mask, 3)


def test_a_lie_that_a_cohort_does_not_allow_says_round_and_liars():
    lying = as_transform("suppression", liars=(2, 3))
    with pytest.raises(ValueError, match=r"round 4, 1 liar\(s\) of 5 clients: suppression: 1 coll"):
        lying(torch.cat([HONEST, OWN]), context([0, 2, 5, 6, 8], number=4))


def test_draws_follow_the_round():
    lying = as_transform("gaussian", liars=(1,))
    one, again, other = (lying(OWN, context([0, 1], number)) for number in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one[1], other[1])


def test_a_training_run_keeps_the_lie_in_its_history():
    split = load_dataset("digits")
    clients = partition(split.train, "iid", 5)
    lying = as_transform("sign_flip", liars=(0, 1), scale=5.0)

    def model():
        return MLP(64, 32, seed=0)

    history = train(model(), clients, split.test, rounds=4, lr=0.2, transform=lying)
    honest = train(model(), clients, split.test, rounds=4, lr=0.2)
    assert history.config["transform"] == "sign_flip:scale=5.0"
    assert history.accuracy[-1] < 0.3 < 0.7 < honest.accuracy[-1]


def test_a_wrong_name_or_option_is_refused_before_training():
    with pytest.raises(ValueError, match="no attack 'flip': use one of sign_flip"):
        as_transform("flip", liars=(0,))
    with pytest.raises(ValueError, match="sign_flip has no option 'z': it takes scale"):
        as_transform("sign_flip", liars=(0,), z=1.0)

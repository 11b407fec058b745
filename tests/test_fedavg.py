"""FedAvg against independent oracles: plain SGD, the centralised step, PyTorch's own optimiser."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flcourse import models
from flcourse.data import Client, load_dataset, partition
from flcourse.fedavg import (
    apply_update,
    evaluate,
    local_updates,
    mean,
    pooled,
    sample_clients,
    train,
)
from flcourse.local import batches
from flcourse.runtime import generator, seeded
from flcourse.vectors import flatten


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def clients(digits):
    return partition(digits.train, "dirichlet", 8, alpha=0.3, seed=0)


def small_model(seed=0):
    return models.MLP(64, 16, 10, seed=seed)


def full_batch_step(model, data, lr):
    """The centralised oracle: one step of gradient descent on all samples, by autograd alone."""
    model = copy.deepcopy(model)
    loss = F.cross_entropy(model(data.inputs), data.labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= lr * gradient
    return flatten(model)


def test_one_client_full_batch_is_sgd_exactly(digits):
    model = small_model()
    expected = copy.deepcopy(model)
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1)
    # The same order of samples: a sum of floats depends on it.
    order = next(batches(len(digits.train), 1, None, generator(5, "shuffle", 1, 0)))
    F.cross_entropy(expected(digits.train.inputs[order]), digits.train.labels[order]).backward()
    optimiser.step()
    client = Client(0, digits.train.inputs, digits.train.labels)
    train(model, [client], digits.test, rounds=1, epochs=1, batch_size=None, lr=0.1, seed=5,
          engine="loop")  # fmt: skip
    # The update travels as a difference, which rounds the last bit of a float32.
    assert torch.allclose(flatten(model), flatten(expected), atol=2e-8, rtol=0)


def test_equal_shards_full_batch_is_the_centralised_step(digits):
    model = small_model()
    clients = partition(digits.train.subset(range(1400)), "iid", 7, seed=0)
    expected = full_batch_step(model, pooled(clients), lr=0.1)
    train(model, clients, digits.test, rounds=1, epochs=1, batch_size=None, lr=0.1)
    assert torch.allclose(flatten(model), expected, atol=1e-6)


def test_unequal_shards_full_batch_is_the_centralised_step_too_thanks_to_the_weights(
    digits, clients
):
    model = small_model()
    assert len({len(client) for client in clients}) > 1
    expected = full_batch_step(model, pooled(clients), lr=0.1)
    rows, weights = local_updates(model, clients, epochs=1, batch_size=None, lr=0.1)
    start = flatten(model)
    assert torch.allclose(start + mean(rows, weights), expected, atol=1e-6)
    assert not torch.allclose(start + rows.mean(dim=0), expected, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"proximal": 0.5}, {"epochs": 3}])
@pytest.mark.parametrize("kind", ["mlp", "cnn", "frozen"])
def test_batched_training_equals_the_plain_loop(clients, options, kind):
    model = small_model()
    if kind == "cnn":
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 10))
    if kind == "frozen":
        model[1].weight.requires_grad_(False)
    settings = {"epochs": 2, "batch_size": 32, "lr": 0.1, "seed": 3, "round": 4, **options}
    loop, counts = local_updates(model, clients, engine="loop", **settings)
    batched, _ = local_updates(model, clients, engine="batched", **settings)
    assert counts.tolist() == [len(client) for client in clients]
    assert float(loop.norm(dim=1).min()) > 1e-3
    assert torch.allclose(loop, batched, atol=2e-6)


def test_batched_training_in_several_groups_gives_the_same_rows(clients, monkeypatch):
    settings = {"epochs": 1, "batch_size": 16, "lr": 0.1, "engine": "batched"}
    together, _ = local_updates(small_model(), clients, **settings)
    monkeypatch.setattr("flcourse.local._VALUES_AT_ONCE", 3 * 1210)
    assert torch.allclose(local_updates(small_model(), clients, **settings)[0], together, atol=1e-6)


def test_the_global_model_is_not_changed_by_local_training(clients):
    model = small_model()
    before = flatten(model)
    for engine in ("loop", "batched"):
        local_updates(model, clients, epochs=1, batch_size=32, lr=0.1, engine=engine)
        assert torch.equal(flatten(model), before)


def test_batch_norm_statistics_travel_in_the_row_and_take_the_loop(clients):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    settings = {"epochs": 1, "batch_size": None, "lr": 0.1}
    rows, _ = local_updates(model, clients, **settings)
    assert torch.isfinite(rows).all()
    with pytest.raises(ValueError, match="BatchNorm1d"):
        local_updates(model, clients, engine="batched", **settings)
    before = model[2].running_mean.clone()
    apply_update(model, mean(rows, torch.ones(len(rows))))
    assert not torch.equal(model[2].running_mean, before)


def test_fedprox_pulls_clients_back_to_the_global_model(clients):
    settings = {"epochs": 5, "batch_size": 32, "lr": 0.1}
    free, _ = local_updates(small_model(), clients, **settings)
    held, _ = local_updates(small_model(), clients, proximal=1.0, **settings)
    assert bool((held.norm(dim=1) < 0.9 * free.norm(dim=1)).all())


def test_server_momentum_is_the_recursion_of_fedavgm(digits, clients):
    model, beta = small_model(), 0.7
    settings = {"epochs": 1, "batch_size": 32, "lr": 0.1}
    row = flatten(model)
    velocity, other = torch.zeros_like(row), small_model()
    for number in (1, 2, 3):
        rows, weights = local_updates(other, clients, seed=1, round=number, **settings)
        velocity = beta * velocity + mean(rows, weights)
        apply_update(other, velocity, 0.5)
    train(model, clients, digits.test, rounds=3, server_lr=0.5, server_momentum=beta, seed=1,
          **settings)  # fmt: skip
    assert torch.allclose(flatten(model), flatten(other), atol=1e-6)


def test_two_runs_give_the_same_history_and_another_seed_another(digits, clients):
    def curve(seed):
        return train(small_model(), clients, digits.test, rounds=2, fraction=0.5, seed=seed)

    first, again, other = curve(0), curve(0), curve(1)
    assert [r.loss for r in first.rounds] == [r.loss for r in again.rounds]
    assert [r.loss for r in first.rounds] != [r.loss for r in other.rounds]


def test_a_resumed_run_ends_with_the_same_model(digits, clients):
    settings = {"rounds": 4, "fraction": 0.5, "server_momentum": 0.5, "seed": 2}
    whole, kept = small_model(), []
    history = train(whole, clients, digits.test, on_round=lambda r, c: kept.append(c), **settings)
    resumed = small_model(seed=99)
    rest = train(resumed, clients, digits.test, resume=kept[1], **settings)
    assert torch.equal(flatten(whole), flatten(resumed))
    assert [r.round for r in rest.rounds] == [3, 4]
    assert rest.accuracy == history.accuracy[2:]


def test_bytes_count_float32_rows_of_the_cohort(digits, clients):
    history = train(small_model(), clients, digits.test, rounds=2, fraction=0.25)
    assert all(record.bytes_up == record.bytes_down == 4 * 1210 * 2 for record in history.rounds)
    assert history.megabytes[-1] == pytest.approx(2 * 2 * 4 * 1210 * 2 / 1e6)


def test_transform_sees_the_round_and_its_rows_are_used(digits, clients):
    seen = []

    def spy(rows, context):
        seen.append((context.round, len(context.cohort), context.generator("x").initial_seed()))
        return rows * 0

    model = small_model()
    before = flatten(model)
    train(model, clients, digits.test, rounds=2, transform=spy)
    assert torch.equal(flatten(model), before)
    assert [entry[:2] for entry in seen] == [(1, 8), (2, 8)]
    assert seen[0][2] != seen[1][2]


def test_history_as_json_holds_everything(digits, clients, tmp_path):
    history = train(small_model(), clients, digits.test, rounds=1, seed=4)
    content = json.loads(history.to_json(tmp_path / "run.json"))
    assert content == json.loads((tmp_path / "run.json").read_text())
    assert content["config"]["seed"] == 4 and content["config"]["aggregate"] == "mean"
    assert content["rounds"][0]["accuracy"] == history.accuracy[0]
    assert content["provenance"]["packages"]["torch"]


def test_training_learns(digits):
    clients = partition(digits.train, "iid", 10, seed=0)
    history = train(models.MLP(64, 64, 10), clients, digits.test, rounds=20, lr=0.1)
    assert history.accuracy[-1] > 0.75  # chance is .1; .847 to .886 over five seeds


@pytest.mark.parametrize("fraction, count", [(1.0, 8), (0.5, 4), (0.01, 1), (0.3, 2)])
def test_cohort_sizes_and_order(clients, fraction, count):
    cohort = sample_clients(clients, fraction, generator(0, "t"))
    indices = [client.index for client in cohort]
    assert len(set(indices)) == count and indices == sorted(indices)


def test_every_client_is_sampled_equally_often(clients):
    draws = generator(0, "t")
    counts = torch.zeros(len(clients))
    for _ in range(2000):
        for client in sample_clients(clients, 0.25, draws):
            counts[client.index] += 1
    # Binomial(2000, 1/4): standard deviation 19.4, so 5 of them.
    assert float((counts - 500).abs().max()) < 97


def test_weighted_mean_by_hand():
    rows = torch.tensor([[1.0, 0.0], [4.0, 3.0]])
    assert mean(rows, torch.tensor([2.0, 1.0])).tolist() == pytest.approx([2.0, 1.0])


def test_evaluate_in_batches_equals_one_pass(digits):
    model = small_model()
    accuracy, loss = evaluate(model, digits.test, batch_size=7)
    outputs = model(digits.test.inputs)
    assert loss == pytest.approx(F.cross_entropy(outputs, digits.test.labels).item(), rel=1e-5)
    assert accuracy == pytest.approx(
        float((outputs.argmax(1) == digits.test.labels).float().mean())
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": math.nan}, "lr=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"proximal": -1.0}, "proximal=-1.0"),
        ({"engine": "fast"}, "engine='fast'"),
        ({"rounds": 0}, "rounds=0"),
        ({"fraction": 0.0}, "fraction=0.0"),
    ],
)
def test_nonsense_is_refused_by_name(digits, clients, change, words):
    with pytest.raises(ValueError, match=words):
        train(small_model(), clients, digits.test, **{"rounds": 1, **change})


def test_divergence_is_said_not_averaged(digits, clients):
    with pytest.raises(ValueError, match="NaN or infinite"):
        train(small_model(), clients, digits.test, rounds=5, epochs=5, lr=1e30)


def test_misfits_are_refused(digits):
    with pytest.raises(ValueError, match="at least one positive"):
        mean(torch.ones(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        mean(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="does not fit"):
        apply_update(small_model(), torch.zeros(3))
    with pytest.raises(ValueError, match="no clients"):
        sample_clients([], 1.0, generator(0))
    with pytest.raises(ValueError, match="empty"):
        evaluate(small_model(), digits.test.subset([]))


def test_the_loop_hands_every_client_the_same_start_counters_included(clients):
    # momentum=None averages over all batches so far: a counter left behind would show.
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, momentum=None), nn.Linear(64, 10))
    settings = {"epochs": 3, "batch_size": None, "lr": 0.1, "momentum": 0.5, "engine": "loop"}
    together, _ = local_updates(model, clients, **settings)
    alone = [local_updates(model, [client], **settings)[0][0] for client in clients]
    assert torch.equal(together, torch.stack(alone))


def test_auto_batches_convolutions_only_where_steps_are_small(clients):
    from flcourse.local import _engine

    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    assert max(len(client) for client in clients) > 32
    chosen = [_engine("auto", convolution, clients, size) for size in (None, 32, 8)]
    assert chosen == ["loop", "loop", "batched"]
    assert _engine("auto", small_model(), clients, None) == "batched"


# --- what reviewers broke ---------------------------------------------------------------------


def ragged(sizes, seed=0):
    draws = generator(seed, "ragged")
    return [
        Client(k, torch.rand(n, 6, generator=draws), torch.randint(0, 3, (n,), generator=draws))
        for k, n in enumerate(sizes)
    ]


def network(*middle):
    with seeded(0, "network"):  # some starts magnify rounding a hundredfold in GroupNorm
        return nn.Sequential(nn.Linear(6, 6), *middle, nn.Linear(6, 3))


def both(model, cohort, **options):
    settings = {"epochs": 2, "batch_size": 4, "lr": 0.1, **options}
    return [local_updates(model, cohort, engine=e, **settings)[0] for e in ("loop", "auto")]


@pytest.mark.parametrize(
    "middle",
    [
        [nn.BatchNorm1d(6, track_running_stats=False)],
        [nn.GroupNorm(2, 6)],
        [nn.RReLU()],
        [nn.Dropout(0.5)],
        [nn.Dropout(0.0)],
    ],
    ids=lambda middle: str(middle[0]),
)
def test_auto_gives_the_loops_rows_for_layers_that_mix_or_draw(middle):
    loop, auto = both(network(*middle), ragged([8, 8, 6, 10]))
    assert torch.allclose(loop, auto, atol=2e-6)


def test_dropout_is_repeatable_and_leaves_the_global_stream_alone():
    model = network(nn.Dropout(0.5))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again = both(model, ragged([8, 6]))
    assert torch.equal(first, again)
    assert torch.equal(torch.rand(2), expected)


def test_what_vmap_cannot_do_is_said_when_asked_for():
    with pytest.raises(ValueError, match="use 'loop'"):
        local_updates(network(nn.RReLU()), ragged([8, 6]), epochs=1, batch_size=4, lr=0.1,
                      engine="batched")  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_a_loss_that_is_not_per_sample_is_refused(engine, reduction):
    def loss(outputs, labels):
        return F.cross_entropy(outputs, labels, reduction=reduction)

    with pytest.raises(ValueError, match="reduction='none'"):
        local_updates(network(), ragged([5, 3]), epochs=1, batch_size=4, lr=0.1, loss=loss,
                      engine=engine)  # fmt: skip
    with pytest.raises(ValueError, match="reduction='none'"):
        evaluate(network(), ragged([5])[0], loss=loss)


def test_full_batches_of_very_unequal_clients_are_trained_in_groups_of_alike_size():
    cohort = ragged([400] + [3] * 60)
    loop, auto = both(network(), cohort, batch_size=None, epochs=1)
    assert torch.allclose(loop, auto, atol=2e-6)


def test_a_mean_of_many_rows_stays_exact_to_rounding():
    rows = torch.full((100_000, 2), 0.1)
    assert float((mean(rows, torch.ones(100_000)) - 0.1).abs().max()) < 1e-7
    with pytest.raises(ValueError, match="decode"):
        mean(torch.ones(2, 2, dtype=torch.int64), torch.ones(2))
    with pytest.raises(ValueError, match="none negative"):
        mean(torch.ones(2, 2), torch.tensor([-1.0, 3.0]))


def test_a_result_of_the_wrong_shape_is_named_not_broadcast(digits, clients):
    def forgot_dim(rows, weights):
        return rows.mean()

    def drops(rows, context):
        return rows[1:]

    with pytest.raises(ValueError, match="forgot_dim returned"):
        train(small_model(), clients, digits.test, rounds=1, aggregate=forgot_dim)
    with pytest.raises(ValueError, match="drops returned"):
        train(small_model(), clients, digits.test, rounds=1, transform=drops)


@pytest.mark.parametrize("option", [{"server_lr": math.nan}, {"server_momentum": 5.0}])
def test_server_options_are_checked(digits, clients, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        train(small_model(), clients, digits.test, rounds=1, **option)


def test_an_update_too_large_for_half_precision_changes_nothing():
    model = nn.Linear(2, 1).half()
    before = flatten(model)
    with pytest.raises(ValueError, match="infinite"):
        apply_update(model, torch.full((3,), 1e5))
    assert torch.equal(flatten(model), before)


def test_a_transform_cannot_change_the_global_model(digits, clients):
    def meddles(rows, context):
        with torch.no_grad():
            for parameter in context.model.parameters():
                parameter.fill_(7)
        return rows

    plain, other = small_model(), small_model()
    train(plain, clients, digits.test, rounds=1)
    train(other, clients, digits.test, rounds=1, transform=meddles)
    assert torch.equal(flatten(plain), flatten(other))


def test_evaluation_of_one_logit_and_modes_left_as_they_were():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    model[1].eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    data = Client(0, torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 0]))

    def binary(outputs, labels):
        return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float(), reduction="none")

    assert evaluate(model, data, loss=binary)[0] == 1
    assert model.training and not model[1].training


def test_json_has_no_infinity_and_names_bound_options(digits, clients, tmp_path):
    from functools import partial

    def scaled(rows, weights, factor):
        return factor * mean(rows, weights)

    history = train(small_model(), clients, digits.test, rounds=1,
                    aggregate=partial(scaled, factor=0.5))  # fmt: skip
    assert history.config["aggregate"] == "scaled(factor=0.5)"
    history.config["note"] = math.inf
    assert json.loads(history.to_json(), parse_constant=pytest.fail)["config"]["note"] == "inf"


def test_nothing_to_train_or_nobody_to_train_it_is_refused():
    settings = {"epochs": 1, "batch_size": 4, "lr": 0.1}
    frozen = network()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        local_updates(frozen, ragged([4]), **settings)
    with pytest.raises(ValueError, match=r"\[1\] hold no samples"):
        local_updates(network(), ragged([4, 0]), **settings)


def test_a_run_cannot_be_resumed_with_fewer_rounds_than_are_done(digits, clients):
    kept = []
    train(small_model(), clients, digits.test, rounds=2, on_round=lambda r, c: kept.append(c))
    assert train(small_model(), clients, digits.test, rounds=2, resume=kept[-1]).rounds == []
    with pytest.raises(ValueError, match="2 rounds are done"):
        train(small_model(), clients, digits.test, rounds=1, resume=kept[-1])


def test_model_and_samples_may_lie_on_different_devices(digits, clients):
    """A chapter trains on the GPU and then looks at the model with samples on the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = small_model()
    train(model, clients, digits.test, rounds=1)
    assert not flatten(model).is_cuda
    rows, _ = local_updates(model.cuda(), clients, epochs=1, batch_size=32, lr=0.1)
    assert rows.is_cuda and not clients[0].inputs.is_cuda
    assert evaluate(model, digits.test)[0] > 0


def test_training_and_evaluation_move_samples_to_the_model():
    """The same without a GPU: samples on PyTorch's meta device must be moved, and so refused."""
    nowhere = [client.to("meta") for client in ragged([4, 4])]
    with pytest.raises(NotImplementedError, match="meta"):
        local_updates(network(), nowhere, epochs=1, batch_size=4, lr=0.1)
    with pytest.raises(NotImplementedError, match="meta"):
        evaluate(network(), nowhere[0])

"""Partitions as properties: whatever the request, no sample is lost, doubled, or nobody's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flcourse.data import Client, Dataset, load_dataset, partition, partition_indices
from flcourse.data.partition import split_dirichlet, split_iid, split_quantity

WAYS = ("iid", "dirichlet", "shards", "quantity", "writer")


def dataset(num_samples: int, num_classes: int = 3, num_writers: int = 4) -> Dataset:
    """Samples that can be told apart: the input of sample `i` is `i`."""
    index = torch.arange(num_samples)
    return Dataset(
        name="toy",
        inputs=index.float().unsqueeze(1),
        labels=index % num_classes,
        classes=tuple("abcdefghij"[:num_classes]),
        writers=index % num_writers,
    )


requests = st.fixed_dictionaries(
    {
        "how": st.sampled_from(WAYS),
        "num_clients": st.integers(1, 12),
        "seed": st.integers(0, 5),
        "alpha": st.floats(0.05, 100),
        "shards_per_client": st.integers(1, 4),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), requests)
def test_every_sample_goes_to_exactly_one_client_and_none_is_empty(num_samples, request):
    data = dataset(num_samples)
    try:
        clients = partition(data, **request)
    except ValueError as refusal:  # only with a reason: too many clients, or none drawn
        assert "use " in str(refusal)
        return
    assert [client.index for client in clients] == list(range(request["num_clients"]))
    assert all(len(client) > 0 for client in clients)
    dealt = torch.cat([client.inputs.flatten() for client in clients])
    assert dealt.sort().values.tolist() == list(range(num_samples))
    for client in clients:  # labels travel with their inputs
        assert torch.equal(client.labels, client.inputs.flatten().long() % 3)


@settings(max_examples=40, deadline=None)
@given(requests)
def test_the_same_seed_gives_the_same_clients(request):
    data = dataset(300)
    try:
        first, again = partition(data, **request), partition(data, **request)
    except ValueError:
        assume(False)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("how", WAYS)
def test_another_seed_gives_other_clients(how):
    data = dataset(300, num_classes=10, num_writers=20)
    first, other = (partition_indices(data, how, 10, seed=seed) for seed in (0, 1))
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 3))
def test_iid_sizes_differ_by_at_most_one(num_samples, num_clients, seed):
    assume(num_clients <= num_samples)
    sizes = [len(part) for part in partition(dataset(num_samples), "iid", num_clients, seed=seed)]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10), st.integers(1, 3), st.integers(0, 3))
def test_shards_bound_the_labels_of_a_client(num_clients, shards_per_client, seed):
    data = dataset(600, num_classes=10)
    clients = partition(data, "shards", num_clients, shards_per_client=shards_per_client, seed=seed)
    # A shard of 600/s samples spans at most ceil(10/s) + 1 labels.
    shards = num_clients * shards_per_client
    most = shards_per_client * (-(-10 // shards) + 1)
    assert all(len(client.labels.unique()) <= most for client in clients)


def test_two_shards_of_the_published_setting_hold_about_two_labels():
    data = dataset(6_000, num_classes=10)
    clients = partition(data, "shards", 100, shards_per_client=2)
    assert {len(client) for client in clients} == {60}
    assert max(len(client.labels.unique()) for client in clients) <= 2


def test_writers_stay_together():
    data = dataset(80)
    alone = partition(data, "writer", 4)
    assert sorted(int(client.inputs[0]) % 4 for client in alone) == [0, 1, 2, 3]
    assert all(len((client.inputs % 4).unique()) == 1 for client in alone)
    pairs = partition(data, "writer", 2)
    assert all(len((client.inputs % 4).unique()) == 2 for client in pairs)


def test_one_glyph_client_per_typeface():
    train, _ = load_dataset("glyphs", num_train=420, num_test=1)
    parts = partition_indices(train, "writer", 21)
    assert train.writers is not None
    assert all(len(train.writers[part].unique()) == 1 for part in parts)


def label_skew(clients: list[Client], num_classes: int) -> float:
    """Mean share of a client's most frequent label: 1/classes if even, 1 if it has but one."""
    shares = [torch.bincount(client.labels, minlength=num_classes).max() / len(client)
              for client in clients]  # fmt: skip
    return float(torch.stack(shares).mean())


def test_small_alpha_is_skewed_and_large_alpha_is_even():
    data = dataset(5_000, num_classes=10)
    skews = [label_skew(partition(data, "dirichlet", 10, alpha=alpha, seed=1), 10)
             for alpha in (0.1, 1, 1_000)]  # fmt: skip
    assert skews[0] > skews[1] > skews[2]
    assert skews[2] == pytest.approx(0.1, abs=0.02)


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution():
    alpha, num_clients = 0.5, 4
    labels = torch.zeros(1_000, dtype=torch.int64)
    draws = [split_dirichlet(labels, num_clients, alpha, seed) for seed in range(300)]
    shares = torch.tensor([[len(part) / 1_000 for part in parts] for parts in draws])
    # Given that none is empty the distribution is slightly less spread than the textbook's.
    variance = (1 / num_clients) * (1 - 1 / num_clients) / (num_clients * alpha + 1)
    assert shares.mean(0).tolist() == pytest.approx([0.25] * 4, abs=0.05)
    assert float(shares.var()) == pytest.approx(variance, rel=0.15)


def test_quantity_mixes_labels_alike_but_not_sizes():
    parts = split_quantity(10_000, 5, 0.5, seed=0)
    sizes = sorted(len(part) for part in parts)
    assert sizes[-1] > 2 * sizes[0]
    labels = torch.arange(10_000) % 2
    large = [part for part in parts if len(part) > 500]
    assert all(float(labels[part].float().mean()) == pytest.approx(0.5, abs=0.1) for part in large)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"how": "random", "num_clients": 2}, "iid, dirichlet, shards, quantity, writer"),
        ({"how": "iid", "num_clients": 0}, "use 1 to 20"),
        ({"how": "iid", "num_clients": 21}, "no client may be empty"),
        ({"how": "shards", "num_clients": 10, "shards_per_client": 3}, "use 1 to 2"),
        ({"how": "shards", "num_clients": 10, "shards_per_client": 0}, "use 1 to 2"),
        ({"how": "writer", "num_clients": 5}, "has 4 writers"),
        ({"how": "dirichlet", "num_clients": 2, "alpha": 0.0}, "positive finite"),
        ({"how": "dirichlet", "num_clients": 2, "alpha": float("nan")}, "positive finite"),
        ({"how": "quantity", "num_clients": 2, "alpha": float("inf")}, "positive finite"),
        ({"how": "dirichlet", "num_clients": 15, "alpha": 0.01}, "larger alpha, fewer clients"),
        ({"how": "quantity", "num_clients": 15, "alpha": 0.001}, "larger alpha, fewer clients"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(request_, reason):
    with pytest.raises(ValueError, match=reason):
        partition(dataset(20), **request_)


def test_a_split_called_alone_refuses_empty_clients_too():
    with pytest.raises(ValueError, match="no client may be empty"):
        split_iid(2, 4, seed=0)


def test_a_data_set_without_writers_says_so():
    train, _ = load_dataset("digits")
    with pytest.raises(ValueError, match="does not know who made its samples"):
        partition(train, "writer", 2)

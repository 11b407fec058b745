"""The protocol end to end: the total is the survivors' sum, and nothing else can be read."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flcourse.data import load_dataset, partition
from flcourse.fedavg import mean, train
from flcourse.models import MLP
from flcourse.secagg import (
    STAGES,
    AbortError,
    Setup,
    as_aggregate,
    run_round,
    secure_sum,
    upload_bytes,
)
from flcourse.secagg.field import word_type
from tests.secagg_round import Round

X = np.random.default_rng(0).uniform(-1, 1, (8, 20))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_total_is_the_survivors_sum_modulo_2k(data):
    """Over n, d, bits, graph and who vanishes when; in Python integers."""
    n, d, bits = (data.draw(st.integers(*r)) for r in ((2, 12), (1, 9), (8, 64)))
    neighbours = data.draw(st.sampled_from([None, 4, 6]))
    holders = n if neighbours is None or neighbours >= n - 1 else neighbours + 1
    threshold = holders // 2 + 1
    leaving = data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, holders - threshold))]
    when = {i: data.draw(st.sampled_from(STAGES)) for i in leaving}
    dropouts = {stage: [i for i in when if when[i] == stage] for stage in STAGES}
    rng = np.random.default_rng(n * d * bits)
    words = rng.integers(0, 2**bits - 1, (n, d), np.uint64, endpoint=True).astype(word_type(bits))
    run = run_round(words, bits=bits, threshold=threshold, neighbours=neighbours, dropouts=dropouts)
    staying = [i for i in range(n) if when.get(i, STAGES[-1]) in STAGES[3:]]
    assert run.survivors == tuple(staying)
    exact = [sum(int(words[i, j]) for i in staying) % 2**bits for j in range(d)]
    assert run.total.tolist() == exact


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("neighbours", [None, 6])
def test_dropouts_at_every_stage(stage, neighbours):
    result = secure_sum(
        X, clip=1.0, neighbours=neighbours, threshold=5, dropouts={stage: [0, 5]}
    )  # fmt: skip
    expected = [0, *range(1, 8)] if stage in STAGES[3:] else [1, 2, 3, 4, 6, 7]
    assert list(result.survivors) == expected
    assert np.abs(result.total - X[expected].sum(axis=0)).max() <= result.error_bound


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_the_round_ends_without_a_sum(stage):
    most = 8 - (2 * 8 // 3 + 1)
    secure_sum(X, clip=1.0, dropouts={stage: range(most)})  # just enough stay
    with pytest.raises(AbortError, match="of 8 clients"):
        secure_sum(X, clip=1.0, dropouts={stage: range(most + 1)})


def test_after_an_abort_nothing_was_opened():
    """Too few masked vectors: the server closes nothing, and what it holds is uniform."""
    game = Round(6, length=4000).until("masked_input")
    for index in range(4):  # five are needed
        game.server.receive(game.answer(index))
    with pytest.raises(AbortError):
        game.server.advance()
    assert game.server.stage == "masked_input"
    with pytest.raises(Exception, match="masks are still on"):
        game.server.total()
    seen = game.server._sum >> 24
    assert stats.chisquare(np.bincount(seen, minlength=256)).pvalue > 1e-6


@pytest.mark.parametrize("bits", [8, 16, 20, 32, 48, 64])
def test_masked_vectors_are_uniform_whatever_is_in_them(bits):
    game = Round(3, length=20_000, bits=bits)
    for client in game.clients:
        client._words[:] = 0
    game.until("masked_input")
    low = []
    for index in game.inbox:
        data = game.answer(index)[22:-64]
        cells = np.frombuffer(data, np.uint8)
        assert stats.chisquare(np.bincount(cells, minlength=256)).pvalue > 1e-6
        low.append(cells.astype(float))
    for a, b in pairwise(low):
        assert abs(np.corrcoef(a, b)[0, 1]) < 6 / math.sqrt(len(a))


def test_equal_vectors_of_two_rounds_look_unrelated():
    first, second = (Round(3, length=5000).until("masked_input").answer(0) for _ in range(2))
    same = np.frombuffer(first[22:-64], np.uint8) == np.frombuffer(second[22:-64], np.uint8)
    assert same.mean() == pytest.approx(1 / 256, abs=0.004)


def test_torch_comes_back_as_torch_and_integers_are_exact():
    result = secure_sum(torch.tensor([[8.0], [5.0], [11.0]]), clip=12.0, bits=64)
    assert isinstance(result.total, torch.Tensor) and result.total.dtype == torch.float64
    assert float(result.total) == pytest.approx(24, abs=1e-9)
    half = secure_sum(torch.ones(2, 3, dtype=torch.bfloat16), clip=1.0)
    assert half.total.tolist() == pytest.approx([2.0] * 3, abs=half.error_bound)


def test_stochastic_rounding_reaches_the_sum():
    x = np.full((4, 4000), 0.3)
    result = secure_sum(x, clip=1.0, bits=8, rounding="stochastic")
    assert len(set(result.total.tolist())) > 2
    assert result.total.mean() == pytest.approx(1.2, abs=6 * result.error_bound / math.sqrt(4000))
    assert np.abs(result.total - 1.2).max() <= result.error_bound


def test_the_transcript_holds_every_message():
    result = secure_sum(X, clip=1.0, dropouts={"masked_input": [3]}, keep=True)
    up = [sent for sent in result.transcript if sent.receiver == -1]
    for stage in STAGES:
        expected = 8 if STAGES.index(stage) < 2 else 7
        assert sum(sent.stage == stage for sent in up) == expected
    for index in range(8):
        assert result.bytes.up[index] == sum(s.size for s in up if s.sender == index)
        assert result.bytes.down[index] == sum(
            s.size for s in result.transcript if s.receiver == index
        )
    assert all(len(sent.content) == sent.size for sent in result.transcript)
    assert secure_sum(X, clip=1.0).transcript[0].content is None
    assert result.seconds.total > 0 and result.seconds.client.shape == (5, 8)


def test_a_client_sends_little_more_than_its_vector():
    x = np.zeros((30, 10_000))
    full = secure_sum(x, clip=1.0).bytes.up.max() / 40_000
    sparse = secure_sum(x, clip=1.0, neighbours=6).bytes.up.max() / 40_000
    packed = secure_sum(x, clip=1.0, bits=12, neighbours=6).bytes.up.max() / 15_000
    assert 1 < sparse < full < 1.12 and packed < 1.12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 4}, "more than half"),
        ({"threshold": 9}, "at most all"),
        ({"neighbours": 3}, "even"),
        ({"bits": 7}, "from 8 to 64"),
        ({"clip": 0.5}, r"\(0, 0\)"),
        ({"dropouts": {"lunch": [1]}}, "the stages are"),
        ({"dropouts": {"unmasking": [8]}}, "there are 8"),
        ({"dropouts": {"unmasking": [1], "share_keys": [1]}}, "twice"),
    ],
)
def test_options_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        secure_sum(np.ones((8, 2)) * 0.9, **{"clip": 1.0} | options)


@pytest.mark.parametrize("vectors", [np.ones(3), np.ones((0, 3)), np.ones((3, 0))])
def test_vectors_must_be_a_matrix(vectors):
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        secure_sum(vectors, clip=1.0)


def test_one_client_has_no_sum_to_hide_in():
    with pytest.raises(ValueError, match="at least 2"):
        secure_sum(np.ones((1, 3)), clip=1.0)
    with pytest.raises(ValueError, match="empty"):
        Setup((b"", b""), 0)


# --- as an aggregate ----------------------------------------------------------------------------


def test_the_secure_mean_is_the_weighted_mean():
    rows, weights = torch.from_numpy(X).float(), torch.tensor([3, 9, 1, 0, 5, 5, 2, 40])
    sums = []
    secure = as_aggregate(clip=1.0, max_weight=100, bits=48, on_sum=sums.append)
    got = secure(rows, weights)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), mean(rows.double(), weights), atol=1e-6)
    assert sums[0].survivors == tuple(range(8))
    staying = [0, 1, 3, 4, 5, 6, 7]
    partial = as_aggregate(clip=1.0, max_weight=100, bits=48, dropouts={"masked_input": [2]})
    expected = mean(rows[staying].double(), weights[staying])
    assert torch.allclose(partial(rows, weights).double(), expected, atol=1e-6)


def test_the_secure_mean_refuses():
    rows = torch.full((4, 3), 0.5)
    secure = as_aggregate(clip=1.0, max_weight=10)
    with pytest.raises(ValueError, match="max_weight=10"):
        secure(rows, torch.tensor([1, 2, 3, 11]))
    with pytest.raises(ValueError, match="max_weight=10"):
        secure(rows, torch.tensor([1, 2, 3, math.nan]))
    with pytest.raises(ValueError, match="sum to zero"):
        secure(rows, torch.zeros(4))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):  # though its weight makes it small
        bad = rows.clone()
        bad[2, 1] = 1.5
        secure(bad, torch.ones(4))
    with pytest.raises(ValueError, match="positive"):
        as_aggregate(clip=1.0, max_weight=0)


def test_training_with_it_ends_where_the_mean_ends():
    data, test = load_dataset("glyphs", num_train=80, num_test=20)
    clients = partition(data, "iid", 4, seed=0)
    models = []
    for aggregate in (mean, as_aggregate(clip=10.0, max_weight=100, bits=48, neighbours=2)):
        model = MLP(seed=0)
        train(model, clients, test, rounds=2, lr=0.05, aggregate=aggregate)
        models.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*models, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"neighbours": 4}, {"bits": 20}, {"bits": 9, "neighbours": 6}]
)
def test_upload_is_what_the_message_sizes_say(options):
    result = secure_sum(X, clip=1.0, **options)
    expected = upload_bytes(8, 20, **options)
    assert set(result.bytes.up.tolist()) == {sum(expected.values())}
    for sent in result.transcript:
        assert sent.receiver != -1 or sent.size == expected[sent.stage]


def test_upload_at_the_papers_setting():
    """2^10 clients, 2^20 entries of 16 bits, so sums of 26: Bonawitz et al. 2017 state 1.73."""
    sent = sum(upload_bytes(2**10, 2**20, bits=26).values())
    assert sent / (2**20 * 2) <= 1.73

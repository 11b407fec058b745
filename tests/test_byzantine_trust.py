"""FLTrust against its formula, the cluster filter against what it must keep and leave out."""

import math

import pytest
import torch

from flcourse.byzantine import DroppedRows, cluster_filter, fltrust, root_set, root_update
from flcourse.data import Dataset
from flcourse.fedavg import apply_update, local_updates
from flcourse.models import MLP


def rows_of(n: int, d: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + offset


def brute_fltrust(rows: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    rows, root = rows.double(), root.double()
    trust = [max(float(torch.cosine_similarity(row, root, dim=0)), 0.0) for row in rows]
    parts = [t * root.norm() / row.norm() * row for t, row in zip(trust, rows, strict=True)]
    return torch.stack(parts).sum(0) / sum(trust)


def test_fltrust_is_the_formula() -> None:
    rows, root = rows_of(12, 3000, offset=0.2), rows_of(1, 3000, 1, 0.2)[0]
    rows[:4] *= -3
    rows[5] *= 1e4
    mine = fltrust(rows, root)
    torch.testing.assert_close(mine.double(), brute_fltrust(rows, root), rtol=1e-5, atol=1e-6)


def test_by_hand() -> None:
    rows = torch.tensor([[10.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 1.0]])
    share = 1 / math.sqrt(2)  # trusts: 1, 0, 0, 1/√2; each row becomes 2 long
    wanted = torch.tensor([2 + share * 2 * share, share * 2 * share]) / (1 + share)
    torch.testing.assert_close(fltrust(rows, torch.tensor([2.0, 0.0])), wanted)


def test_opposed_rows_get_no_trust_and_if_all_are_there_is_no_step() -> None:
    root = rows_of(1, 100)[0]
    assert torch.equal(fltrust(-root.expand(5, 100) * 7, root), torch.zeros(100))


def test_it_is_no_longer_than_the_servers_row_whoever_lies() -> None:
    root = rows_of(1, 300)[0]
    for lie in (3e38, -3e38, 1e-30):
        rows = torch.cat([torch.full((9, 300), lie), root[None] * 5])
        result = fltrust(rows, root)
        assert result.norm() <= root.norm() * 1.0001
        assert torch.cosine_similarity(result, root, dim=0) > 0.05


@pytest.mark.parametrize("size", [1e-40, 1e-20, 3e38])
def test_a_servers_row_of_any_size_is_a_direction(size: float) -> None:
    root = rows_of(1, 300)[0].sign()
    result = fltrust(torch.cat([-root[None] * 7, root[None] * 5]), root * size)
    torch.testing.assert_close(result.double(), (root * size).double(), rtol=1e-4, atol=0)


def test_lengths_are_those_of_whole_rows_not_of_layers() -> None:
    """Normalised layer by layer (three of them), a row comes out √3 times too long."""
    rows, root = rows_of(6, 300, offset=1.0), rows_of(1, 300, 1, 1.0)[0]
    by_layer = torch.cat([fltrust(rows[:, s], root[s] / root[s].norm()) for s in _thirds()])
    whole = fltrust(rows, root / root.norm())
    assert whole.norm() == pytest.approx(1, rel=0.3)
    assert (by_layer.norm() / whole.norm()) == pytest.approx(math.sqrt(3), rel=0.05)


def _thirds() -> list[slice]:
    return [slice(0, 100), slice(100, 200), slice(200, 300)]


def test_rows_of_zeros_are_not_trusted() -> None:
    root = torch.tensor([1.0, 0.0])
    assert fltrust(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), root).tolist() == [1.0, 0.0]


def test_fltrust_refuses() -> None:
    rows = rows_of(4, 3)
    for wrong in (torch.zeros(3), torch.tensor([1.0, math.nan, 0.0])):
        with pytest.raises(ValueError, match="zero or not finite"):
            fltrust(rows, wrong)
    with pytest.raises(ValueError, match=r"\[2\] does not fit rows \[4, 3\]"):
        fltrust(rows, torch.ones(2))


def test_the_root_set_and_its_update() -> None:
    data = Dataset("toy", rows_of(400, 8), torch.arange(400) % 2, ("no", "yes"))
    root = root_set(data, generator=torch.Generator().manual_seed(0))
    assert (len(root), root.index) == (100, -1)
    with pytest.raises(ValueError, match="size=401"):
        root_set(data, 401, generator=torch.Generator())
    model = MLP(8, num_classes=2)
    local = {"epochs": 1, "batch_size": 20, "lr": 0.1}
    update = root_update(model, root, **local)
    torch.testing.assert_close(update(), local_updates(model, [root], round=1, **local)[0][0])
    apply_update(model, update())
    torch.testing.assert_close(update(), local_updates(model, [root], round=3, **local)[0][0])


# --- the cluster filter ------------------------------------------------------------------------


def test_honest_clients_that_differ_are_kept_and_those_who_turn_round_are_not() -> None:
    honest = rows_of(15, 2000, offset=0.3)  # cosines near 0.08: all but orthogonal
    liars = -honest[:5]
    result = cluster_filter(torch.cat([liars, honest]))
    wanted = honest.mean(0)
    assert (result - wanted).norm() < 0.5 * wanted.norm()
    with pytest.raises(ValueError, match=r"within eps=0.5 of its direction"):
        cluster_filter(torch.cat([liars, honest]), eps=0.5)


def test_one_tight_cluster_against_a_tight_minority() -> None:
    honest, liars = rows_of(12, 500) * 0.1 + 1, rows_of(8, 500, 1) * 0.1
    liars[:, :250] += 1
    result = cluster_filter(torch.cat([liars, honest]))
    norms = honest.norm(dim=1)
    cut = honest * (norms.median() / norms).clamp(max=1)[:, None]
    assert (result - cut.mean(0)).norm() < 0.5 * (honest - honest.mean(0)).norm(dim=1).mean()


@pytest.mark.parametrize("length", [1e3, 1e19, 3e38])
def test_a_boaster_in_the_right_direction_is_cut_to_the_median_length(length: float) -> None:
    honest = rows_of(15, 500) * 0.1 + 1
    rows = torch.cat([honest, torch.full((3, 500), length)])
    result = cluster_filter(rows)
    assert result.norm() <= honest.norm(dim=1).max()
    assert (result - honest.mean(0)).norm() < 0.2 * honest.mean(0).norm()


def test_angles_are_told_apart_at_a_common_offset() -> None:
    """At an offset of 1,000 spreads all angles are below 0.002: a plain cosine sees only zeros."""
    honest = rows_of(15, 500) * 1e-3 + 1
    liars = honest[:4].clone()
    liars[:, :250] += 0.1
    result = cluster_filter(torch.cat([liars, honest]))
    assert (result - honest.mean(0)).norm() < 5e-3


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-30])
def test_a_huge_row_keeps_its_angle_beside_tiny_ones(scale: float) -> None:
    """Brought to their length it must not vanish: a row of zeros would count and add nothing."""
    honest = rows_of(15, 2000, offset=0.3) * scale
    rows = torch.cat([torch.full((5, 2000), -3e38), honest])
    wanted = honest.double().mean(0)
    assert (cluster_filter(rows).double() - wanted).norm() < 0.05 * wanted.norm()


def test_cluster_filter_with_tiny_and_zero_rows() -> None:
    honest = rows_of(9, 100) * 0.1 + 1
    rows = torch.cat([honest, torch.zeros(2, 100), torch.full((1, 100), 1e-30)])
    assert torch.isfinite(cluster_filter(rows)).all()
    assert torch.equal(cluster_filter(torch.zeros(4, 3)), torch.zeros(3))


def test_cluster_filter_refuses_and_says_what_it_drops() -> None:
    rows = rows_of(9, 20, offset=1)
    for options in ({"eps": -1.0}, {"min_samples": 0}):
        with pytest.raises(ValueError, match=r"eps=.*min_samples="):
            cluster_filter(rows, **options)
    bad = torch.cat([rows, torch.full((1, 20), math.inf)])
    with pytest.warns(DroppedRows):
        torch.testing.assert_close(cluster_filter(bad), cluster_filter(rows))

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

from flcourse.attacks.exact import exact_batch
from flcourse.attacks.observe import observe_gradient, observe_step, observe_update
from flcourse.attacks.scoring import score
from flcourse.data import load_dataset
from flcourse.models import MLP, LeNet, Logistic, Normalise


@lru_cache
def pictures(name):
    data = load_dataset(name)
    return torch.cat([data.train.inputs[:400], data.test.inputs])


def batch(name, count, seed):
    images = pictures(name)
    source = torch.Generator().manual_seed(seed)
    chosen = images[torch.randperm(len(images), generator=source)[:count]]
    return chosen, torch.randint(10, (count,), generator=source)


def check(model, leak, images, labels, at_least=100.0, **options):
    found = exact_batch(model, leak, **options)
    assert found.images is not None, found.stopped_at
    scores = score(found, images, labels)
    assert float(scores.psnr.min()) > at_least and scores.label_match == 1
    # Labels belong to their pictures, not only to the batch.
    assert torch.equal(found.labels[scores.order], labels)
    return found


@pytest.mark.parametrize("count", range(1, 9))
def test_batches_come_back_exactly_for_every_seed(count):
    for seed in range(10):
        images, labels = batch("glyphs", count, seed)
        model = MLP(784, 300, 10, seed=seed)
        found = check(model, observe_gradient(model, images, labels), images, labels)
        assert found.loss < 1e-5


def test_colour_pictures_of_few_classes():
    """Two classes among eight pictures: gradients of one class are alike, the hard case."""
    for seed in range(10):
        images, labels = batch("photos", 8, seed)
        model = MLP(3072, 200, 10, seed=seed)
        check(model, observe_gradient(model, images, labels % 2), images, labels % 2)


def test_a_batch_of_twelve():
    images, labels = batch("glyphs", 12, 0)
    model = MLP(784, 300, 10)
    check(model, observe_gradient(model, images, labels), images, labels)


def deep(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        Normalise((0.3,), (0.4,)),
        nn.Flatten(),
        nn.Linear(784, 200),
        nn.ReLU(),
        nn.Linear(200, 50),
        nn.Tanh(),
        nn.Linear(50, 10),
    )


def test_other_networks_signals_and_dtypes():
    images, labels = batch("glyphs", 4, 3)
    check(deep(), observe_gradient(deep(), images, labels), images, labels)
    model = MLP(784, 300, 10)
    check(model, observe_step(model, images, labels, lr=0.1), images, labels, at_least=60)
    leak = observe_gradient(model, images, labels)
    clipped = leak.with_row(0.01 * leak.row / leak.row.norm(), clip_norm=0.01)
    check(model, clipped, images, labels)
    double = MLP(784, 300, 10).double()
    leak = observe_gradient(double, images.double(), labels)
    assert check(double, leak, images.double(), labels).images.dtype == torch.float64


@pytest.mark.parametrize("outputs", [1, 2])
def test_two_classes_need_a_second_hidden_layer(outputs):
    """Right behind the layer, all samples have a gradient of one shape; behind another, not."""
    torch.manual_seed(0)
    head = nn.Linear(200, outputs)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), head)
    images, _ = batch("glyphs", 4, 1)
    labels = torch.tensor([0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"one shape.*match_gradients"):
        exact_batch(model, observe_gradient(model, images, labels))
    deeper = nn.Sequential(*model[:3], nn.Linear(200, 200), nn.ReLU(), head)
    check(deeper, observe_gradient(deeper, images, labels), images, labels)


def test_rows_of_a_table():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 200), nn.ReLU(), nn.Linear(200, 3))
    rows = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    found = exact_batch(model, observe_gradient(model, rows, torch.tensor([0, 1, 2, 2, 1])))
    order = torch.cdist(rows, found.images).argmin(dim=1)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert torch.allclose(found.images[order], rows, atol=1e-4)


def test_a_picture_that_occurs_twice_is_said_to():
    images, labels = batch("glyphs", 5, 2)
    images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
    model = MLP(784, 300, 10)
    found = check(model, observe_gradient(model, images, labels), images, labels)
    protocol = " ".join(layer.what for layer in found.layers)
    assert "rank 5 of 6" in protocol and "occurs 2 times" in protocol


def test_the_same_seed_gives_the_same_answer():
    images, labels = batch("glyphs", 6, 2)
    model = MLP(784, 300, 10)
    leak = observe_gradient(model, images, labels)
    first, again = (exact_batch(model, leak, seed=4) for _ in range(2))
    assert torch.equal(first.images, again.images) and first.evaluations == again.evaluations


def test_what_fails_the_check_is_not_returned():
    images, labels = batch("glyphs", 4, 0)
    model = MLP(784, 300, 10)
    leak = observe_gradient(model, images, labels)
    noise = torch.randn(leak.row.shape, generator=torch.Generator().manual_seed(0))
    drowned = exact_batch(model, leak.with_row(leak.row + 0.01 * noise), max_starts=512)
    assert drowned.images is None and "drowns" in drowned.stopped_at
    # A batch of four that claims to be of three, and the gradient of another model.
    claimed = observe_gradient(model, images[:3], labels[:3]).with_row(leak.row)
    assert exact_batch(model, claimed, max_starts=512).images is None
    other = exact_batch(MLP(784, 300, 10, seed=9), leak, max_starts=512)
    assert other.images is None and "weights" in other.stopped_at
    # All of the first layer is right, and only the recomputed gradient can tell.
    values = {**leak.values, "3.weight": 2 * leak.values["3.weight"]}
    tampered = exact_batch(model, replace(leak, values=values), max_starts=512)
    assert tampered.images is None and "it is wrong" in tampered.stopped_at


def test_a_search_that_ends_too_early_says_so():
    images, labels = batch("glyphs", 16, 0)
    model = MLP(784, 60, 10)  # too few neurons for sixteen samples
    found = exact_batch(model, observe_gradient(model, images, labels), max_starts=512)
    assert found.images is None and "raise max_starts" in found.stopped_at
    assert found.evaluations == 512


def test_refusals_name_the_remedy():
    images, labels = batch("glyphs", 4, 0)

    def refuse(model, match, leak=None):
        with pytest.raises(ValueError, match=match):
            exact_batch(model, leak or observe_gradient(model, images, labels))

    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.Tanh(), nn.Linear(30, 10))
    refuse(smooth, "needs ReLU.*match_gradients")
    refuse(Logistic(784, 10), "needs ReLU")
    leaky = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.LeakyReLU(), nn.Linear(30, 10))
    refuse(leaky, "needs ReLU")
    refuse(LeNet(10, channels=1, image_size=28), "mixes before.*peel")
    refuse(MLP(784, 3, 10), "more neurons and inputs than samples")
    model = MLP(784, 300, 10)
    steps = observe_update(model, images, labels, lr=0.1, epochs=3, batch_size=2)
    refuse(model, "6 local steps.*match_gradients", steps)

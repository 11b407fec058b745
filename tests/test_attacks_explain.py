import pytest
import torch
from torch import nn

from flcourse.attacks.explain import explain
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.linear import divide
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.recursive import peel
from flcourse.models import MLP, LeNet, LightCNN, NextToken, SimpleCNN


@pytest.mark.parametrize(
    ("model", "attack", "shape"),
    [
        (LeNet(100), "peel", (3, 32, 32)),
        (LightCNN(), "peel", (1, 28, 28)),
        (SimpleCNN(10), "invert_features", (3, 32, 32)),
        (MLP(), "divide", (784,)),
        (NextToken(20), "infer_labels", ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_network_of_the_course_gets_its_attack(model, attack, shape):
    found = explain(model)
    assert (found.attack, found.image_shape) == (attack, shape)
    assert f"use {attack}" in str(found)
    assert f"use {attack}" in found._repr_markdown_()


def test_equations_and_unknowns_of_lenet_are_those_of_counting_by_hand():
    rows = {row.layer.split()[0]: row for row in explain(LeNet(100)).rows}
    # The first convolution: 3·32·32 pixels; 12·25 filter places by 3 channels, 12·16·16 outputs,
    # less the 12·12 that both tell.
    assert rows["0"].unknowns == 3 * 32 * 32
    assert rows["0"].equations == 12 * 25 * 3 + 12 * 16 * 16 - 12 * 12
    assert rows["7"].unknowns == 768
    assert [row.layer[0] for row in explain(LeNet(100)).rows] == list("76543210")


def test_large_pictures_leave_fewer_equations_than_unknowns_and_it_says_where():
    found = explain(LeNet(100, image_size=64), (3, 64, 64))
    assert found.attack != "peel"
    assert found.stopped_at.startswith("2 (Conv2d): 6,528 equations for 12,288 unknowns")
    assert "not reached" in found.rows[-1].verdict
    assert "is no privacy" in str(found)


def test_the_advice_holds_on_a_picture_it_never_saw():
    torch.manual_seed(0)
    images, labels = torch.rand(1, 3, 32, 32), torch.tensor([4])
    mixed = nn.Sequential(nn.Flatten(), nn.Linear(3072, 30), nn.ReLU(), nn.Linear(30, 7))
    for model, attack in ((LeNet(10), peel), (mixed, divide)):
        assert explain(model, (3, 32, 32)).attack == attack.__name__
        recovery = attack(model, observe_gradient(model, images, labels))
        torch.testing.assert_close(recovery.images, images, atol=5e-3, rtol=0)


def test_where_nothing_is_linear_it_sends_to_matching_which_runs():
    pooled = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    found = explain(pooled)
    assert found.attack == "match_gradients"
    assert found.stopped_at.startswith("2 (AdaptiveAvgPool2d)")
    leak = observe_gradient(pooled, torch.rand(1, 3, 32, 32), torch.tensor([0]))
    recovery = match_gradients(pooled, leak, labels=torch.tensor([0]), steps=2)
    assert recovery.images.shape == (1, 3, 32, 32)


def test_any_module_is_taken_and_the_model_is_left_as_it_was():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm2d(3), nn.Linear(3072, 5)

        def forward(self, x):
            return self.out(self.norm(x).flatten(1))

    model = Own()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = explain(model, (3, 32, 32))
    assert found.attack == "match_gradients"
    assert "the algebra does not know this layer" in str(found)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert model.training


def test_labels_are_promised_only_where_a_rule_reads_them():
    def reason(*last):
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.Sigmoid(), *last)
        return str(explain(model, (3, 4, 4)))

    assert "its sign is the label" in reason(nn.Linear(20, 1))
    assert "no bias in the last layer" in reason(nn.Linear(20, 4, bias=False))
    assert "negative only at the label" in reason(nn.Linear(20, 4))
    assert "no rule reads them" in reason(nn.Linear(20, 4), nn.LogSoftmax(dim=1))


def test_a_shape_that_does_not_fit_names_the_layer_and_an_unknown_one_asks_for_it():
    with pytest.raises(ValueError, match=r"3, 20, 20.*do not pass 7 \(Linear\)"):
        explain(LeNet(10), (3, 20, 20))
    odd = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 15 * 15, 3))
    with pytest.raises(ValueError, match="give image_shape"):
        explain(odd)
    assert explain(odd, (3, 17, 17)).attack == "peel"

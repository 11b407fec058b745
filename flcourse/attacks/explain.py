"""Which attack applies to a model, and why: equations against unknowns, layer by layer. Chapter 05.

It is not guessed from the layers' names: the attacks are rehearsed on a picture that the attacker
draws for himself, at the model's own weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flcourse.attacks.basis import make_basis
from flcourse.attacks.chain import Link, read_chain
from flcourse.attacks.inverses import is_exact
from flcourse.attacks.linear import divide
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.recursive import peel
from flcourse.attacks.types import Leak, Recovery
from flcourse.models import Normalise
from flcourse.runtime import generator

# A rehearsal counts as solved where the gradient at its answer is the leak's, up to this.
SOLVED = 1e-2
_SIDES = (32, 28, 64, 224, 16, 48, 96, 128, 8, 14, 56, 112, 256)
_NOT_PRIVACY = (
    "That an attack stops here is no privacy: it says what this algebra can do, not what an "
    "attacker can. The gradient holds as much about the picture as before, the label is read in "
    "most models, other attacks start from the same message, and a later round, other weights or "
    "a server that lies about them change the count. Only a bound on what *any* attack can learn "
    "is privacy (chapter 10)."
)
_SOLVED_NOTE = (
    "Where another picture, trained weights or a defence make the equations poorer, the attack "
    "notices: it recomputes the gradient at its answer (`Recovery.loss`)."
)


@dataclass(frozen=True)
class Row:
    """One layer in the table: from its output and its gradient to its input."""

    layer: str
    output: str
    unknowns: int
    equations: int | None
    verdict: str


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found. ``attack`` is the function to call for one sample's gradient.

    ``attack``: ``"divide"``, ``"peel"``, ``"invert_features"``, ``"match_gradients"`` or
    ``"infer_labels"``. ``loss`` is the rehearsal's (NaN where it stopped), ``rows`` run from the
    last layer to the first.
    """

    model: str
    image_shape: tuple[int, ...]
    parameters: int
    attack: str
    reasons: tuple[str, ...]
    rows: tuple[Row, ...]
    stopped_at: str | None
    loss: float

    def __str__(self) -> str:
        lines = [self._title(), ""]
        head = ("layer (from the end)", "output", "unknowns", "equations", "")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(4)]
        for line in table if self.rows else []:
            left = "  ".join(
                cell.rjust(width) if column > 1 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line[:4], widths, strict=True))
            )
            lines.append(f"{left}  {line[4]}".rstrip())
        return "\n".join([*lines, *([""] if self.rows else []), *(f"- {r}" for r in self.reasons)])

    def _repr_markdown_(self) -> str:
        lines = [f"**{self._title()}**", ""]
        if self.rows:
            lines += [
                "| layer, from the end | output | unknowns | equations | |",
                "|---|---|---|---|---|",
            ]
            lines += ["| " + " | ".join(_cells(row)) + " |" for row in self.rows]
            lines.append("")
        return "\n".join([*lines, *(f"- {reason}" for reason in self.reasons)])

    def _title(self) -> str:
        shape = "×".join(map(str, self.image_shape)) or "tokens"
        return (
            f"{self.model} ({self.parameters:,} values in a gradient, input {shape}): "
            f"use {self.attack}"
        )


def explain(model: nn.Module, image_shape: Sequence[int] | None = None) -> Explanation:
    """Which attack applies to one sample's gradient of this model, and why; then batches.

    The table goes from the last layer to the first, as ``peel`` does: ``unknowns`` are the values
    of a layer's input, ``equations`` the independent ones that gradient and output give, counted in
    a rehearsal on a picture drawn from the 1/f prior, at the weights that the model has now and in
    the mode that it is in. ``image_shape`` is ``(c, h, w)`` or ``(f,)``; without it, the usual
    sizes are tried. ``print`` it, or show it in a notebook.

    Chapter 05. Raises ``ValueError`` if no usual size fits, pictures of that shape do not pass, or
    nothing is trained.
    """
    kind, count = (
        type(model).__name__,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
    if any(isinstance(module, nn.Embedding) for module in model.modules()):
        reason = (
            "The input are tokens, which no gradient descent can move: the label is read from the "
            "last layer (infer_labels), and the embedding's gradient names the tokens used."
        )
        shape = tuple(image_shape or ())
        both = (reason, _NOT_PRIVACY)
        return Explanation(kind, shape, count, "infer_labels", both, (), None, math.nan)
    shape = _shape(model, image_shape)
    links = read_chain(model, shape)
    images = _picture(model, shape)
    leak = observe_gradient(model, images, torch.zeros(1, dtype=torch.int64, device=images.device))
    attack, found = _choose(model, leak, images)
    protocol = peel(model, leak) if attack == "divide" else found
    rows = tuple(_row(link, protocol) for link in reversed(links))
    reasons = (*_why(attack, found, links), *_labels(links), *_batches(links), _closing(attack))
    return Explanation(kind, shape, count, attack, reasons, rows, found.stopped_at, found.loss)


def _shape(model: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        return tuple(given)
    channels, table = 3, 0
    for module in model.modules():
        if isinstance(module, Normalise):
            channels = len(module.mean)
        if isinstance(module, nn.Conv2d):
            channels = module.in_channels
            break
        if isinstance(module, nn.Linear):
            table = module.in_features
            break
    shapes = [(table,)] if table else [(channels, side, side) for side in _SIDES]
    for shape in shapes:
        try:
            read_chain(model, shape)
        except ValueError:
            continue
        return tuple(shape)
    raise ValueError(
        f"{type(model).__name__} takes none of the usual picture sizes: give "
        "image_shape=(channels, height, width)"
    )


def _picture(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A picture of the attacker's own to rehearse on, ``[1, *shape]``."""
    source = generator(0, "explain")
    if len(shape) == 3:
        basis = make_basis("dct", shape, prior=True)
        picture = basis.decode(torch.randn(shape, generator=source, dtype=torch.float64))
    else:
        picture = torch.rand(shape, generator=source, dtype=torch.float64)
    return picture.clamp(0, 1)[None].to(next(model.parameters()).detach())


def _choose(model: nn.Module, leak: Leak, images: Tensor) -> tuple[str, Recovery]:
    def solved(recovery: Recovery) -> bool:
        if recovery.images is None or recovery.loss > SOLVED:
            return False
        return float((recovery.images - images).norm() / images.norm()) < SOLVED

    try:
        divided = divide(model, leak)
        if solved(divided):
            return "divide", divided
    except ValueError:
        pass  # it says that something mixes before the first linear layer
    found = peel(model, leak)
    if solved(found):
        return "peel", found
    if found.images is not None:
        reason = f"the answer's gradient is {found.loss:.0%} away: too many equations are weak"
        return "match_gradients", replace(found, stopped_at=reason)
    return ("invert_features" if _worth(found, leak) else "match_gradients"), found


def _worth(found: Recovery, leak: Leak) -> bool:
    """Features behind which a picture can be seen: exact, and not far fewer than its values."""
    if found.features is None or max(layer.residual for layer in found.layers) > SOLVED:
        return False
    return found.features.numel() * 4 >= math.prod(leak.image_shape)


def _row(link: Link, found: Recovery) -> Row:
    output = "×".join(map(str, link.out_shape))
    unknowns = math.prod(link.in_shape)
    for layer in found.layers:
        if layer.name == link.title:
            verdict = f"solved to {layer.residual:.0e}: {layer.what}"
            return Row(link.title, output, unknowns, layer.equations, verdict)
    if found.stopped_at is not None and found.stopped_at.startswith(f"{link.title}: "):
        why = found.stopped_at.removeprefix(f"{link.title}: ")
        return Row(link.title, output, unknowns, None, f"stops: {why}")
    if link.kind == "reshape":
        return Row(link.title, output, unknowns, unknowns, "the same values in another shape")
    return Row(link.title, output, unknowns, None, "not reached")


def _cells(row: Row) -> tuple[str, ...]:
    equations = "" if row.equations is None else f"{row.equations:,}"
    return row.layer, row.output, f"{row.unknowns:,}", equations, row.verdict


def _why(attack: str, found: Recovery, links: tuple[Link, ...]) -> tuple[str, ...]:
    if attack == "divide":
        return (
            "One sample: divide. A linear layer with a bias sees the picture first, so that every "
            "row of its gradient is the picture times a number, which the bias's gradient gives.",
        )
    if attack == "peel":
        hiding = {type(k.module).__name__ for k in links if k.kind == "activation"} - {
            type(k.module).__name__ for k in links if is_exact(k.module)
        }
        folded = " and ".join(sorted(hiding))
        return (
            "One sample: peel. Every layer gives at least as many equations as its input has "
            f"unknowns; rehearsed, the answer's gradient agrees to {found.loss:.0e}."
            + (f" The values that {folded} hides are filled in by the gradient." if folded else ""),
        )
    where = f"The closed form stops at {found.stopped_at}."
    if attack == "invert_features":
        assert found.features is not None
        return (
            where,
            f"One sample: peel, then invert_features. {found.features.numel():,} values of the "
            f"output of layer {found.features_at} are exact, and the picture that has them is "
            f"searched for ({math.prod(links[0].in_shape):,} unknowns).",
        )
    return (where, "One sample: match_gradients, which searches for a picture with this gradient.")


def _labels(links: tuple[Link, ...]) -> tuple[str, ...]:
    last = links[-1]
    if last.kind != "linear":
        return ("Labels: the model does not end with a linear layer, so that no rule reads them.",)
    if last.out_shape == (1,):
        return ("Labels: one logit, ∂b = sigmoid(z) - y: its sign is the label.",)
    assert isinstance(last.module, nn.Linear)
    if last.module.bias is None:
        return ("Labels: no bias in the last layer; the odd row of ∂W names one sample's label.",)
    return ("Labels: ∂b = p - y in the last layer, negative only at the label (infer_labels).",)


def _batches(links: tuple[Link, ...]) -> tuple[str, ...]:
    mixing = [link for link in links if link.kind not in ("affine", "reshape")]
    exact = len(mixing) > 1 and mixing[0].kind == "linear" and type(mixing[1].module) is nn.ReLU
    how = "exact_batch (a linear layer with ReLU sees it first)" if exact else "match_gradients"
    folded = [
        link.name for link in links if link.kind == "activation" and not is_exact(link.module)
    ]
    lines = [
        f"A batch: {how}. An update of several local steps: match_gradients, which unrolls it."
    ]
    if folded:
        lines.append(
            f"Layers {', '.join(folded)} hide their values below 0: the other equations must do."
        )
    return tuple(lines)


def _closing(attack: str) -> str:
    return _SOLVED_NOTE if attack in ("divide", "peel") else _NOT_PRIVACY

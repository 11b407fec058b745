"""Make the stored result `collusion`: what each rule gives away of the one client that is honest.

    python data_scripts/make_collusion.py        # about 6 minutes on one core

Five clients send the gradient of one photo each; four of them lie so that only client 3 is left.
The rule's result is read by someone who knows which rule it was and what the four sent, takes the
lies out of it (`unclipped`, `without`) and inverts what is left as in chapter 06; where nobody
lies, the result is read as that of a batch of five photos. Chapter 17 shows it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flcourse.attacks import Leak, aggregate, match_gradients, observe_gradient, score
from flcourse.attacks.label_rules import sign_rule
from flcourse.byzantine import (
    centered_clipping,
    coordinate_median,
    fltrust,
    geometric_median,
    krum,
    mean,
    stealth_suppression,
    suppression,
)
from flcourse.claims import save_stored
from flcourse.data import load_dataset
from flcourse.models import LeNet
from flcourse.runtime import generator

SEEDS = (0, 1, 2, 3)
ORDER = (1, 2, 0, 3, 4)  # client 3, counted from 1, has the first photo
VICTIM, ROOT = 2, slice(5, 15)  # the victim's row, and the photos that FLTrust's server has
LIES = ("nobody lies", "suppression", "stealth")
CLASSES = 100


def typical(rows: Tensor) -> float:
    """The median length of the rows."""
    return float(rows.norm(dim=1).median())


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda rows, root: mean(rows),
    "median": lambda rows, root: coordinate_median(rows),
    "Krum": lambda rows, root: krum(rows, 1),
    "geometric median": lambda rows, root: geometric_median(rows),
    "centred clipping": lambda rows, root: centered_clipping(rows, typical(rows)),
    "FLTrust": fltrust,
}


@functools.cache
def messages(seed: int) -> tuple[nn.Module, tuple[Leak, ...], Tensor]:
    """The network, the five clients' messages, and what the server would have sent itself."""
    photos = load_dataset("photos").train
    network = LeNet(num_classes=CLASSES, seed=seed)
    parts = [slice(k, k + 1) for k in ORDER]
    leaks = [
        observe_gradient(network, photos.inputs[part], photos.labels[part])
        for part in (*parts, ROOT)
    ]
    return network, tuple(leaks[:-1]), leaks[-1].row


def told(lie: str, seed: int) -> tuple[Tensor, Tensor]:
    """What the five send, and what of it the four colluders know."""
    rows = torch.stack([leak.row for leak in messages(seed)[1]])
    liars = [k for k in range(len(ORDER)) if k != VICTIM]
    if lie != "nobody lies":
        attack = suppression if lie == "suppression" else stealth_suppression
        draw = generator(seed, "colluders")
        rows[liars] = attack(rows[[VICTIM]], rows[liars], generator=draw)
    return rows, rows[liars]


def read(
    lie: str, rule: str, result: Tensor, lies: Tensor, seed: int
) -> tuple[Leak, dict[str, Any]]:
    """The message that a reader makes of the rule's result, and how it searches."""
    leaks = messages(seed)[1]
    if lie == "nobody lies" and rule != "Krum":  # a batch of five
        return aggregate(leaks).with_row(result), {}
    if rule == "mean":
        return leaks[VICTIM].with_row(len(ORDER) * result), {}
    if rule == "centred clipping":
        return leaks[VICTIM].with_row(unclipped(result, lies)), {}
    if rule == "median":  # below every lie a value is the victim's own, and every sign is
        kept = result.abs() < lies.abs().min(dim=0).values
        label = sign_rule(result[-CLASSES:]).labels
        return leaks[VICTIM].with_row(result * kept), {"support": "kept", "labels": label}
    own = result if rule == "Krum" else without(result, lies)
    return leaks[VICTIM].with_row(own / own.norm(), normalised=True), {}


def unclipped(result: Tensor, lies: Tensor, steps: int = 60) -> Tensor:
    """The victim's row from what centred clipping made of it and of known lies in pairs ±M.

    With the cuts ``f`` known, the rule maps each value of the row alone, by a line with two kinks
    (at ``±a``, where the median becomes a lie): turn that round. The cuts follow from the row, and
    the row from the cuts, in damped steps from ``n`` times the result.
    """
    end, sent = result.double(), lies.double()
    a, row = sent.abs().min(dim=0).values, (len(lies) + 1) * result.double()
    for _ in range(steps):
        rows = torch.cat([sent, row[None]])
        clip, away = typical(rows), (rows - row.clamp(-a, a)).norm(dim=1)
        cuts = clip / away.clamp(min=clip) / len(rows)
        rest, stays = end - cuts[:-1] @ sent, 1 - cuts.sum()  # rest = stays·median + cut·row
        inside = rest / (stays + cuts[-1])
        beyond = (rest - stays * a * rest.sign()) / cuts[-1]
        row = (row + torch.where(inside.abs() < a, inside, beyond)) / 2
    return row.to(result)


def without(result: Tensor, lies: Tensor) -> Tensor:
    """``α·row`` from ``α·row + Σ β_i M_i``, for known ``M_i`` (the first of each pair).

    The gradient of a classifier's last layer sums to zero over the classes, sample by sample.
    So what is left of these sums is the lies' alone, and gives every ``β_i``.
    """
    moves = lies[::2].double()
    betas = torch.linalg.lstsq(over_classes(moves).T, over_classes(result[None]).T).solution
    return (result.double() - betas[:, 0] @ moves).to(result)


def over_classes(rows: Tensor) -> Tensor:
    """The last layer's part of rows ``[k, d]`` (weights, then biases), summed over the classes."""
    layer = [p.numel() // CLASSES for p in messages(SEEDS[0])[0].parameters()][-2:]
    size = CLASSES * layer[0]
    weights = rows[:, -size - CLASSES : -CLASSES].reshape(len(rows), CLASSES, layer[0])
    return torch.cat([weights, rows[:, -CLASSES:, None]], dim=2).sum(dim=1).double()


def cell(lie: str, rule: str, seed: int) -> dict[str, Any]:
    """PSNR, floor and picture, and how far the rule's result points at the victim's row."""
    network, _, root = messages(seed)
    photos = load_dataset("photos").train
    rows, lies = told(lie, seed)
    result = RULES[rule](rows, root)
    leak, how = read(lie, rule, result, lies, seed)
    found = match_gradients(network, leak, steps=150, **how)
    assert found.images is not None  # a search always ends somewhere
    who = [VICTIM] if len(found.images) == 1 else list(range(len(ORDER)))
    shown = [ORDER[k] for k in who]
    scores = score(found, photos.inputs[shown], photos.labels[shown])
    apart = (found.images - photos.inputs[ORDER[VICTIM]]).square().mean(dim=(1, 2, 3))
    cosine = torch.nn.functional.cosine_similarity(result, rows[VICTIM], dim=0)
    return {
        "psnr": scores.psnr[who.index(VICTIM)].item(),
        "floor": scores.floor[who.index(VICTIM)].item(),
        "cosine": float(cosine),
        "length": float(result.norm() / rows[VICTIM].norm()),
        "picture": found.images[int(apart.argmin())].clamp(0, 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    pictures = {}
    for lie in LIES:
        for rule in RULES:
            cells = [cell(lie, rule, seed) for seed in SEEDS]
            pictures[f"{lie}, {rule}"] = cells[0]["picture"]
            results.setdefault(lie, {})[rule] = {
                key: [one[key] for one in cells] for key in ("psnr", "floor", "cosine", "length")
            }
            print(lie, rule, results[lie][rule], flush=True)
    config = {"seeds": SEEDS, "clients": len(ORDER), "steps": 150, "data": "photos",
              "model": "LeNet"}  # fmt: skip
    print(save_stored("collusion", config=config, results=results, pictures=pictures))


if __name__ == "__main__":
    main()

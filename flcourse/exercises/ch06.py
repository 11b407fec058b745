"""Checks of chapter 06: unrolled steps, a defence that only looks like one, a report on one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.scoring import MARGIN_DB, score
from flcourse.attacks.types import Leak
from flcourse.data import load_dataset
from flcourse.exercises._core import Wrong, as_tensor, exercise, expect_close
from flcourse.models import LeNet
from flcourse.runtime import generator
from flcourse.vectors import flatten

USEFUL = 0.25  # least cosine to the gradient: training still goes downhill


@exercise(
    "06.1",
    title="what would this picture have sent?",
    hints=(
        "Write the client's loop, but never change a weight in place: new weights = old weights − "
        "lr × gradient, as new tensors, with functional_call(model, weights, picture).",
        "torch.autograd.grad(loss, list(weights.values()), create_graph=True), or the picture's "
        "way into the update is forgotten. The update is new − old, in one row.",
    ),
)
def would_send(answer: Callable[..., Any]) -> str:
    for seed, lr, steps in ((0, 0.1, 1), (1, 0.2, 4), (2, 0.05, 7)):
        _check_update(answer, seed, lr, steps)
    return "This row, beside the one that was received, is all that an unrolled attack needs."


def _check_update(answer: Callable[..., Any], seed: int, lr: float, steps: int) -> None:
    draw = generator(seed, "exercise 06.1")
    model = LeNet(6, channels=1, image_size=8, seed=seed).double()
    picture = torch.rand(1, 1, 8, 8, generator=draw, dtype=torch.float64)
    label = torch.randint(6, (1,), generator=draw)
    own = copy.deepcopy(model)
    given = picture.clone().requires_grad_()
    raw = answer(own, given, label, lr, steps)
    if not isinstance(raw, Tensor) or raw.dim() != 1:
        raise Wrong("Return one row [d]: torch.cat of the flattened parts, in the model's order.")
    got = as_tensor(raw, "the update")
    if not torch.equal(flatten(own), flatten(model)):
        raise Wrong(
            "You changed the model itself. The attacker tries thousands of pictures from the same "
            "start: make new weights, w − lr · g, and leave the old ones alone."
        )
    rows = [_sent(model, picture, label, lr, count) for count in range(1, steps + 2)]
    want, first = rows[steps - 1], rows[0]
    mistakes: dict[str, object] = {
        "The sign is turned: an update is local − global.": -want,
        "This is the gradient without the step size: w − lr · g.": -first / lr,
        "This is one step more than was asked for.": rows[steps],
    }
    if steps > 1:
        mistakes |= {
            "This is one gradient times the number of steps: it treats all steps as taken at the "
            "global model. The weights move between two steps.": steps * first,
            "This is the first step alone: go on from the new weights.": first,
            "This is the last step alone: subtract the weights that the client began with.": want
            - rows[steps - 2],
            "One step is missing.": rows[steps - 2],
        }
    what = f"the update after {steps} step{'s' * (steps > 1)}"
    expect_close(got, want, what, "local − global.", mistakes=mistakes, rtol=1e-6)
    if not raw.requires_grad:
        raise Wrong(
            "The numbers are right, but the row no longer knows the picture, so no optimiser can "
            "use it: ask torch.autograd.grad for create_graph=True and do not detach."
        )
    pull = torch.randn(len(want), generator=draw, dtype=torch.float64)
    (slope,) = torch.autograd.grad(raw @ pull, given, allow_unused=True)
    moved = torch.randn(picture.shape, generator=draw, dtype=torch.float64)
    ahead, behind = (
        _sent(model, picture + sign * 1e-5 * moved, label, lr, steps) @ pull for sign in (1, -1)
    )
    expected = (ahead - behind) / 2e-5
    tip = (
        "The row itself is right, but its derivative with respect to the picture is not: every "
        "step's gradient needs create_graph=True, the first one too."
    )
    seen = torch.zeros(()) if slope is None else (slope * moved).sum()
    expect_close(seen, expected, "how the update changes with the picture", tip, rtol=1e-3)


def _sent(model: nn.Module, picture: Tensor, label: Tensor, lr: float, steps: int) -> Tensor:
    """The client's own loop, with torch's optimiser."""
    local = copy.deepcopy(model)
    optimiser = torch.optim.SGD(local.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(local(picture), label).backward()
        optimiser.step()
    return flatten(local) - flatten(model)


@exercise(
    "06.2",
    title="beat the plain attacker",
    hints=(
        "What tells a picture apart is in the many small values; what trains the model is in the "
        "few large ones.",
        "Keep the largest 1 % of magnitudes: row.abs().topk(len(row) // 100), zeros elsewhere.",
    ),
)
def defend(answer: Callable[..., Any]) -> str:
    photos = load_dataset("photos").train
    found = []
    for photo, seed in ((2, 5), (9, 6)):
        image, label = photos.inputs[photo : photo + 1], photos.labels[photo, None]
        model = LeNet(100, seed=seed)
        leak = observe_gradient(model, image, label)
        sent = leak.with_row(_defended(answer, leak))
        plain = attack(model, sent, adapts=False)
        psnr, floor = _psnr(plain, image)
        if psnr >= floor + MARGIN_DB:
            raise Wrong(
                f"The plain attacker still gets the {photos.classes[int(label)]} at {psnr:.0f} dB, "
                f"floor {floor:.0f} dB. It looks at the row's direction (the cosine), so take "
                "something away that a change of length or a fine rounding leaves."
            )
        best = max(_psnr(one, image)[0] for one in _adapted(model, sent, leak))
        found.append((psnr, best, floor))
    broken = any(best >= floor + MARGIN_DB for _, best, floor in found)
    plain_db, adapted, floor = (max(values) for values in zip(*found, strict=True))
    end = (
        "So it beats one attacker, and does not protect."
        if broken
        else "Nor does this one get the picture. That is no proof: there are other attackers."
    )
    return (
        f"The plain attacker gets {plain_db:.0f} dB at most, the floor is at {floor:.0f} dB. One "
        f"that uses what it knows of your defence gets {adapted:.0f} dB. {end}"
    )


def attack(model: nn.Module, leak: Leak, *, adapts: bool) -> Any:
    """The plain attacker of the chapter (cosine, pixels), or the course's own."""
    if adapts:
        return match_gradients(model, leak, steps=100)
    return match_gradients(
        model, leak, steps=100, distance="cosine", basis="pixels", support="all", candidates=1
    )


def _adapted(model: nn.Module, sent: Leak, leak: Leak) -> list[Any]:
    """The course's attack; where values were changed, also one that knows by how much."""
    found = [attack(model, sent, adapts=True)]
    error = sent.row - leak.row
    if bool((error[sent.row != 0] != 0).any()):  # more than values left out
        aware = replace(sent, noise_std=float(error.square().mean().sqrt()))
        found.append(match_gradients(model, aware, steps=100, support="all"))
    return found


def _defended(answer: Callable[..., Any], leak: Leak) -> Tensor:
    row = leak.row
    got = as_tensor(answer(row.clone()), "the defended row").detach()
    if got.shape != row.shape:
        raise Wrong(f"Return a row of the same length: {len(row)} values, not {list(got.shape)}.")
    if not bool(torch.isfinite(got).all()):
        raise Wrong("The row holds NaN or infinity: the server could not even add it up.")
    if float(got.norm()) == 0:
        raise Wrong("A row of zeros is private and teaches the model nothing: send something.")
    cosine = float(F.cosine_similarity(got.double(), row.double(), dim=0))
    if cosine < USEFUL:
        raise Wrong(
            f"Your row's cosine to the true gradient is {cosine:.2f}: the model would hardly learn "
            f"from it. Stay at {USEFUL} or above; what hides best is easy, what is useful as well "
            "is the question. (Do you keep the largest values, and their signs?)"
        )
    return got.to(row)


def _psnr(found: Any, image: Tensor) -> tuple[float, float]:
    scores = score(found, image)
    return float(scores.psnr), float(scores.floor)


@exercise(
    "06.3",
    title="repair the report on a defence",
    hints=(
        "Four axes, four questions. Who attacks? The best. Which run? A typical one: an attacker "
        "cannot pick the run by the truth. Whose picture? The one that suffers most. Above what? "
        "Its own floor.",
        "psnr.median(dim=1).values is [attackers, pictures]; subtract floors; take the largest.",
    ),
)
def verdict(answer: Callable[..., Any]) -> str:
    for case in range(4):
        _check_verdict(answer, case)
    return "A defence is judged by its worst day: the best attacker, the picture it hurts most."


def _check_verdict(answer: Callable[..., Any], case: int) -> None:
    draw = generator(case, "exercise 06.3")
    attackers, runs, pictures = 3 + case % 2, 5, 4 + case
    floors = 9 + 10 * torch.rand(pictures, generator=draw)
    gain = torch.randn(attackers, 1, pictures, generator=draw) * 2
    gain[case % attackers, :, case] += 14  # one attacker, one picture
    gain[(case + 1) % attackers, :, case] = gain[case % attackers, :, case] - 0.5  # and a second
    gain[:, :, (case + 1) % pictures] += 11  # all attackers, another picture
    psnr = floors + gain + 3 * torch.randn(attackers, runs, pictures, generator=draw)
    psnr[(case + 1) % attackers, 2, (case + 2) % pictures] += 25  # one lucky run
    got = as_tensor(answer(psnr.clone(), floors.clone()), "the verdict")
    if got.numel() != 1:
        raise Wrong(f"Return one number in dB, not {got.numel()}.")
    typical = psnr.median(dim=1).values  # [attackers, pictures]
    above = typical - floors
    mistakes: dict[str, object] = {
        "This is the mean over everything, as in the report: weak attackers and easy pictures "
        "hide what leaks.": psnr.mean(),
        "Mean over everything, minus the floor: weak attackers and untouched pictures still hide "
        "what leaks.": (psnr - floors).mean(),
        "The floor is missing: without it a flat picture looks like a leak.": typical.max(),
        "You average over the pictures. A defence that fails one person has failed: take the "
        "picture that suffers most.": above.mean(dim=1).max(),
        "You average over the attackers. Nobody attacks with the average: take the strongest.": (
            above.mean(dim=0).max()
        ),
        "You take the best run. Nobody without the truth can pick it: take the median run.": (
            (psnr - floors).max()
        ),
        "You subtract one floor for all (their mean). Each picture has its own.": (
            typical - floors.mean()
        ).max(),
        "You subtract the floor of another picture: subtract first, take the largest then.": (
            typical.max() - floors.max()
        ),
        "You take the strongest attacker of each run, and so let it be picked by the truth: median "
        "over runs first, largest last.": (psnr - floors).amax(dim=0).median(dim=0).values.max(),
        "You choose the attacker by its mean over the pictures. It may be weak on the picture that "
        "suffers most: take the largest of all.": above[above.mean(dim=1).argmax()].max(),
        "You choose the picture by the mean over attackers. The strongest one may reach another "
        "picture better: take the largest of all.": above[:, above.mean(dim=0).argmax()].max(),
        "You take the mean over runs; one lucky run moves it. Take the median.": (
            (psnr - floors).mean(dim=1).max()
        ),
    }
    tip = "Median over runs, minus each picture's floor, then the largest."
    expect_close(got.reshape(()), above.max(), "the verdict (dB)", tip, mistakes=mistakes)

"""Mistakes people really make in the exercises of chapter 06, and what they must be told."""

import torch
import torch.nn.functional as F
from torch.func import functional_call

from flcourse import defences


def unrolled(model, picture, label, lr, steps, *, graph=True, moves=True, keep=False, extra=0):
    """A correct answer with switches for what can go wrong."""
    start = dict(model.named_parameters())
    weights = start
    for step in range(steps + extra):
        at = weights if moves else start
        loss = F.cross_entropy(functional_call(model, at, picture), label)
        linked = graph and not (keep and step < steps - 1)
        slopes = torch.autograd.grad(loss, list(at.values()), create_graph=linked)
        weights = {n: w - lr * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
        if not linked:
            weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
    return torch.cat([(weights[n] - start[n]).flatten() for n in start])


def in_place(model, picture, label, lr, steps):
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(picture), label).backward()
        optimiser.step()
    return torch.cat([p.flatten() for p in model.parameters()]) - before


def numbers_only(*given):
    return unrolled(*given).detach()


def smallest(row):
    kept = row.abs().topk(len(row) // 100, largest=False).indices
    return torch.zeros_like(row).index_copy(0, kept, row[kept])


def typical(p, f):
    return p.median(dim=1).values - f


def attacker_by_run(p, f):
    return (p - f).amax(dim=0).median(dim=0).values.max()


def attacker_by_mean(p, f):
    above = typical(p, f)
    return above[above.mean(dim=1).argmax()].max()


def picture_by_mean(p, f):
    above = typical(p, f)
    return above[:, above.mean(dim=0).argmax()].max()


WRONG = {
    "06.1": [
        ("one gradient", lambda *g: unrolled(*g, moves=False), "one gradient times"),
        ("in place", in_place, "changed the model"),
        ("sign", lambda *g: -unrolled(*g), "sign is turned"),
        ("no graph", numbers_only, "create_graph"),
        ("graph of the last step only", lambda *g: unrolled(*g, keep=True), "first one too"),
        ("one more", lambda *g: unrolled(*g, extra=1), "one step more"),
        ("gradient", lambda m, x, y, lr, n: -unrolled(m, x, y, lr, 1) / lr, "step size"),
    ],
    "06.2": [
        ("clipping", lambda row: defences.clip(row, 1.0), "plain attacker still"),
        ("keep half", lambda row: defences.prune(row, 0.5), "plain attacker still"),
        ("zeros", torch.zeros_like, "teaches the model nothing"),
        ("smallest", smallest, "cosine"),
        ("sizes", lambda row: defences.prune(row, 0.01).abs(), "cosine"),
        ("kept alone", lambda row: row[row.abs().topk(100).indices], "same length"),
        ("nan", lambda row: row / 0 * 0, "NaN"),
    ],
    "06.3": [
        ("as it was", lambda p, f: p.mean(), "mean over everything"),
        ("minus floor", lambda p, f: (p - f).mean(), "minus the floor"),
        ("no floor", lambda p, f: p.median(dim=1).values.max(), "floor is missing"),
        ("mean picture", lambda p, f: typical(p, f).mean(dim=1).max(), "over the pictures"),
        ("mean attacker", lambda p, f: typical(p, f).mean(dim=0).max(), "over the attackers"),
        ("best run", lambda p, f: (p - f).max(), "best run"),
        ("one floor", lambda p, f: (p.median(dim=1).values - f.mean()).max(), "one floor for all"),
        ("attacker a run", attacker_by_run, "strongest attacker of each run"),
        ("attacker by mean", attacker_by_mean, "mean over the pictures"),
        ("picture by mean", picture_by_mean, "mean over attackers"),
        ("table", typical, "one number"),
    ],
}

"""Mistakes people really make in the exercises of chapter 12, and what they must be told."""

import math

import torch


def clip(rows, c):
    return rows * (c / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)


def by_owner(g, owner):
    return torch.stack([g[owner == k].sum(0) for k in owner.unique()])


def by_owner_mean(g, owner):
    return torch.stack([g[owner == k].mean(0) for k in owner.unique()])


def local_as_server(d, c, z, n, where):
    return math.sqrt(d) * z * c / n


def all_independent(d, c, z, n, where):
    return math.sqrt(d) * z * c / math.sqrt(n)


def on_the_sum(d, c, z, n, where):
    return math.sqrt(d * (n if where == "local" else 1)) * z * c


def one_value(d, c, z, n, where):
    return z * c * (math.sqrt(n) if where == "local" else 1) / n


def no_averaging(d, c, z, n, where):
    return math.sqrt(d) * z * c / (n if where == "server" else 1)


def no_clip_norm(d, c, z, n, where):
    return math.sqrt(d * (n if where == "local" else 1)) * z / n


def no_root(d, c, z, n, where):
    return d * math.sqrt(n if where == "local" else 1) * z * c / n


WRONG = {
    "12.1": [
        ("local as server", local_as_server, "each of the n clients adds its own"),
        ("all independent", all_independent, "one noise"),
        ("on the sum", on_the_sum, "divided by n"),
        ("one value", one_value, "√d times"),
        ("noise does not average", no_averaging, "not n times"),
        ("z for sigma", no_clip_norm, "left the clip norm out"),
        ("d for its root", no_root, "squares add up"),
    ],
    "12.2": [
        ("per example", lambda g, o, c: clip(g, c).sum(0), "up to m·C"),
        ("the whole sum", lambda g, o, c: clip(g.sum(0), c), "does not bound one client"),
        ("no clip", lambda g, o, c: g.sum(0), "nothing is clipped"),
        ("mean of clients", lambda g, o, c: clip(by_owner(g, o), c).mean(0), "return the sum"),
        ("mean of examples", lambda g, o, c: clip(by_owner_mean(g, o), c).sum(0),
         "number of examples"),
        ("always to length C", lambda g, o, c: c * torch.nn.functional.normalize(
            by_owner(g, o), dim=1).sum(0), "must stay as they are"),
        ("clipped twice", lambda g, o, c: clip(by_owner(clip(g, c), o), c).sum(0),
         "the promise is kept"),
        ("a row a client", lambda g, o, c: clip(by_owner(g, o), c), "shape"),
    ],
    "12.3": [
        ("who came", lambda r, w, e, c, s: (clip(r, c).sum(0) + s) / max(len(r), 1),
         "number that came"),
        ("weighted", lambda r, w, e, c, s: ((w[:, None] * clip(r, c)).sum(0) + s) / w.sum(),
         "undo the clipping"),
        ("weighted sum", lambda r, w, e, c, s: ((w[:, None] * clip(r, c)).sum(0) + s) / e,
         "every client counts once"),
        ("weighted mean, then noise",
         lambda r, w, e, c, s: (w[:, None] * clip(r, c)).sum(0) / w.sum() + s,
         "belongs to the sum"),
        ("noise on the mean", lambda r, w, e, c, s: clip(r, c).sum(0) / e + s, "divide both"),
        ("no clip", lambda r, w, e, c, s: (r.sum(0) + s) / e, "nothing is clipped"),
        ("always to length C", lambda r, w, e, c, s: (
            c * torch.nn.functional.normalize(r, dim=1).sum(0) + s) / e, "must stay as they are"),
        ("no noise", lambda r, w, e, c, s: clip(r, c).sum(0) / e, "no noise"),
        ("the mean clipped", lambda r, w, e, c, s: (clip(r.sum(0), c) + s) / e,
         "the rows are not"),
    ],
}  # fmt: skip

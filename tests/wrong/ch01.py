"""Mistakes people really make in the exercises of chapter 01, and what they must be told."""

import copy

import numpy as np
import torch
import torch.nn.functional as F

from flcourse.vectors import flatten


def split(labels, num_clients, alpha, rng, *, per_class=True, lose=False, shuffle=True):
    """A correct partition with switches for what can go wrong."""
    parts = [[] for _ in range(num_clients)]
    shares = rng.dirichlet([alpha] * num_clients)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten().numpy()
        if shuffle:
            members = rng.permutation(members)
        if per_class:
            shares = rng.dirichlet([alpha] * num_clients)
        if lose:
            cuts = np.cumsum((shares * len(members)).astype(int))
        else:
            cuts = (np.cumsum(shares) * len(members)).round().astype(int)
            cuts[-1] = len(members)
        starts = np.concatenate([[0], cuts[:-1]])
        for part, start, end in zip(parts, starts, cuts, strict=True):
            part.append(members[start:end])
    return [torch.tensor(np.concatenate(part)) for part in parts]


def one_share_for_all(labels, num_clients, alpha, rng):
    return split(labels, num_clients, alpha, rng, per_class=False)


def one_share_for_shuffled_samples(labels, num_clients, alpha, rng):
    shares = rng.dirichlet([alpha] * num_clients)
    cuts = (np.cumsum(shares)[:-1] * len(labels)).round().astype(int)
    return [torch.as_tensor(part) for part in np.split(rng.permutation(len(labels)), cuts)]


def remainder_lost(labels, num_clients, alpha, rng):
    return split(labels, num_clients, alpha, rng, lose=True)


def not_shuffled(labels, num_clients, alpha, rng):
    return split(labels, num_clients, alpha, rng, shuffle=False)


def alpha_ignored(labels, num_clients, alpha, rng):
    return split(labels, num_clients, 1.0, rng)


def evenly_dealt(labels, num_clients, alpha, rng):
    return list(torch.tensor(rng.permutation(len(labels))).chunk(num_clients))


def with_replacement(labels, num_clients, alpha, rng):
    mixes = rng.dirichlet([alpha] * 10, size=num_clients)
    size = len(labels) // num_clients
    parts = []
    for mix in mixes:
        weights = mix[labels.numpy()]
        parts.append(torch.tensor(rng.choice(len(labels), size, p=weights / weights.sum())))
    return parts


def global_randomness(labels, num_clients, alpha, rng):
    return split(labels, num_clients, alpha, np.random.default_rng())


def train(model, inputs, labels, epochs, batch_size, lr, generator, **slip):
    """Correct local training with switches for what can go wrong."""
    local = model if slip.get("in_place") else copy.deepcopy(model)
    start = flatten(model)
    optimiser = torch.optim.SGD(local.parameters(), lr=lr)
    order = torch.randperm(len(inputs), generator=generator)
    for _ in range(1 if slip.get("one_epoch") else epochs):
        if not slip.get("one_order"):
            order = torch.randperm(len(inputs), generator=generator)
        for batch in order.split(batch_size):
            if slip.get("drop_last") and len(batch) < batch_size:
                continue
            if not slip.get("keep_gradients"):
                optimiser.zero_grad()
            reduction = "sum" if slip.get("summed") else "mean"
            F.cross_entropy(local(inputs[batch]), labels[batch], reduction=reduction).backward()
            optimiser.step()
    return flatten(local), start


def trained(**slip):
    def local_sgd(*args):
        local, start = train(*args, **slip)
        return local - start

    return local_sgd


def generator_ignored(model, inputs, labels, epochs, batch_size, lr, generator):
    return trained()(model, inputs, labels, epochs, batch_size, lr, None)


def flipped(*args):
    local, start = train(*args)
    return start - local


def whole_model(*args):
    return train(*args)[0]


def with_replaced_batches(model, inputs, labels, epochs, batch_size, lr, generator):
    local = copy.deepcopy(model)
    optimiser = torch.optim.SGD(local.parameters(), lr=lr)
    for _ in range(epochs):
        for size in [batch_size] * (len(inputs) // batch_size) + [len(inputs) % batch_size]:
            if size:
                batch = torch.randint(len(inputs), (size,), generator=generator)
                batch = batch if size < len(inputs) else torch.arange(size)
                optimiser.zero_grad()
                F.cross_entropy(local(inputs[batch]), labels[batch]).backward()
                optimiser.step()
    return flatten(local) - flatten(model)


WRONG = {
    "01.1": [
        ("plain mean", lambda rows, weights: rows.mean(0), "plain mean"),
        ("sum for mean", lambda rows, weights: (weights[:, None] * rows).sum(0), "weighted sum"),
        (
            "divided by n",
            lambda rows, weights: (weights[:, None] * rows).mean(0),
            "divide by the number of clients",
        ),
        ("wrong axis", lambda rows, weights: rows.mean(1), "dimension 0"),
        (
            "twice normalised",
            lambda rows, weights: ((weights / weights.sum())[:, None] * rows).mean(0),
            "used twice",
        ),
        (
            "softmax for shares",
            lambda rows, weights: weights.float().softmax(0) @ rows,
            "expected",
        ),
        ("no broadcast", lambda rows, weights: weights * rows / weights.sum(), "RuntimeError"),
        ("kept dimension", lambda rows, weights: (weights / weights.sum())[None] @ rows, "shape"),
    ],
    "01.2": [
        ("shares once, not per class", one_share_for_all, "same mix of labels"),
        ("shares once, samples shuffled", one_share_for_shuffled_samples, "same mix of labels"),
        ("remainder dropped", remainder_lost, "belong to no client"),
        ("with replacement", with_replacement, "more than one client"),
        ("alpha ignored", alpha_ignored, "alpha = 10,000"),
        ("dealt evenly", evenly_dealt, "Is alpha used?"),
        ("global randomness", global_randomness, "same seed"),
        ("class not shuffled", not_shuffled, "shuffle each class first"),
    ],
    "01.3": [
        ("global - local", flipped, "opposite sign"),
        ("the local model", whole_model, "local model itself"),
        ("trains the global model", trained(in_place=True), "changes the global model"),
        ("forgets zero_grad", trained(keep_gradients=True), "pile up"),
        ("drops the last batch", trained(drop_last=True), "4, 4 and 2"),
        ("one epoch only", trained(one_epoch=True), "loop over epochs"),
        ("one order for all epochs", trained(one_order=True), "same order"),
        ("generator ignored", generator_ignored, "generator=generator"),
        ("summed loss", trained(summed=True), "summed over the batch"),
        ("batches with replacement", with_replaced_batches, "repeats some"),
    ],
    "01.4": [
        ("one way", lambda d, n, r: d * 4 * n * r / 1e6, "one direction"),
        ("bits", lambda d, n, r: d * 32 * 2 * n * r / 1e6, "megabits"),
        ("mebibytes", lambda d, n, r: d * 8 * n * r / 2**20, "mebibytes"),
        ("no cohort", lambda d, n, r: d * 8 * r / 1e6, "clients of the cohort"),
        ("no rounds", lambda d, n, r: d * 8 * n / 1e6, "one round only"),
        ("whole megabytes", lambda d, n, r: d * 8 * n * r // 1_000_000, "cut off"),
    ],
}

"""Checks of chapter 01: the weighted mean, a partition, local training, megabytes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.exercises._core import Wrong, as_tensor, exercise, expect_close
from flcourse.runtime import generator, seeded
from flcourse.vectors import flatten


@exercise(
    "01.1",
    title="the weighted mean",
    hints=(
        "Each row counts as often as its client has samples: multiply row i by weights[i], add the "
        "rows up (over clients, dimension 0), divide by the sum of the weights.",
        "weights has shape [n] and rows [n, d]: weights[:, None] * rows lines them up.",
    ),
)
def weighted_mean(answer: Callable[..., Any]) -> str:
    rows = torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, -3.0]])
    _check_mean(answer, rows, torch.tensor([3.0, 1.0]))
    draw = generator(0, "exercise 01.1")
    rows = torch.randn(5, 7, generator=draw)
    weights = torch.randint(1, 400, (5,), generator=draw).float()
    before = rows.clone()
    _check_mean(answer, rows, weights)
    if not torch.equal(rows, before):
        raise Wrong("Your function changes the rows that it is given: work on new tensors.")
    return "A client with ten times the samples pulls the mean ten times as hard."


def _check_mean(answer: Callable[..., Any], rows: Tensor, weights: Tensor) -> None:
    scaled = weights[:, None] * rows
    mistakes = {
        "This is the plain mean: a client with 3 samples counts as much as one with 300. Weight "
        "each row by its client's samples.": rows.mean(dim=0),
        "This is the weighted sum. Divide by the sum of the weights, or the step grows with the "
        "amount of data.": scaled.sum(dim=0),
        "You divide by the number of clients. The weights are sample counts, so divide by their "
        "sum, weights.sum().": scaled.mean(dim=0),
        "You average over the values of each update (dimension 1). The mean runs over the clients, "
        "dimension 0, and has one value for each parameter.": (scaled / weights.sum()).sum(dim=1),
        "You average each update over its own values (dimension 1). The mean runs over the "
        "clients, dimension 0.": rows.mean(dim=1),
        "The weights are used twice: they are normalised, and then the sum is divided again."
        "": scaled.sum(dim=0) / weights.sum() / len(rows),
    }
    expected = scaled.sum(dim=0) / weights.sum()
    expect_close(answer(rows.clone(), weights.clone()), expected, "the mean", mistakes=mistakes)


@exercise(
    "01.2",
    title="a Dirichlet partition",
    hints=(
        "Work class by class: find the samples of the class, shuffle them, draw one share for each "
        "client with rng.dirichlet([alpha] * num_clients), and cut the samples in these shares.",
        "Rounding each share by itself loses samples. Round the running total instead: "
        "cuts = (np.cumsum(shares) * count).round().astype(int), and let the last cut be count.",
        "np.split(samples, cuts[:-1]) gives one piece for each client; a client's list collects "
        "its pieces of all classes.",
    ),
)
def dirichlet_split(answer: Callable[..., Any]) -> str:
    labels = torch.arange(10).repeat_interleave(101)[
        torch.randperm(1010, generator=generator(0, "exercise 01.2"))
    ]
    even = _split(answer, labels, 1e4)
    skewed = _split(answer, labels, 0.05)
    _check_skew(labels, even, skewed)
    again = _split(answer, labels, 0.05)
    if any(a.tolist() != b.tolist() for a, b in zip(skewed, again, strict=True)):
        raise Wrong(
            "The same seed gives two different partitions. Take every draw (the shares and the "
            "shuffle) from rng, not from np.random or torch's global state."
        )
    other = _split(answer, labels, 1e4, seed=1)
    if all(sorted(a.tolist()) == sorted(b.tolist()) for a, b in zip(even, other, strict=True)):
        raise Wrong("Another seed gives the same partition: draw shares and order from rng.")
    if _takes_first(labels, even):
        raise Wrong(
            "Client 0 always gets the first samples of each class. If the data come in an order "
            "(by writer, by date), clients differ in more than labels: shuffle each class first."
        )
    return "Every sample has exactly one owner, and alpha sets how unlike the owners are."


def _split(answer: Callable[..., Any], labels: Tensor, alpha: float, seed: int = 0) -> list[Tensor]:
    """The student's partition into 5 clients, checked for what holds at every alpha."""
    # Global draws differ between calls, so that only an answer that uses rng repeats itself.
    parts = answer(labels.clone(), 5, alpha, np.random.default_rng(seed))
    if not isinstance(parts, (list, tuple)):
        raise Wrong(f"Return a list with one index tensor a client, not a {type(parts).__name__}.")
    if len(parts) != 5:
        raise Wrong(f"For 5 clients the list should have 5 entries; it has {len(parts)}.")
    found = [as_tensor(part, f"entry {k}").reshape(-1).long() for k, part in enumerate(parts)]
    counts = torch.cat(found).bincount(minlength=len(labels))
    if len(counts) > len(labels):
        raise Wrong(f"There are indices beyond the {len(labels)} samples.")
    doubled, lost = int((counts > 1).sum()), int((counts == 0).sum())
    if doubled:
        raise Wrong(
            f"{doubled} samples are with more than one client (or twice with one), {lost} with "
            "none. A partition deals the samples out: cut the shuffled indices of a class, do not "
            "draw samples anew."
        )
    if lost:
        raise Wrong(
            f"{lost} of {len(labels)} samples belong to no client: rounding down loses the "
            "remainder. Round the running total of the shares, so that the last cut is the end."
        )
    return found


def _check_skew(labels: Tensor, even: list[Tensor], skewed: list[Tensor]) -> None:
    shares = [_class_shares(labels, parts) for parts in (even, skewed)]
    sizes = [max(map(len, parts)) / len(labels) for parts in (even, skewed)]
    if shares[0].max() > 0.4 or sizes[0] > 0.4:  # who draws an owner per sample is near 0.33
        raise Wrong(
            "At alpha = 10,000 the clients should hold nearly the same, but the largest share of "
            f"one class with one client is {max(float(shares[0].max()), sizes[0]):.0%}. Is alpha "
            "passed to the Dirichlet distribution, once for each client?"
        )
    spread = shares[1].amax(dim=0)  # of each class: the largest part that one client holds
    if spread.mean() < 0.5 and sizes[1] < 0.5:
        raise Wrong(
            "At alpha = 0.05 nearly every class should sit with one or two clients, but the "
            f"largest owner of a class holds {float(spread.mean()):.0%} of it on average. Is alpha "
            "used?"
        )
    # Shares drawn once: the same client is the largest owner of all ten classes (by chance: 5⁻⁹).
    if len(shares[1].argmax(dim=0).unique()) == 1:
        raise Wrong(
            "The clients differ in how much they hold, but all have the same mix of labels. Draw "
            "the shares anew for each class."
        )


def _class_shares(labels: Tensor, parts: list[Tensor]) -> Tensor:
    """``[clients, classes]``: which part of each class a client holds."""
    counts = torch.stack([labels[part].bincount(minlength=10) for part in parts]).float()
    return counts / counts.sum(dim=0)


def _takes_first(labels: Tensor, parts: list[Tensor]) -> bool:
    first = set(parts[0].tolist())
    for label in range(10):
        members = (labels == label).nonzero().flatten().tolist()
        held = [index for index in members if index in first]
        if held != members[: len(held)]:
            return False
    return True


@exercise(
    "01.3",
    title="local training",
    hints=(
        "Copy the model first (copy.deepcopy): the global model belongs to the server. Remember "
        "flatten(model) or take it at the end, it has not changed.",
        "For each epoch: order = torch.randperm(len(inputs), generator=generator), then for each "
        "batch in order.split(batch_size): zero_grad, loss, backward, step.",
        "The update is what the server adds: flatten(local) - flatten(model).",
    ),
)
def local_sgd(answer: Callable[..., Any]) -> str:
    with seeded(0, "exercise 01.3"):
        model = nn.Linear(4, 3)
    draw = generator(0, "exercise 01.3", "data")
    inputs, labels = torch.randn(10, 4, generator=draw), torch.randint(3, (10,), generator=draw)
    full = _full_batch(model, inputs, labels, 1, 0.5)
    single = _local(answer, model, inputs, labels, 1, 10)
    expect_close(
        single, full, "the update after one step", "One step moves by −lr × gradient of the mean "
        "loss.", mistakes=_step_mistakes(model, full), atol=1e-5,
    )  # fmt: skip
    three = _full_batch(model, inputs, labels, 3, 0.5)
    mistakes = {
        "Gradients pile up from step to step: call zero_grad before each backward.": _full_batch(
            model, inputs, labels, 3, 0.5, forget=True
        ),
        "After three epochs your update is that of one: does the loop over epochs run?": full,
    }
    got = _local(answer, model, inputs, labels, 3, 10)
    expect_close(got, three, "the update after three steps", mistakes=mistakes, atol=1e-5)
    _check_batches(answer, inputs, labels)
    return "The update says which way this client's data pull, and by how far."


def _step_mistakes(model: nn.Module, update: Tensor) -> dict[str, object]:
    start = flatten(model)
    return {
        "This is global − local, the opposite sign: the server adds the update, so it must point "
        "from the global model to yours.": -update,
        "This is the local model itself. The update is the difference, local − global.": start
        + update,
        "This is the gradient. The update is how far the model moved: local − global, with the "
        "learning rate in it.": -update / 0.5,
        "The update is zero. Is the step taken, and is the difference to the model before "
        "training?": torch.zeros_like(update),
        "The loss is summed over the batch: a larger batch makes larger steps. Use the mean (the "
        "default of F.cross_entropy).": update * 10,
    }


def _full_batch(
    model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int, lr: float, forget: bool = False
) -> Tensor:
    """The update of full-batch gradient descent, where the order of samples does not matter."""
    local = copy.deepcopy(model)
    total = torch.zeros_like(flatten(model))
    start = flatten(model)
    for _ in range(epochs):
        loss = F.cross_entropy(local(inputs), labels)
        found = torch.autograd.grad(loss, list(local.parameters()))
        step = torch.cat([part.reshape(-1) for part in found])
        total = total + step if forget else step
        with torch.no_grad():
            place = 0
            for parameter in local.parameters():
                size = parameter.numel()
                parameter.sub_(lr * total[place : place + size].view_as(parameter))
                place += size
    return flatten(local) - start


def _local(
    answer: Callable[..., Any], model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int,
    batch_size: int,
) -> object:  # fmt: skip
    """Call the student's function on a copy and see that it leaves the global model alone."""
    given = copy.deepcopy(model)
    shuffle = generator(0, "exercise 01.3", "shuffle")
    row = answer(given, inputs.clone(), labels.clone(), epochs, batch_size, 0.5, shuffle)
    if not torch.equal(flatten(given), flatten(model)):
        raise Wrong(
            "Your function changes the global model: the next client would start from this one's "
            "result. Train a copy, copy.deepcopy(model)."
        )
    if isinstance(row, nn.Module):
        raise Wrong(
            "You return a model. Return the update as a row: flatten(local) − flatten(...)."
        )
    return row


def _check_batches(answer: Callable[..., Any], inputs: Tensor, labels: Tensor) -> None:
    """Watch which samples pass through the model in two epochs of batches of 4, 4 and 2."""
    seen: list[Tensor] = []

    class Watched(nn.Linear):
        def forward(self, batch: Tensor) -> Tensor:
            if torch.is_grad_enabled():  # a look at the loss without gradient is no training
                seen.append(batch.detach().clone())
            return super().forward(batch)

    with seeded(0, "exercise 01.3"):
        model = Watched(4, 3)
    _local(answer, model, inputs, labels, 2, 4)
    sizes = [len(batch) for batch in seen]
    if sizes == [4, 4, 4, 4]:
        raise Wrong(
            "10 samples in batches of 4 make three batches: 4, 4 and 2. Your last two samples are "
            "never used."
        )
    if sizes != [4, 4, 2] * 2:
        raise Wrong(
            f"Two epochs over 10 samples in batches of 4 should take batches of 4, 4, 2, 4, 4, 2; "
            f"yours are {', '.join(map(str, sizes)) or 'none'}."
        )
    orders = [_order(inputs, torch.cat(half)) for half in (seen[:3], seen[3:6])]
    if any(sorted(order) != list(range(10)) for order in orders):
        raise Wrong("In one epoch each sample comes once; yours repeats some and misses others.")
    if orders[0] == orders[1]:
        raise Wrong(
            "Both epochs take the samples in the same order: draw a new one each epoch with "
            "torch.randperm(len(inputs), generator=generator)."
        )
    torch.rand(3)  # the global stream moves on: only the generator given can repeat the order
    seen.clear()
    _local(answer, model, inputs, labels, 2, 4)
    if [_order(inputs, torch.cat(half)) for half in (seen[:3], seen[3:])] != orders:
        raise Wrong(
            "Two calls with equally seeded generators take the samples in different orders. Pass "
            "generator=generator to torch.randperm: a result that nobody can repeat is lost."
        )


def _order(inputs: Tensor, batch: Tensor) -> list[int]:
    return [int((inputs - sample).square().sum(dim=1).argmin()) for sample in batch]


@exercise(
    "01.4",
    title="megabytes",
    hints=(
        "One update is num_values float32 numbers of 4 bytes. In a round every client of the "
        "cohort receives a model and sends an update back.",
        "values × 4 bytes × 2 directions × clients in a round × rounds, divided by 10⁶.",
    ),
)
def megabytes(answer: Callable[..., Any]) -> str:
    for num_values, cohort, rounds in ((50_890, 10, 20), (1_107_722, 5, 3), (250_000, 1, 1)):
        truth = num_values * 4 * 2 * cohort * rounds / 1e6
        case = f"the answer for {num_values:,} values, {cohort} clients a round and {rounds} rounds"
        expect_close(
            answer(num_values, cohort, rounds), torch.tensor(truth), case,
            mistakes=_byte_mistakes(truth, cohort, rounds), rtol=1e-6,
        )  # fmt: skip
    return "The model's size, the cohort and the rounds multiply: fewer rounds are the cheap lever."


def _byte_mistakes(truth: float, cohort: int, rounds: int) -> dict[str, object]:
    return {
        "You count one direction. The model also travels down to each client: twice as much.": truth
        / 2,
        "You count the clients of the cohort once: each of them receives and sends a whole model."
        "": truth / cohort,
        "You count one round only.": truth / rounds,
        "These are megabits: a float32 has 4 bytes, which are 32 bits.": truth * 8,
        "These are mebibytes (2²⁰ bytes). A megabyte has 10⁶ bytes.": truth * 1e6 / 2**20,
        "These are bytes: divide by 10⁶.": truth * 1e6,
        "You count one byte a value, or values instead of bytes: a float32 has 4.": truth / 4,
        "You count float64 (8 bytes): the updates travel as float32, 4 bytes.": truth * 2,
    }

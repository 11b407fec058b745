"""Exact batches through a linear layer with ReLU: no optimisation of pictures. Chapter 05.

The gradient of ``z = W x + b`` over a batch is ``A = [∂W, ∂b] = Δᵀ [X, 1]``, of rank ``B``. ReLU
sets ``Δ[s, j] = 0`` wherever sample ``s`` leaves neuron ``j`` off. In the row space of ``A``, the
neurons that ``s`` leaves off lie in one plane: a direction at right angles to many rows of ``A`` at
once is found for every sample, and ``B`` such directions undo the mixing.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flcourse.attacks.linear import (
    Entry,
    candidate_deltas,
    divide,
    find_entry,
    probes,
)
from flcourse.attacks.types import Layer, Leak, Recovery, task_loss
from flcourse.runtime import generator

_AT_ONCE = 256  # starts descended together
_TOLERANCE = 1e-2  # of the recomputed gradient, relative: a wrong answer differs by 0.1 and more


@dataclass(frozen=True)
class _Mix:
    """The gradient's rows in its row space: ``rows = A basisᵀ`` ``[h, r]``, with noise ``eps``."""

    rows: Tensor
    basis: Tensor
    values: Tensor
    eps: float
    residual: float

    def zeros(self, directions: Tensor) -> Tensor:
        """Which rows each unit direction ``[n, r]`` annihilates, up to the noise: ``[n, h]``."""
        return (directions @ self.rows.T).abs() <= 10 * self.eps


def exact_batch(
    model: nn.Module, leak: Leak, *, seed: int = 0, max_starts: int = 2**15
) -> Recovery:
    """All pictures of a batch, exactly, where a linear layer with ReLU mixes first.

    The gradient is written in its ``B``-dimensional row space (singular vectors, float64). From
    random neurons' rows, ``max_starts`` at most, iteratively reweighted least squares descends to
    directions ``q`` that minimise ``Σ_j |row_j·q|``; those that annihilate many rows up to rounding
    are kept, greedily by how many, until ``B`` independent ones ``R`` give ``[X, 1] = R⁻¹ basis``.
    The bias column sets the scale. SPEAR draws ``B - 1`` rows and takes what is at right angles to
    them, which costs ``2^B`` draws; the descent costs a polynomial.

    The answer is verified: with the labels that fit, the gradient of the recovered batch must be
    the leak. ``loss`` is that relative distance; what fails is not returned, ``stopped_at`` says
    why. ``layers`` is the protocol; ``evaluations`` counts starts. A picture that occurs twice
    lowers the rank by one: it is found once, its copies are counted by their weight in the
    gradient, and the protocol says so. One sample is divided, ``divide``.

    Source: Dimitrov et al. 2024, "SPEAR: Exact Gradient Inversion of Batches in Federated
    Learning"; the descent in place of drawing as in Bakarsky et al. 2025, "SPEAR++". Chapter 05.
    Raises ``ValueError`` as ``divide`` does, for a layer without ReLU behind it or with only two
    classes right behind, fewer neurons or inputs than samples, several local steps, or clients that
    were each scaled.
    """
    start = time.process_time()
    if leak.batch_size == 1:
        return replace(divide(model, leak), method="exact_batch")
    _check(leak)
    entry = find_entry(model, leak)
    _check_slopes(model, entry, leak)
    mix, stopped = _decompose(entry, leak.batch_size)
    if mix is None:
        return Recovery(None, None, "exact_batch", stopped_at=stopped, seconds=_since(start))
    rank, tried = len(mix.basis), 0
    found = mix.rows.new_zeros(0, rank)
    source = generator(seed, "exact_batch")
    reason, loss = "", float("nan")
    protocol = [Layer(entry.name, f"rank {rank} of {leak.batch_size} samples", mix.residual)]
    while tried < max_starts:
        directions = [found, _descend(mix, found, source), _unmix(mix, found)]
        found = _select(mix, torch.cat(directions))
        tried += _AT_ONCE
        if len(found) < rank:
            reason = f"{len(found)} of {rank} samples separated after {tried} starts"
            continue
        answer = _assemble(model, entry, leak, mix, found)
        reason, loss = answer.stopped_at or "", answer.loss
        if answer.images is not None:
            zeros = int(mix.zeros(found).sum(dim=1).min())
            protocol.append(
                Layer(entry.name, f"each sample off in {zeros} neurons or more", mix.eps)
            )
            return replace(
                answer,
                evaluations=tried,
                seconds=_since(start),
                layers=(*protocol, *answer.layers),
            )
    return Recovery(
        None,
        None,
        "exact_batch",
        loss=loss,
        evaluations=tried,
        seconds=_since(start),
        layers=tuple(protocol),
        stopped_at=f"{entry.name}: {reason}; raise max_starts, or use match_gradients",
    )


def _descend(mix: _Mix, found: Tensor, source: torch.Generator) -> Tensor:
    """Unit directions ``[n, r]`` that annihilate many rows: local minima of ``Σ_j |row_j·q|``.

    Each start is at right angles to ``r - 1`` drawn rows: by luck, one sample is off in all. Half
    the draws prefer neurons that the samples ``found`` leave off, as fewer are mixed there. The
    rows are whitened first: pictures differ in brightness most. Each step is one of inverse
    iteration with weights ``1/|row_j·q|``, softened less and less.
    """
    live = mix.rows.norm(dim=1) > 10 * mix.eps
    rows = (mix.rows / mix.values)[live]
    rank = rows.shape[1]
    active = (~mix.zeros(found)[:, live]).sum(dim=0)
    chances = torch.stack([torch.ones(len(rows)), torch.exp(-active.float())])
    chances = chances.repeat(_AT_ONCE // 2, 1)
    drawn = torch.multinomial(chances, rank - 1, generator=source)
    q = torch.linalg.svd(rows[drawn]).Vh[:, -1]
    products = (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
    soft = (rows @ q.T).abs().median(dim=0).values
    tiny = 1e-13 * torch.eye(rank, dtype=rows.dtype)
    for step in range(36):
        if step < 30:
            weights = ((rows @ q.T).square() + (soft * 0.7**step).square()).rsqrt()
        else:  # from least absolute values to counting zeros: only rows at the noise still weigh
            noise = mix.eps * (q / mix.values).norm(dim=1)
            weights = 1 / ((rows @ q.T).square() + (3 * noise).square())
        normal = (weights.T @ products).reshape(-1, rank, rank)
        normal = normal / normal.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + tiny
        q = torch.linalg.solve(normal, q[..., None])[..., 0]
        q = q / q.norm(dim=1, keepdim=True)
    directions = q / mix.values
    return directions / directions.norm(dim=1, keepdim=True)


def _unmix(mix: _Mix, found: Tensor) -> Tensor:
    """``q_a - t·q_b`` for each pair found, with the ``t`` that annihilates most rows: ``[n, r]``.

    Samples of one class have gradients of one shape, so a descent may end in a mixture of the two.
    Row ``j`` wants ``t = row_j·q_a / row_j·q_b``; the value that many rows agree on is the answer.
    """
    live = mix.rows.norm(dim=1) > 10 * mix.eps
    if len(found) < 2:
        return found
    products = found @ mix.rows[live].T
    ratios = products[:, None] / products[None]  # [a, b, row]
    off = mix.zeros(found)[:, live]
    ratios = torch.where(off[:, None] | off[None], torch.inf, ratios).sort(dim=2).values
    spread = ratios[:, :, 4:] - ratios[:, :, :-4]  # five rows that agree
    spread = torch.where(torch.isfinite(spread), spread / ratios[:, :, 2:-2].abs(), torch.inf)
    width, place = spread.min(dim=2)
    best = ratios.gather(2, place[:, :, None] + 2)
    mixed = found[:, None] - best * found[None]
    agree = (width < 1e-3) & ~torch.eye(len(found), dtype=torch.bool)
    mixed = mixed[agree]
    return mixed / mixed.norm(dim=1, keepdim=True)


def _select(mix: _Mix, directions: Tensor) -> Tensor:
    """Independent directions, those that annihilate most rows first; refined on these rows.

    ``r - 1`` rows have a direction at right angles to them whatever they are, so ``r + 1`` of them
    are asked for. A mixture of two samples annihilates only what both leave off: it comes later,
    and is then dependent.
    """
    rank = mix.rows.shape[1]
    live = mix.rows.norm(dim=1) > 10 * mix.eps
    zeros = mix.zeros(directions) & live
    kept: list[Tensor] = []
    for k in zeros.sum(dim=1).argsort(descending=True, stable=True):
        if len(kept) == rank or int(zeros[k].sum()) < rank + 1:
            break
        whitened = torch.stack([*kept, directions[k]]) * mix.values
        whitened = whitened / whitened.norm(dim=1, keepdim=True)
        if float(torch.linalg.svdvals(whitened)[-1]) < 1e-3:
            continue
        refined = torch.linalg.svd(mix.rows[zeros[k]], full_matrices=False).Vh[-1]
        kept.append(refined)
    return torch.stack(kept) if kept else mix.rows.new_zeros(0, rank)


def _decompose(entry: Entry, samples: int) -> tuple[_Mix | None, str]:
    """The row space of the entry layer's gradient; its noise is what lies outside ``samples``."""
    whole = torch.cat([entry.weight, entry.bias[:, None]], dim=1)
    if not bool(torch.isfinite(whole).all()):
        raise ValueError("the leak holds values that are not finite: nothing to separate")
    height, width = whole.shape
    if samples >= min(height, width):
        raise ValueError(
            f"batch_size={samples} needs a layer with more neurons and inputs than samples, got "
            f"{height} neurons and {width - 1} inputs: use match_gradients"
        )
    _, values, basis = torch.linalg.svd(whole, full_matrices=False)
    tail = values[samples:]
    eps = float((tail.square().sum() / ((height - samples) * (width - samples))).sqrt())
    eps = max(eps, 1e-15 * float(values[0]))
    rank = int((values[:samples] > 10 * max(float(tail[0]), 1e-14 * float(values[0]))).sum())
    residual = float(tail.norm() / values.norm())
    if rank < 1:
        return None, (
            f"{entry.name}: the gradient has more than {samples} directions of alike size: noise "
            "drowns it, or it holds more samples than the leak says"
        )
    return _Mix(whole @ basis[:rank].T, basis[:rank], values[:rank], eps, residual), ""


def _assemble(
    model: nn.Module, entry: Entry, leak: Leak, mix: _Mix, directions: Tensor
) -> Recovery:
    """Pictures, labels and copies from one direction per sample, and the check on the gradient."""
    batch = len(directions)
    inputs = torch.linalg.solve(directions.T, mix.basis)  # each row a sample [x, 1], times a number
    scales = inputs[:, -1:]
    deltas = (mix.rows @ directions.T * scales[:, 0]).T  # [r, h], the batch's mean still in it
    images = entry.pictures(inputs[:, :-1] / scales, leak)
    nothing = Recovery(None, None, "exact_batch")
    if not bool(torch.isfinite(images).all()):
        return replace(nothing, stopped_at="a direction without a bias: no sample looks like that")
    candidates = candidate_deltas(model, entry, images)
    assert candidates is not None  # _check_slopes looked
    labels = torch.cosine_similarity(candidates, deltas[None], dim=2).argmax(dim=0)
    own = candidates[labels, torch.arange(batch)]
    weights = (own * deltas).sum(dim=1) / own.square().sum(dim=1)  # copies/B, times a clip's factor
    if leak.clip_norm is not None or leak.normalised:
        weights = weights / weights.sum()
    copies = (weights * leak.batch_size).round().long()
    if int(copies.sum()) != leak.batch_size or int(copies.min()) < 1:
        return replace(
            nothing,
            stopped_at=f"the gradient has {batch} directions, whose weights are {copies.tolist()} "
            f"samples, not {leak.batch_size}: some left no trace, or two were mixed",
        )
    labels = labels.repeat_interleave(copies).to(images.device)
    images = images.repeat_interleave(copies.to(images.device), dim=0)
    loss = _distance(model, leak, images, labels)
    if not loss <= _TOLERANCE + 3 * mix.residual:
        return replace(
            nothing,
            loss=loss,
            stopped_at=f"the answer's own gradient is {loss:.1g} away from the leak: it is wrong",
        )
    twice = [f"picture {k} occurs {n} times" for k, n in enumerate(copies.tolist()) if n > 1]
    layers = (Layer(entry.name, "; ".join(["gradient of the answer", *twice]), loss),)
    return Recovery(images, labels, "exact_batch", loss=loss, layers=layers)


@torch.enable_grad()
def _distance(model: nn.Module, leak: Leak, images: Tensor, labels: Tensor) -> float:
    """``‖g(answer) - leak‖ / ‖leak‖`` over all parameters, up to a factor where it was clipped."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    names = [name for name in leak.gradients if parameters[name].requires_grad]
    loss = task_loss(model(images), labels).mean()
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
    pairs = [(g, leak.gradients[n]) for g, n in zip(gradients, names, strict=True) if g is not None]
    mine = torch.cat([g.detach().cpu().double().flatten() for g, _ in pairs])
    sent = torch.cat([seen.detach().cpu().double().flatten() for _, seen in pairs])
    if leak.clip_norm is not None or leak.normalised:
        mine = mine * (mine @ sent) / mine.square().sum()
    return float((mine - sent).norm() / sent.norm())


def _check(leak: Leak) -> None:
    if leak.steps > 1:
        raise ValueError(
            f"the update holds {leak.steps} local steps: exact_batch reads one; use match_gradients"
        )
    if leak.normalised and leak.num_clients > 1:
        raise ValueError(
            "each client's message was scaled by a factor of its own: use match_gradients"
        )


def _check_slopes(model: nn.Module, entry: Entry, leak: Leak) -> None:
    """Probe what follows the layer: it must leave neurons off, and tell samples apart.

    ReLU makes some slopes exactly 0 at any picture; sigmoids have none. With one logit or two
    classes right behind it, all samples' gradients have one shape: then a difference of two samples
    annihilates more rows than either, and the rows that are 0 do not single out a sample.
    """
    slopes = candidate_deltas(model, entry, probes(leak.image_shape).to(entry.layer.weight))
    if slopes is None:
        raise ValueError("the model's outputs are not [b, k]: there is no label to verify with")
    if not bool((slopes == 0).all(dim=0).any()):
        raise ValueError(
            f"behind {entry.name!r} every neuron passes on a gradient: exact_batch needs ReLU, "
            "which leaves about half of them off; use match_gradients"
        )
    shapes = torch.linalg.svdvals(slopes[0][:, (slopes[0] != 0).all(dim=0)])
    if len(shapes) > 1 and float(shapes[1]) < 1e-6 * float(shapes[0]):
        raise ValueError(
            f"{len(slopes)} classes right behind {entry.name!r} give every sample a gradient of "
            "one shape, which exact_batch cannot tell apart: use match_gradients"
        )


def _since(start: float) -> float:
    return time.process_time() - start

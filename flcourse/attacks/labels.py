"""Which labels a client trained on, read from its message. Chapter 04.

``infer_labels`` chooses among the rules; each rule is a function of gradients alone and can be
called by itself. A guess is ``certain`` only where its rule proves it, for honest clients that
train with softmax and cross-entropy (or its one-logit form); otherwise it says why it is not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flcourse.attacks.counts import (
    at_least,
    class_predictions,
    guess_scale,
    matched_errors,
    own_predictions,
    response,
    solve_counts,
    to_counts,
)
from flcourse.attacks.head import (
    Head,
    Path,
    UnsupportedHeadError,
    find_head,
    moved,
    reference_inputs,
    respond,
    training_path,
)
from flcourse.attacks.label_rules import (
    counts_guess,
    label_counts,
    one_guess,
    one_logit,
    opposite_row_rule,
    row_sum_rule,
    sign_rule,
)
from flcourse.attacks.observe import check_batch, observe_gradient
from flcourse.attacks.types import LabelGuess, Leak
from flcourse.runtime import generator

__all__ = [
    "infer_labels",
    "label_counts",
    "one_logit",
    "opposite_row_rule",
    "row_sum_rule",
    "sign_rule",
]

_MOST_VALUES = 50_000_000  # gradients of all classes held at once, 200 MB
_PICTURES = 8  # made-up pictures behind one class gradient

# --- the choice -----------------------------------------------------------------------------------


def infer_labels(
    model: nn.Module, leak: Leak, *, public: tuple[Tensor, Tensor] | None = None
) -> LabelGuess:
    """The labels behind a message, by the rule that fits it; ``reason`` says which and how sure.

    - one sample, no noise: ``sign_rule``; without a bias ``opposite_row_rule``;
    - one logit: ``one_logit``;
    - noise (public in the leak): whole rows of the last layer, weighed by the features' mean;
    - a batch: counts from ``B·∂b = Σ_c n_c·(p_c - e_c)``, where the prediction ``p_c`` on class
      ``c`` comes from the leak itself (its mean features), from made-up pictures, and from
      ``public``, labelled samples ``(images, labels)`` of other people; along the path of local
      training for an update of several steps; with the scale estimated where clipping or
      normalising hid it;
    - a model that ends in no linear layer: the whole gradient against those of made-up pictures.

    A trained model is sure of most samples, and these leave no trace: counts get worse (chapter
    04), ``public`` helps in large batches. Raises ``ValueError`` if ``public`` is no batch, or the
    leak does not belong to the model.
    """
    if foreign := set(leak.values) - {
        n for n, _ in [*model.named_parameters(), *model.named_buffers()]
    }:
        raise ValueError(f"the model has no {sorted(foreign)}: give the model of this leak")
    if public is not None:
        public = check_batch(model, *public)
    try:
        head = find_head(model, leak)
    except UnsupportedHeadError as error:
        return _by_whole_gradients(model, leak, public, str(error))
    if leak.batch_size == 1 and leak.noise_std is None and len(head.bias) > 1:
        if head.bias_gradient is not None:
            guess = sign_rule(head.bias_gradient)
        else:
            assert head.weight_gradient is not None
            guess = opposite_row_rule(head.weight_gradient)
        if guess.certain:
            return guess
    return _by_last_layer(model, leak, head, public)


def _by_last_layer(
    model: nn.Module, leak: Leak, head: Head, public: tuple[Tensor, Tensor] | None
) -> LabelGuess:
    path, change = training_path(leak), _change(leak, head)
    strangers = reference_inputs(model, leak) if public is None else public[0]
    features = []
    for fraction in path.fractions.tolist():
        seen = respond(moved(model, leak, fraction), leak, strangers, at=head.name)
        features.append(seen.double().cpu())
    mean = response(head, features, path, change)
    size, noise_std = leak.batch_size, (leak.noise_std or 0.0) / abs(leak.scale)
    scale, blurred = _scale(model, leak), leak.noise_std is not None
    if blurred or head.bias_gradient is None:
        errors, deviation = matched_errors(head, features[0], size, noise_std / (scale or 1.0))
    else:
        errors, deviation = head.bias_gradient, 0.0
    by_class = None
    if public is not None:
        by_class = _by_class(head, features, public[1].cpu(), path, change)
    if len(head.bias) == 1:
        pair = mean.repeat(2) if by_class is None else by_class[:, 0]
        signed = head.bias_gradient is not None and not blurred
        return one_logit(
            errors / (scale or 1.0),
            size,
            negative=float(pair[0]),
            positive=float(pair[1]),
            exact=signed and (size == 1 or (_equal(leak) and scale is None)),
        )
    if size == 1:
        reason = "one sample, and the sign rule does not hold (noise, or a value that was altered)"
        return one_guess(-errors, False, f"{reason}: the least of the last layer's rows as a whole")
    if scale is not None:
        scale = guess_scale(errors, mean, size, scale)
        errors, deviation = errors / scale, deviation / scale
    clean = head.exact and head.bias_gradient is not None and scale is None
    least = torch.zeros_like(errors)
    if head.exact and head.bias_gradient is not None:
        least = at_least(errors, size, equal=_equal(leak) and scale is None)
    if int(least.sum()) > size:  # no honest message of so few samples
        least, clean = torch.zeros_like(errors), False
    own = None
    if head.exact and head.bias_gradient is not None and head.weight_gradient is not None:
        own = own_predictions(head, head.bias_gradient, path, change)
    table, apart = class_predictions(errors, mean, own, by_class)
    doubt = math.hypot(0.25 * apart, size * deviation * math.sqrt(len(errors)))
    real = solve_counts(errors, table, size, least=least, doubt=doubt)
    source = "the leak's own features" if own is not None else "the mean prediction"
    source += " and public samples" if public is not None else ""
    if scale is not None:
        source += "; the message was clipped or normalised, so its scale is estimated, too"
    if blurred:
        source += "; under noise"
    return counts_guess(real, least, size, source, proof=clean)


def _by_class(
    head: Head, features: list[Tensor], labels: Tensor, path: Path, change: Head | None
) -> Tensor:
    """The mean prediction on public samples of each class; on all where a class has none."""
    masks = [labels == k for k in range(max(len(head.bias), 2))]
    masks = [mask if bool(mask.any()) else torch.ones_like(mask) for mask in masks]
    return torch.stack(
        [response(head, [rows[mask] for rows in features], path, change) for mask in masks]
    )


def _by_whole_gradients(
    model: nn.Module, leak: Leak, public: tuple[Tensor, Tensor] | None, why: str
) -> LabelGuess:
    """Counts from ``G ≈ Σ_c n_c·g_c / B``, ``g_c`` the gradient of other pictures of class c."""
    inputs = reference_inputs(model, leak) if public is None else public[0]
    logits = respond(model, leak, inputs)
    size, classes = leak.batch_size, max(int(logits.shape[-1]), 2)
    gradient = torch.cat([g.reshape(-1) for g in leak.gradients.values()])
    if logits.dim() != 2 or classes * len(gradient) > _MOST_VALUES:
        nothing = torch.zeros(classes, dtype=torch.float64)
        counts = to_counts(nothing, size)
        labels = torch.arange(classes).repeat_interleave(counts)
        return LabelGuess(labels, counts, False, f"nothing is known: {why}", nothing)
    rows = []
    for k in range(classes):
        chosen = inputs[:: max(len(inputs) // _PICTURES, 1)][:_PICTURES]
        if public is not None and bool((public[1] == k).any()):
            chosen = inputs[public[1] == k][:_PICTURES]
        labels = torch.full((len(chosen),), k, device=chosen.device)
        values = observe_gradient(model, chosen, labels).values
        rows.append(torch.cat([values[name].reshape(-1) for name in leak.gradients]))
    table = torch.stack(rows).double()
    gram, right = table @ table.T, table @ gradient.to(table)
    level = float(gram.diagonal().mean())
    share = torch.linalg.lstsq(
        gram / level + 1e-3 * torch.eye(classes, dtype=torch.float64, device=gram.device),
        right / level,
    ).solution.cpu()
    real = share * size
    counts = to_counts(real if size > 1 else real - real.max() + 1, size)
    labels = torch.arange(classes).repeat_interleave(counts)
    reason = f"{why}: guessed by comparing the whole gradient with those of other pictures"
    return LabelGuess(labels, counts, False, reason, real)


# --- what the protocol says -----------------------------------------------------------------------


def _change(leak: Leak, head: Head) -> Head | None:
    """How far the last layer moved, as a ``Head`` of differences; ``None`` for a gradient."""
    if leak.kind == "gradient" or leak.noise_std or leak.clip_norm or leak.normalised:
        return None
    weight, bias = head.weight_gradient, head.bias_gradient
    return Head(
        head.name,
        torch.zeros_like(head.weight) if weight is None else leak.scale * weight,
        torch.zeros_like(head.bias) if bias is None else leak.scale * bias,
        None,
        None,
        head.exact,
    )


def _equal(leak: Leak) -> bool:
    """Whether every sample entered with weight ``1/B``: one step, or equal batches, one client."""
    if leak.num_clients > 1 or leak.normalised:
        return False
    if leak.kind == "gradient" or leak.steps == 1:
        return True
    batch = leak.local_batch_size or leak.batch_size
    return leak.momentum == 0 and leak.batch_size % batch == 0


def _scale(model: nn.Module, leak: Leak) -> float | None:
    """The expected factor by which clipping or normalising shrank the message, ``None`` for none.

    The length it would have had is that of batches of made-up pictures with random labels.
    """
    if not leak.normalised and leak.clip_norm is None:
        return None
    if leak.clip_norm is not None and not leak.normalised and leak.num_clients == 1:
        row, noise = leak.row.double(), leak.noise_std or 0.0
        signal = float(row.square().sum()) - len(row) * noise**2
        if signal + 3 * noise**2 * math.sqrt(2 * len(row)) < 0.998 * leak.clip_norm**2:
            return None  # shorter than the clip norm: it was not clipped
    inputs = reference_inputs(model, leak)
    classes = max(respond(model, leak, inputs).shape[1], 2)
    own = max(leak.batch_size // leak.num_clients, 1)
    lengths = []
    for draw in range(4):
        rng = generator(draw, "expected length")
        chosen = inputs[torch.randperm(len(inputs), generator=rng)[: min(own, len(inputs))]]
        labels = torch.randint(classes, (len(chosen),), generator=rng).to(chosen.device)
        lengths.append(float(observe_gradient(model, chosen, labels).row.norm()))
    length = sum(lengths) / len(lengths)
    if leak.normalised:
        return 1 / max(length, 1e-30)
    assert leak.clip_norm is not None
    return min(1.0, leak.clip_norm / (abs(leak.scale) * max(length, 1e-30)))

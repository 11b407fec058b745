"""Mistakes people really make in the exercises of chapter 04, and what they must be told."""

import torch
import torch.nn.functional as F


def sign_rule(message, kind, *, threshold=0.0, turn=True, always=False):
    """A correct answer with switches for what can go wrong."""
    entries = -message if turn and kind == "update" else message
    if not always and (entries < -threshold).sum() != 1:
        return -1
    return int(entries.argmin())


def dealt(wanted, size):
    left, counts = wanted.clone(), torch.zeros_like(wanted)
    for _ in range(size):
        counts[left.argmax()] += 1
        left[left.argmax()] -= 1
    return counts


def rescaled(g, p, size):
    wanted = (size * (p - g)).clamp(min=0)
    return (wanted * size / wanted.sum()).round()


def rest_to_the_largest(g, p, size):
    counts = (size * (p - g)).round().clamp(min=0)
    counts[counts.argmax()] += size - counts.sum()
    return counts


def most_likely(g, p, size):
    counts = torch.zeros_like(g)
    counts[(p - g).argmax()] = size
    return counts


WRONG = {
    "04.1": [
        ("largest", lambda m, kind: int(m.argmax()), "negative"),
        ("kind ignored", lambda m, kind: int(m.argmin()), "signs are turned"),
        ("kind ignored, careful", lambda m, kind: sign_rule(m, kind, turn=False),
         "signs are turned"),
        ("largest size", lambda m, kind: int(m.abs().argmax()), "same size"),
        ("a threshold", lambda m, kind: sign_rule(m, kind, threshold=1e-3), "without a threshold"),
        ("never in doubt", lambda m, kind: sign_rule(m, kind, always=True),
         "where the rule does not apply"),
        ("never in doubt about updates",
         lambda m, kind: int(m.argmax()) if kind == "update" else sign_rule(m, kind),
         "where the rule does not apply"),
        ("the entry", lambda m, kind: m.min(), "not the entry"),
        ("all negative ones", lambda m, kind: m < 0, "one class"),
    ],
    "04.2": [
        ("shares", lambda g, p, size: p - g, "batch size"),
        ("sign", lambda g, p, size: size * (g - p), "sign is turned"),
        ("negative entries", lambda g, p, size: (g < 0).float(), "negative entries only"),
        ("uniform", lambda g, p, size: dealt(size * (1 / len(g) - g), size), "same p̄"),
        ("bias alone", lambda g, p, size: dealt(-size * g, size), "same p̄"),
        ("cut off", lambda g, p, size: (size * (p - g)).clamp(min=0).int(), "add up to"),
        ("no rounding", lambda g, p, size: size * (p - g), "whole numbers"),
        ("rounded alone", lambda g, p, size: (size * (p - g)).round(), "count is negative"),
        ("rounded and clamped", lambda g, p, size: (size * (p - g)).round().clamp(min=0),
         "add up to"),
        ("rescaled", rescaled, "add up to"),
        ("all to one", most_likely, "expected"),
        ("rounded, the rest to the largest", rest_to_the_largest, "farther from"),
    ],
    "04.3": [
        ("cross-entropy", F.cross_entropy, "still names the label"),
        ("sharper", lambda z, y: F.cross_entropy(5 * z, y), "still names the label"),
        ("logits turned", lambda z, y: F.cross_entropy(-z, y), "largest output"),
        ("loss turned", lambda z, y: -F.cross_entropy(z, y), "nothing is learnt"),
        ("per class", lambda z, y: F.binary_cross_entropy_with_logits(
            z, F.one_hot(y, 10).float()), "still names the label"),
        ("per sample", lambda z, y: F.cross_entropy(z, y, reduction="none"), "mean over the batch"),
        ("no gradient", lambda z, y: F.cross_entropy(z.detach(), y), "gradient"),
        ("always zero", lambda z, y: 0 * z.sum(), "nothing is learnt"),
    ],
}  # fmt: skip

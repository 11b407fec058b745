"""Mistakes people really make in the exercises of chapter 13, and what they must be told."""

import numpy as np

from flcourse.secagg.shamir import combine_plain


def masked(values, masks, bits, *, signs=(1, -1), size=None, signed=True, wrap_total=True):
    """A correct answer to 13.1 with switches for what can go wrong."""
    size = 2**bits if size is None else size
    sent = list(values)
    for (i, j), mask in masks.items():
        sent[i] += signs[0] * mask
        sent[j] += signs[1] * mask
    sent = [m % size for m in sent] if size else sent
    total = sum(sent) % 2**bits if wrap_total else sum(sent)
    return sent, total - 2**bits if signed and total >= 2 ** (bits - 1) else total


def half_open(total, bits):
    """The total read as -R/2 + 1 .. R/2: the lower end comes out positive."""
    return (total + 2 ** (bits - 1) - 1) % 2**bits - 2 ** (bits - 1) + 1


def weighted(shares, prime, weight):
    return sum(y * weight(x, shares, prime) for x, y in shares.items()) % prime


def product(x, shares, prime, *, at=0, turned=False):
    result = 1
    for other in shares:
        if other != x:
            below = x - other if turned else other - x
            result = result * (other - at) * pow(below, -1, prime) % prime
    return result


def floored(x, shares, prime):
    above, below = 1, 1
    for other in shares:
        if other != x:
            above, below = above * other, below * (other - x)
    return above // below


def in_floats(shares, prime):
    total = 0.0
    for x, y in shares.items():
        weight = 1.0
        for other in shares:
            if other != x:
                weight *= other / (other - x)
        total += y * weight
    return total % prime


def read(*, floats=True, weak=4096, peel=True, every=True, modulo=True, sign=True, sure=False):
    """A correct answer to 13.3 with switches for what can go wrong."""

    def whose(message, candidates, opened, expand):
        if message.dtype.kind == "f":
            return int(((candidates - message) ** 2).sum(axis=1).argmin()) if floats else -1
        left = message.copy()
        for seed, way in (opened if every else opened[:1]) if peel else []:
            left = left - (way if sign else 1) * expand(seed)
        for mask in [0 * left, *(expand(seed) for seed in range(weak))]:
            rest = left - mask - candidates
            fits = ((rest % 65536 if modulo else rest) == 0).all(axis=1)
            if fits.any():
                return int(fits.argmax())
        return int(np.abs(left - candidates).sum(axis=1).argmin()) if sure else -1

    return whose


WRONG = {
    "13.1": [
        ("nothing masked", lambda v, m, b: ([x % 2**b for x in v], sum(v)), "nothing is masked"),
        ("no modulo", lambda v, m, b: masked(v, m, b, size=0), "modulo 2^k"),
        ("both add", lambda v, m, b: masked(v, m, b, signs=(1, 1)), "does not cancel"),
        ("turned round", lambda v, m, b: masked(v, m, b, signs=(-1, 1)), "turned round"),
        ("one too few", lambda v, m, b: masked(v, m, b, size=2**b - 1), "2^k many"),
        ("unsigned", lambda v, m, b: masked(v, m, b, signed=False), "negative one"),
        ("total not wrapped", lambda v, m, b: masked(v, m, b, signed=False, wrap_total=False),
         "sum modulo"),
        ("always negative", lambda v, m, b: (masked(v, m, b)[0], sum(v) % 2**b - 2**b),
         "only numbers from"),
        ("half the clock positive", lambda v, m, b: (masked(v, m, b)[0], half_open(sum(v), b)),
         "negative one"),
        ("floats", lambda v, m, b: ([float(x) for x in masked(v, m, b)[0]], sum(v)),
         "whole numbers only"),
        ("messages alone", lambda v, m, b: masked(v, m, b)[0], "two things"),
    ],
    "13.2": [
        ("floats", in_floats, "float"),
        ("rounded down", lambda s, p: weighted(s, p, floored), "//"),
        ("not reduced", lambda s, p: combine_plain(s, p) + p, "modulo the prime"),
        ("turned weights",
         lambda s, p: weighted(s, p, lambda x, o, q: product(x, o, q, turned=True)), "sign"),
        ("at one", lambda s, p: weighted(s, p, lambda x, o, q: product(x, o, q, at=1)), "curve at"),
        ("added", lambda s, p: sum(s.values()) % p, "add the shares"),
        ("first share", lambda s, p: next(iter(s.values())), "as it is"),
        ("renumbered", lambda s, p: combine_plain(dict(enumerate(s.values(), 1)), p), "x that"),
    ],
    "13.3": [
        ("floats are noise", read(floats=False), "floats from a normal"),
        ("no weak seeds", read(weak=0), "12 bits"),
        ("too few seeds", read(weak=256), "12 bits"),
        ("one mask peeled", read(every=False), "both kinds"),
        ("nothing peeled", read(peel=False), "a flaw passes"),
        ("no modulo", read(modulo=False), "a flaw passes"),
        ("signs forgotten", read(sign=False), "both kinds"),
        ("always sure", read(sure=True), "sound round"),
    ],
}  # fmt: skip

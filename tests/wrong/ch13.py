"""Mistakes people really make in the exercises of chapter 13, and what they must be told."""

import contextlib
import hashlib
import hmac
import itertools
import os
import random
import secrets

import numpy as np
from cryptography.exceptions import InvalidSignature

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
    """A correct answer to 13.5 with switches for what can go wrong."""

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


def fitting(shares, prime, tried, *, first=1, every=True, modulo=True):
    found = set()
    for slopes in tried:
        values = {
            y - sum(c * x**power for power, c in enumerate(slopes, first))
            for x, y in (shares if every else dict([next(iter(shares.items()))])).items()
        }
        values = {value % prime for value in values} if modulo else values
        if len(values) == 1:
            found |= values
    return found


def shamir(*, start=0, back=600, ahead=0, repair=None, some=None, **how):
    """A correct answer to 13.3 with switches for what can go wrong."""

    def from_range(shares, threshold, prime, limit):
        tried = itertools.product(range(start, limit), repeat=threshold - 1)
        found = fitting(shares, prime, tried, **how)
        return found if some is None else some(found)

    def from_clock(shares, threshold, prime, draw, now):
        tried = (draw(now - s, threshold - 1) for s in range(-ahead, back))
        return fitting(shares, prime, tried, **how)

    def coefficients(threshold, prime):
        return [secrets.randbelow(prime) for _ in range(threshold - 1)]

    return from_range, from_clock, repair or coefficients


def each(draw):
    """Coefficients by `draw(prime)`."""
    return lambda threshold, prime: [draw(prime) for _ in range(threshold - 1)]


def stretched(threshold, prime):
    source = np.random.default_rng()
    return [int(source.integers(2**62)) ** 3 % prime for _ in range(threshold - 1)]


def name_tag(name, text):
    return hmac.new(name.encode(), text, "sha256").digest()


def signer(*, tag=name_tag, look=True, sign=None, verify=None, signed=lambda r, text: r + text):
    """A correct answer to 13.4 with switches for what can go wrong."""

    def forge(seen, other):
        weak = [n for n, (text, old) in seen.items() if not look or name_tag(n, text) == old]
        return {name: tag(name, other) if tag else seen[name][1] for name in weak}

    def plain_sign(key, round_id, listed):
        return key.sign(signed(round_id, listed))

    def plain_verify(public, round_id, listed, tag):
        try:
            public.verify(tag, signed(round_id, listed))
        except InvalidSignature:
            return False
        return True

    return forge, sign or plain_sign, verify or plain_verify


def always(public, round_id, listed, tag):
    with contextlib.suppress(InvalidSignature):
        public.verify(tag, round_id + listed)
    return True


def public_tag(public, text):
    return hmac.new(public.public_bytes_raw(), text, "sha256").digest()


KEYED_WITH_PUBLIC = {
    "sign": lambda key, r, listed: public_tag(key.public_key(), r + listed),
    "verify": lambda public, r, listed, tag: tag == public_tag(public, r + listed),
}


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
        ("nothing found", shamir(some=lambda found: set()), "nothing fits"),
        ("no modulo", shamir(modulo=False), "modulo the prime"),
        ("powers from 0", shamir(first=0), "multiplied by 1"),
        ("one share", shamir(every=False), "look at one share"),
        ("never zero", shamir(start=1), "may be 0"),
        ("one secret only", shamir(some=lambda found: max(found)), "the set of all"),
        ("half a window", shamir(back=300), "true secret"),
        ("a window too far", shamir(back=900, ahead=600), "you return"),
        ("random", shamir(repair=each(random.randrange)), "made for statistics"),
        ("unseeded Random", shamir(repair=each(random.Random().randrange)), "statistics"),
        ("a seed stretched", shamir(repair=stretched), "stretches"),
        ("16 bits", shamir(repair=each(lambda p: secrets.randbits(16) % p)), "too small a range"),
        ("half the field", shamir(repair=each(lambda p: secrets.randbelow(p // 2))),
         "smaller than"),
        ("never zero drawn", shamir(repair=each(lambda p: 1 + secrets.randbelow(p - 1))),
         "ever 0"),
        ("a byte, reduced",
         shamir(repair=each(lambda p: int.from_bytes(os.urandom(1 if p < 256 else 16), "big") % p)),
         "too often"),
        ("one too many", shamir(repair=lambda t, p: [secrets.randbelow(p) for _ in range(t)]),
         "beside the secret"),
        ("one function", shamir()[0], "all 3 functions"),
    ],
    "13.4": [
        ("replayed", signer(tag=None), "replayed"),
        ("a plain hash",
         signer(tag=lambda n, text: hashlib.sha256(n.encode() + text).digest()), "plain hash"),
        ("exchanged",
         signer(tag=lambda n, text: hmac.new(text, n.encode(), "sha256").digest()), "exchanged"),
        ("everybody", signer(look=False), "key is a secret"),
        ("nobody", (lambda seen, other: {}, *signer()[1:]), "a flaw passes"),
        ("no round", signer(signed=lambda r, text: text), "earlier round"),
        ("no list", signer(signed=lambda r, text: r), "another list"),
        ("keyed with the public key", signer(**KEYED_WITH_PUBLIC), "public key alone"),
        ("returns None", signer(verify=lambda p, r, text, tag: p.verify(tag, r + text)),
         "refuses an honest"),
        ("raises", signer(verify=lambda p, r, text, tag: p.verify(tag, r + text) or True),
         "verify raises"),
        ("swallows it", signer(verify=always), "accepts the same tag"),
    ],
    "13.5": [
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

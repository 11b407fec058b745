"""Mistakes people really make in the exercises of chapter 14, and what they must be told."""

import math

import torch


def product(ciphertexts, weights, n, *, modulus=2, power=True):
    total = 1
    for c, w in zip(ciphertexts, weights, strict=True):
        total = total * (pow(c, w, n * n) if power else c)
        if modulus:
            total %= n**modulus
    return total


def packers(
    *, room=True, shift=True, once=False, spare=0, turned=False, whole=int, first=True, log=False
):
    """A correct pair for 14.2 with switches for what can go wrong."""

    def width(level, clients):
        most = 2 * level * (clients if room else 1)
        return (math.ceil(math.log2(most)) if log else most.bit_length()) + spare

    def pack(numbers, level, clients):
        w, offset = width(level, clients), level if shift else 0
        numbers = numbers if first else numbers[::-1]
        return whole(sum((number + offset) << (w * i) for i, number in enumerate(numbers)))

    def unpack(total, count, level, clients):
        w = width(level, clients)
        offset = (level if once else clients * level) if shift else 0
        slots = [(int(total) >> (w * i)) % 2**w - offset for i in range(count)]
        return slots[::-1] if turned or not first else slots

    return pack, unpack


def spy(round_, rows):
    got = []
    round_(rows, got.append)
    return got[0]


FIRST, SECOND = [0.0, 0.9, 0.01, -0.5], [0.7, -0.02, 0.4, 0.001]


def tells(*, rows=(FIRST, SECOND), close=True, lengths=True, repeat=True, swap=True, whole=False):
    """A correct test of 14.3 with switches for what can go wrong."""
    other = rows[::-1] if swap else ([0.5] * 4, [0.1] * 4)

    def same(a, b):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-4) if close else a == b

    def test(round_):
        seen = [spy(round_, torch.tensor(r)) for r in (rows, rows if repeat else other, other)]
        for first, again, changed in zip(*seen, strict=True):
            if lengths and len(first) == len(again) != len(changed):
                return True
            if whole:
                if same_rows(first, again) and not same_rows(first, changed):
                    return True
                continue
            for a, b, c in zip(first, again, changed, strict=False):
                if (same(a, b) or not repeat) and not same(a, c):
                    return True
        return False

    def same_rows(a, b):
        return len(a) == len(b) and all(map(same, a, b))

    return test


WRONG = {
    "14.1": [
        ("sum of ciphertexts", lambda c, w, n: sum(c) % n**2, "multiply them"),
        ("weighted sum of ciphertexts", lambda c, w, n: sum(map(int.__mul__, c, w)) % n**2,
         "powers are multiples"),
        ("times the weight", lambda c, w, n: math.prod(map(int.__mul__, c, w)) % n**2,
         "raised to the power"),
        ("modulo n", lambda c, w, n: product(c, w, n, modulus=1), "modulus of messages"),
        ("not reduced", lambda c, w, n: product(c, w, n, modulus=0), "below n²"),
        ("no weights", lambda c, w, n: product(c, w, n, power=False), "without weights"),
        ("a float", lambda c, w, n: float(product(c, w, n)), "whole number"),
        ("mean", lambda c, w, n: product(c, w, n) // sum(w), "decrypts to"),
    ],
    "14.2": [
        ("room for one client", packers(room=False), "fit into a slot"),
        ("no shift", packers(shift=False), "negative"),
        ("shift taken once", packers(once=True), "each of the clients"),
        ("a byte to spare", packers(spare=8), "wider than"),
        ("reversed", packers(turned=True), "order"),
        ("highest first", packers(first=False), "lowest"),
        ("a logarithm", packers(log=True), "fit into a slot"),
        ("a float", packers(whole=float), "float"),
        ("one function", packers()[0], "both functions"),
    ],
    "14.3": [
        ("always", lambda round_: True, "sound"),
        ("never", lambda round_: False, "decrypts each message"),
        ("exact", tells(close=False), "tolerance"),
        ("no lengths", tells(lengths=False), "length"),
        ("no repeat", tells(repeat=False), "sound"),
        ("other rows", tells(swap=False), "sound"),
        ("no zeros", tells(rows=([0.3, 0.9, 0.01, -0.5], SECOND)), "length"),
        ("whole messages", tells(whole=True), "exponent"),
        ("nothing but numbers", lambda round_: 0.5, "True or False"),
    ],
}  # fmt: skip

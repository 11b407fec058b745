"""Checks of chapter 14: sums by products, slots that no sum overflows, a round that tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flcourse.exercises._core import Wrong, exercise, expect_functions
from flcourse.runtime import generator

PRIMES = ((211, 241), (1009, 1201), (10007, 12011))
Round = Callable[..., Any]


# --- a tiny Paillier, for the checks only: its randomness repeats ---------------------------------


def _encrypted(message: int, n: int, draw: torch.Generator) -> int:
    while math.gcd(r := int(torch.randint(2, n, (), generator=draw)), n) != 1:
        pass
    return (1 + n * message) * pow(r, n, n * n) % (n * n)


def _decrypted(ciphertext: int, p: int, q: int) -> int:
    n, secret = p * q, math.lcm(p - 1, q - 1)
    return (pow(ciphertext, secret, n * n) - 1) // n * pow(secret, -1, n) % n


@exercise(
    "14.1",
    title="a weighted sum of what cannot be read",
    hints=(
        "A product of ciphertexts decrypts to a sum. Client k shall count w_k times: multiply its "
        "ciphertext w_k times. That is a power.",
        "Start with 1. For each client multiply by pow(c, w, n * n), and take the product modulo "
        "n². The modulus of ciphertexts is n², that of messages is n.",
    ),
)
def weighted_sum(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 14.1")
    for p, q in PRIMES:
        for count in (2, 5):
            largest = max(2, p * q // (40 * count))
            messages = torch.randint(1, largest, (count,), generator=draw).tolist()
            weights = torch.randint(2, 9, (count,), generator=draw).tolist()
            _check_sum(answer, messages, weights, p, q, draw)
    _check_sum(answer, [7, 5], [0, 3], *PRIMES[0], draw)
    return "Multiplied and raised to powers, never read: FedAvg's weighted sum under encryption."


def _check_sum(
    answer: Callable[..., Any],
    messages: Sequence[int],
    weights: Sequence[int],
    p: int,
    q: int,
    draw: torch.Generator,
) -> None:
    n = p * q
    sent = [_encrypted(m, n, draw) for m in messages]
    got = answer(list(sent), list(weights), n)
    if not isinstance(got, int) or isinstance(got, bool):
        raise Wrong(
            f"Return one whole number, a ciphertext; you return a {type(got).__name__}. Floats "
            "lose digits: use pow(c, w, n * n)."
        )
    told = {
        "You add the ciphertexts. Their sum decrypts to nothing useful: multiply them.": sum(sent),
        "You add the ciphertexts times their weights. Products of ciphertexts are sums of messages,"
        " and powers are multiples.": sum(w * c for w, c in zip(weights, sent, strict=True)),
        "You multiply each ciphertext by its weight. To count w times, a ciphertext is raised to "
        "the power w.": math.prod(w * c for w, c in zip(weights, sent, strict=True)),
    }
    for message, wrong in told.items():
        if (got - wrong) % (n * n) == 0 and max(weights) > 1:
            raise Wrong(message)
    _check_range(got, sent, weights, n)
    found, expected = _decrypted(got, p, q), _weighted(messages, weights) % n
    if found == expected:
        return
    if found == sum(messages) % n:
        raise Wrong(
            f"Yours decrypts to {found}, the sum without weights. Client k must count w_k times."
        )
    raise Wrong(
        f"Messages {list(messages)} with weights {list(weights)}: yours decrypts to {found}, and "
        f"the weighted sum is {expected}."
    )


def _check_range(got: int, sent: Sequence[int], weights: Sequence[int], n: int) -> None:
    exact = math.prod(pow(c, w) for c, w in zip(sent, weights, strict=True))
    if got == exact % n and got != exact % (n * n):
        raise Wrong("You reduce modulo n. That is the modulus of messages; ciphertexts have n².")
    if not 0 <= got < n * n:
        raise Wrong(
            "Your number is not below n². It would grow with each client, so reduce it modulo n²."
        )


def _weighted(messages: Sequence[int], weights: Sequence[int]) -> int:
    return sum(w * m for w, m in zip(weights, messages, strict=True))


# --- 14.2 -----------------------------------------------------------------------------------------


@exercise(
    "14.2",
    title="many numbers in one",
    takes="value",
    hints=(
        "What is the largest sum of a slot, and the smallest? Shift every number by `level`, so "
        "that none is negative. Then a slot's sum lies between 0 and 2·clients·level.",
        "width = (2 * clients * level).bit_length(). pack: the sum of (number + level) << "
        "(width * place). unpack: take each slot's bits, and subtract clients · level.",
    ),
)
def packing(answer: Any) -> str:
    expect_functions(answer, "14.2", "pack, unpack")
    draw = generator(0, "exercise 14.2")
    # 2·4·8 = 2^6: a sum that needs one bit more than its logarithm says
    cases_of = ((7, 3, 4), (127, 5, 9), (3, 1, 5), (8, 4, 6), (32767, 100, 20))
    for level, clients, count in cases_of:
        shape = (clients, count)
        rows = torch.randint(-level, level + 1, shape, generator=draw)
        cases = {
            "small numbers, none negative": rows.abs() // clients,
            "numbers of both signs": rows,
            "all numbers at the upper end": torch.full(shape, level),
            "all numbers at the lower end": torch.full(shape, -level),
        }
        for name, numbers in cases.items():
            _check_packing(answer, numbers, level, clients, name)
        _check_order(answer[0], level, clients, count)
    return "Every sum came back, at both ends of the range: no slot overflows, none borrows."


def _check_packing(answer: Any, rows: Tensor, level: int, clients: int, name: str) -> None:
    pack, unpack = answer
    plain = [pack(row, level, clients) for row in rows.tolist()]
    if any(value is None or value is Ellipsis for value in plain):
        raise Wrong("pack returns nothing yet: fill in both functions, and mind the return.")
    if any(type(value) is not int for value in plain):
        raise Wrong(
            f"pack must return one whole number (int); yours is a {type(plain[0]).__name__}. A "
            "float has room for 53 bits."
        )
    count = rows.shape[1]
    most = (2 * clients * level).bit_length() * count
    if max(plain).bit_length() > most:
        raise Wrong(
            f"Your plaintext has {max(plain).bit_length()} bits; {most} are enough for {count} "
            f"slots of {clients} clients with numbers up to ±{level}. Slots that are wider than "
            "needed cost ciphertexts."
        )
    if min(plain) < 0:
        raise Wrong("A plaintext is negative: shift every number, so that no slot borrows.")
    found = unpack(sum(plain), count, level, clients)
    if found is None or found is Ellipsis:
        raise Wrong("unpack returns nothing yet: fill it in, and mind the return.")
    sums = rows.sum(dim=0).tolist()
    if list(found) != sums:
        _explain(list(found), sums, level, clients, name)


def _check_order(pack: Callable[..., Any], level: int, clients: int, count: int) -> None:
    rest = [-level] * (count - 1)
    if pack([level, *rest], level, clients) >= pack([*rest, level], level, clients):
        raise Wrong(
            "Your sums are right, but your first number has the highest bits: it belongs in the "
            "lowest, where the others look for it."
        )


def _explain(found: list[Any], sums: list[int], level: int, clients: int, name: str) -> None:
    if len(found) != len(sums):
        raise Wrong(f"unpack returns {len(found)} numbers; {len(sums)} were packed.")
    shift = {f - s for f, s in zip(found, sums, strict=True)}
    if found == sums[::-1]:
        raise Wrong("The sums come back in the opposite order.")
    if len(shift) == 1:
        off = shift.pop()
        advice = (
            " You take the shift away once, but each of the clients added it."
            if off == (clients - 1) * level
            else ""
        )
        raise Wrong(f"With {name} every sum is off by {off}.{advice}")
    raise Wrong(
        f"{clients} clients, level {level}, {name}: a slot gives {found[0]}, and the sum is "
        f"{sums[0]}. Does the sum of {clients} numbers fit into a slot, and is none negative?"
    )


# --- 14.3 -----------------------------------------------------------------------------------------


@exercise(
    "14.3",
    title="find the flaw: what did the attack get?",
    hints=(
        "Let `attack` be a spy that keeps what it is given. Play three rounds: some rows, the same "
        "rows again, and the two rows swapped. The sum is the same in all three.",
        "What is the same when you repeat and different when you swap tells who sent what. Fresh "
        "ciphertexts differ in both; the sum differs in neither. Compare numbers with a "
        "tolerance, and lengths, too. Take rows of different size and with a zero.",
    ),
)
def round_tells(answer: Callable[..., Any]) -> str:
    for name, round_ in HONEST.items():
        if _verdict(answer, round_):
            raise Wrong(
                f"The round {name} is sound, and you say that it tells. Which client sent which "
                "row cannot be seen: ciphertexts are new each time, and the sum does not say it. "
                "Do you swap the rows (not change them), and repeat a round to see what is chance?"
            )
    for (name, advice), round_ in FLAWED.items():
        if not _verdict(answer, round_):
            raise Wrong(f"A flaw passes your test: the round {name}. {advice}")
    return (
        f"{len(FLAWED)} flaws found, {len(HONEST)} sound rounds passed. A test like this belongs "
        "beside every 'encryption defence'."
    )


def _verdict(answer: Callable[..., Any], round_: Round) -> bool:
    told = answer(round_)
    if not isinstance(told, (bool, torch.Tensor)) and type(told).__name__ != "bool_":
        raise Wrong(f"Return True or False; you return a {type(told).__name__}.")
    return bool(told)


SCALE, _P, _Q = 1000, 1009, 1201


class _Client:
    """Fixed point and Paillier with toy primes; a new stream of randomness for each round."""

    rounds = 0

    def __init__(self) -> None:
        type(self).rounds += 1
        self.n, self.draw = _P * _Q, generator(type(self).rounds, "exercise 14.3")

    def sealed(self, row: Tensor) -> list[int]:
        numbers = [round(SCALE * value) % self.n for value in row.tolist()]
        return [_encrypted(number, self.n, self.draw) for number in numbers]

    def opened(self, message: Sequence[int]) -> Tensor:
        found = [_decrypted(c, _P, _Q) for c in message]
        signed = [m - self.n if m > self.n // 2 else m for m in found]
        return torch.tensor(signed, dtype=torch.float64) / SCALE


def _rows(rows: Any) -> Tensor:
    table = torch.stack([torch.as_tensor(r) for r in rows]) if isinstance(rows, list) else rows
    table = torch.as_tensor(table).double()
    if table.shape != (2, 4) or not bool((table.abs() <= 1).all()):
        raise ValueError(f"a round takes rows [2, 4] within ±1, got {list(table.shape)}")
    return table


def _product(messages: Sequence[Sequence[int]], n: int) -> list[int]:
    return [math.prod(column) % (n * n) for column in zip(*messages, strict=True)]


def _sound(rows: Any, attack: Callable[..., Any]) -> None:
    client = _Client()
    messages = [client.sealed(row) for row in _rows(rows)]
    attack([*messages, _product(messages, client.n)])


def _sum_opened(rows: Any, attack: Callable[..., Any]) -> None:
    client = _Client()
    messages = [client.sealed(row) for row in _rows(rows)]
    attack([*messages, client.opened(_product(messages, client.n)).tolist()])


def _opens_each(rows: Any, attack: Callable[..., Any]) -> None:
    client = _Client()
    messages = [client.sealed(row) for row in _rows(rows)]
    attack([client.opened(message).tolist() for message in messages])


def _opens_approximately(rows: Any, attack: Callable[..., Any]) -> None:
    client = _Client()
    opened = [client.opened(client.sealed(row)) for row in _rows(rows)]
    noise = [1e-6 * torch.randn(4, generator=client.draw, dtype=torch.float64) for _ in opened]
    attack([(row + off).tolist() for row, off in zip(opened, noise, strict=True)])


def _no_randomness(rows: Any, attack: Callable[..., Any]) -> None:
    n, square = _P * _Q, (_P * _Q) ** 2
    numbers = [[round(SCALE * value) % n for value in row] for row in _rows(rows).tolist()]
    messages = [[(1 + n * number) * 2**20 % square for number in row] for row in numbers]
    attack([*messages, _product(messages, n)])


def _skips_zeros(rows: Any, attack: Callable[..., Any]) -> None:
    client = _Client()
    attack([client.sealed(row[row != 0]) for row in _rows(rows)])


def _exponents(rows: Any, attack: Callable[..., Any]) -> None:
    client, table = _Client(), _rows(rows)
    sizes = [[math.frexp(value)[1] for value in row] for row in table.tolist()]
    messages = [client.sealed(row) for row in table]
    attack([m + e for m, e in zip(messages, sizes, strict=True)])


HONEST: dict[str, Round] = {
    "that gives the attack ciphertexts alone": _sound,
    "in which the clients publish the sum": _sum_opened,
}
FLAWED: dict[tuple[str, str], Round] = {
    (
        "that decrypts each message before the attack",
        "Compare the numbers of the first, the repeated and the swapped round.",
    ): _opens_each,
    (
        "that decrypts approximately before the attack",
        "Its rows differ by a millionth each time: compare with a tolerance.",
    ): _opens_approximately,
    (
        "that encrypts without randomness",
        "The same row has the same ciphertext in every round: compare those, too.",
    ): _no_randomness,
    (
        "that encrypts only values that are not zero",
        "The length of a message tells: compare lengths, with rows that differ in zeros.",
    ): _skips_zeros,
    (
        "that sends each value's exponent in the clear",
        "Part of a message repeats, part is new each time: compare number by number, with rows "
        "of different size.",
    ): _exponents,
}

"""Parsers: what is written is read back, and anything else raises ProtocolError, nothing else."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from flcourse.secagg import homomorphic_sum, secure_sum
from flcourse.secagg import messages as wire
from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.messages import Keys, Kind
from flcourse.secagg.setup import STAGES
from tests.secagg_round import Round

ROUND = bytes(range(16))
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
KNOWN = {7: KEY.public_key().public_bytes_raw()}
N = 20

damage = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 10**6), st.integers(0, 255)),
)


def damaged(data: bytes, change: tuple[str, int, int]) -> bytes:
    how, place, value = change
    at = place % max(len(data), 1)
    if how == "cut":
        return data[:at]
    if how == "insert":
        return data[:at] + bytes([value]) + data[at:]
    return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]


items = st.dictionaries(st.integers(0, N - 1), st.binary(max_size=40), max_size=8)


@given(content=items)
def test_items_are_read_back(content):
    assert wire.read_items(wire.write_items(content), N) == content


@given(body=st.binary(max_size=80))
def test_any_bytes_are_refused_or_are_what_the_writer_writes(body):
    """A parser that accepts has one spelling for each meaning: no two bodies read the same."""
    for read, write in (
        (lambda b: wire.read_items(b, N), wire.write_items),
        (lambda b: wire.read_survivors(b, N), lambda sets: wire.write_survivors(*sets, N)),
        (wire.read_keys, wire.write_keys),
    ):
        with contextlib.suppress(ProtocolError):
            assert write(read(body)) == body


@given(content=items, change=damage)
def test_damaged_lists_are_refused_or_differ(content, change):
    body = wire.write_items(content)
    other = damaged(body, change)
    try:
        found = wire.read_items(other, N)
    except ProtocolError:
        return
    assert (found == content) == (other == body)


def test_lists_out_of_order_or_range_or_twice():
    def item(index: int) -> bytes:
        return wire._ITEM.pack(index, 1) + b"x"

    count = wire._COUNT.pack(2)
    assert wire.read_items(count + item(1) + item(2), N) == {1: b"x", 2: b"x"}
    for pair in ((2, 1), (1, 1), (1, N)):
        with pytest.raises(ProtocolError, match="out of order or range, or twice"):
            wire.read_items(count + item(pair[0]) + item(pair[1]), N)
    with pytest.raises(ProtocolError, match="wrong length"):
        wire.read_items(count + item(1) + item(2), N, 2)
    with pytest.raises(ProtocolError, match="behind"):
        wire.read_items(count + item(1) + item(2) + b"!", N)
    with pytest.raises(ProtocolError, match="cut short"):
        wire.read_items(wire._COUNT.pack(2**32 - 1) + item(1), N)


@given(st.sets(st.integers(0, N - 1)), st.sets(st.integers(0, N - 1)))
def test_survivors_are_read_back_and_both_kinds_refused(alive, dropped):
    body = wire.write_survivors(alive, dropped, N)
    if alive & dropped:
        with pytest.raises(ProtocolError, match=f"both kinds of share of client {min(alive & dropped)}"):  # noqa: E501  # fmt: skip
            wire.read_survivors(body, N)
    else:
        assert wire.read_survivors(body, N) == (alive, dropped)


def test_a_bit_beyond_the_clients_is_refused():
    with pytest.raises(ProtocolError, match="beyond the 20"):
        wire.read_survivors(bytes([0, 0, 16, 0, 0, 0]), N)


def test_keys_are_read_back():
    keys = Keys(b"a" * 32, b"b" * 32, b"c" * 32)
    assert wire.read_keys(wire.write_keys(keys)) == keys


@given(body=st.binary(max_size=50), change=damage)
def test_a_signed_message_is_read_back_and_any_damage_refused(body, change):
    data = wire.write_signed(Kind.SHARES, ROUND, 7, body, KEY)
    message = wire.read_signed(data, Kind.SHARES, ROUND, KNOWN)
    assert (message.sender, message.body) == (7, body)
    if (other := damaged(data, change)) != data:
        with pytest.raises(ProtocolError):
            wire.read_signed(other, Kind.SHARES, ROUND, KNOWN)


@pytest.mark.parametrize(
    ("kind", "round_id", "known", "message"),
    [
        (Kind.UNMASK, ROUND, KNOWN, "expected UNMASK"),
        (Kind.SHARES, bytes(16), KNOWN, "another round: a replay"),
        (Kind.SHARES, ROUND, {}, "no SHARES message is expected from client 7"),
        (Kind.SHARES, ROUND, {7: bytes(32)}, "signature"),
    ],
)
def test_a_message_out_of_place_is_refused(kind, round_id, known, message):
    data = wire.write_signed(Kind.SHARES, ROUND, 7, b"body", KEY)
    with pytest.raises(ProtocolError, match=message):
        wire.read_signed(data, kind, round_id, known)


def test_clients_do_not_take_each_other_for_the_server():
    data = wire.write_signed(Kind.SURVIVORS, ROUND, 7, b"", KEY)
    with pytest.raises(ProtocolError, match="from client 7, not the server"):
        wire.read(data, Kind.SURVIVORS, ROUND)
    unknown = b"\x02" + wire.write(Kind.SURVIVORS, ROUND, b"")[1:]
    with pytest.raises(ProtocolError, match="version 2"):
        wire.read(unknown, Kind.SURVIVORS, ROUND)


@settings(max_examples=30, deadline=None)
@given(stage=st.sampled_from(STAGES), data=st.data())
def test_no_damaged_message_harms_the_server_or_the_round(stage, data):
    """Refused, and the good one that follows is taken: the total is right."""
    game = Round(4, length=3).until(stage)
    good = {index: game.answer(index) for index in game.inbox}
    for index, message in good.items():
        for change in data.draw(st.lists(damage, max_size=3)):
            other = damaged(message, change)
            if other not in good.values():
                with pytest.raises(ProtocolError):
                    game.server.receive(other)
        with pytest.raises(ProtocolError):
            game.server.receive(data.draw(st.binary(max_size=200)))
        assert game.server.receive(message) == index
    game.inbox = game.server.advance()
    assert (game.finish() == game.expected()).all()


@settings(max_examples=40, deadline=None)
@given(stage=st.sampled_from(STAGES), number=st.integers(0, 10**6), data=st.data())
def test_a_malicious_clients_signed_nonsense_does_not_harm_the_server(stage, number, data):
    """It signs what it likes: refused or taken, never a crash, and the others' total is right."""
    game = Round(5, length=3, threshold=3).until(stage)
    bad, kind = 2, Kind(2 * STAGES.index(stage) + 1)
    honest = game.answer(bad)
    body = data.draw(st.one_of(st.binary(max_size=150), st.just(honest[22:-64])))
    body = damaged(body, data.draw(damage)) if body else body
    if stage == "masked_input" and len(body) == 12:
        body += b"!"  # any vector of the right length is a vector: nobody can tell
    forged = wire.write_signed(kind, game.setup.round_id, bad, body, game.keys[bad])
    taken = True
    try:
        game.server.receive(forged)
    except ProtocolError:
        taken = False
    for index in game.inbox:
        if index != bad:
            game.server.receive(game.answer(index))
    game.inbox = game.server.advance()
    if not taken:
        assert bad not in game.inbox
    else:
        game.inbox.pop(bad, None)  # and it leaves
    assert (game.finish() == game.expected()).all()


@settings(max_examples=40, deadline=None)
@given(stage=st.sampled_from(STAGES[1:]), data=st.data())
def test_a_damaged_message_never_crashes_a_client(stage, data):
    """It answers or refuses with ProtocolError, and once it refused it says nothing more."""
    game = Round(4, length=3).until(stage)
    message = damaged(game.inbox[1], data.draw(damage))
    step = getattr(game.clients[1], stage)
    try:
        assert isinstance(step(message), bytes)
    except ProtocolError:
        with pytest.raises(ProtocolError, match="its round is over"):
            step(game.inbox[1])


def test_nothing_is_ever_unpickled(monkeypatch):
    """Whoever unpickles a message runs its sender's code."""

    def refuse(*args, **options):
        raise AssertionError("a message was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    rows = np.ones((4, 5))
    result = secure_sum(rows, clip=1.0, dropouts={"masked_input": [1]})
    assert np.allclose(result.total, 3, atol=1e-6)
    for scheme, module in (("paillier", "phe"), ("bfv", "tenseal"), ("ckks", "tenseal")):
        if importlib.util.find_spec(module):
            options = {"key_bits": 1024} if scheme == "paillier" else {}
            total = homomorphic_sum(rows, clip=1.0, scheme=scheme, **options).total
            assert np.allclose(total, 4, atol=1e-3), scheme

"""What a malicious server or client tries, and how it is refused."""

from __future__ import annotations

import numpy as np
import pytest

from flcourse.secagg import AbortError, Client, ProtocolError, Server
from flcourse.secagg import messages as wire
from flcourse.secagg.client import CIPHERTEXT_BYTES, SHARE_BYTES
from flcourse.secagg.field import unpack
from flcourse.secagg.masking import (
    add_masks,
    mask_seed,
    new_private_key,
    private_bytes,
    public_bytes,
    self_seed,
)
from flcourse.secagg.messages import Keys, Kind
from flcourse.secagg.setup import STAGES, Setup
from tests.secagg_round import Round


def body(message: bytes) -> bytes:
    """What a message of the server carries."""
    return message[22:]


def rewritten(game: Round, message: bytes, kind: Kind, **changes) -> bytes:
    """A server's list message with the contents of some clients replaced (None: left out)."""
    content = wire.read_items(body(message), game.setup.num_clients)
    for name, value in changes.items():
        index = int(name[1:])
        content.pop(index) if value is None else content.update({index: value})
    return wire.write(kind, game.setup.round_id, wire.write_items(content))


def survivors(game: Round, alive, dropped=()) -> bytes:
    size = game.setup.num_clients
    return wire.write(
        Kind.SURVIVORS, game.setup.round_id, wire.write_survivors(alive, dropped, size)
    )


def refuses(step, message: bytes, words: str, error=ProtocolError) -> None:
    with pytest.raises(error, match=words):
        step(message)
    with pytest.raises(ProtocolError, match="its round is over"):  # and for good
        step(message)


# --- a server that wants both masks -------------------------------------------------------------


def test_both_kinds_of_share_of_one_client_are_refused():
    game = Round(6).until("consistency_check")
    asked = survivors(game, range(6), [3])
    refuses(game.clients[1].consistency_check, asked, "both kinds of share of client 3")


def test_a_second_list_of_survivors_is_refused():
    game = Round(6).until("consistency_check")
    game.clients[1].consistency_check(survivors(game, range(6)))
    refuses(
        game.clients[1].consistency_check, survivors(game, [0, 1, 2, 4, 5], [3]),
        "asked for consistency_check, next is unmasking",
    )  # fmt: skip


def test_shares_are_given_once():
    game = Round(6).until("unmasking")
    game.clients[1].unmasking(game.inbox[1])
    refuses(game.clients[1].unmasking, game.inbox[1], "next is nothing")


def test_two_lists_for_two_groups_are_noticed():
    """Half are told that client 0 is in the sum, half that it left: each signs another list."""
    game = Round(7, threshold=4).until("consistency_check")
    lists = [survivors(game, range(7)), survivors(game, range(1, 7), [0])]
    signed = {i: game.clients[i].consistency_check(lists[i % 2]) for i in range(1, 7)}
    for index in (1, 2):
        others = {i: m for i, m in signed.items() if i != index}
        everyone = wire.write(Kind.AGREEMENTS, game.setup.round_id, wire.write_items(others))
        refuses(game.clients[index].unmasking, everyone, "the server told two stories")
    for index in (3, 4):  # or it forwards only those that agree: then they are too few
        alike = {i: m for i, m in signed.items() if i != index and i % 2 == index % 2}
        some = wire.write(Kind.AGREEMENTS, game.setup.round_id, wire.write_items(alike))
        refuses(game.clients[index].unmasking, some, "3 holders .* need 4", AbortError)


@pytest.mark.parametrize(
    ("alive", "dropped", "words"),
    [
        ([0, 2, 3, 4, 5], [1], "is not in the list"),
        ([0, 1, 2], [3, 4, 5], "a sum of 3 clients: need 5"),
        ([1], [], "a sum of 1"),
        ([0, 1, 2, 3, 4], [], "does not name those whose shares"),
    ],
)
def test_lists_that_make_no_sense_are_refused(alive, dropped, words):
    game = Round(6).until("consistency_check")
    refuses(game.clients[1].consistency_check, survivors(game, alive, dropped), words)


def test_a_client_that_never_shared_cannot_be_named():
    game = Round(6)
    game.stage()
    game.inbox.pop(3)
    game.until("consistency_check")
    refuses(game.clients[1].consistency_check, survivors(game, range(6)), "does not name those")


def test_why_both_kinds_must_never_be_given():
    """With both secrets of client 0 its vector is read off its masked input: the reason for it."""
    game = Round(4, length=6).until("masked_input")
    masked = unpack(game.answer(0)[22:-64], 32, 6)
    client, round_id = game.clients[0], game.setup.round_id
    key = new_private_key(private_bytes(client._mask_key))
    seeds = [(mask_seed(key, game.server._keys[v].mask_key, round_id), -1) for v in (1, 2, 3)]
    add_masks(masked, seeds)
    assert (masked != game.words[0]).all()  # one kind alone: the self mask still hides it
    add_masks(masked, [(self_seed(client._secret, round_id), -1)])
    assert (masked == game.words[0]).all()


# --- a server that forges, replays and alters ---------------------------------------------------


def test_steps_out_of_order_are_refused():
    for wrong in STAGES[1:]:
        refuses(getattr(Round(4).clients[0], wrong), b"", "next is advertise_keys")


def test_replayed_keys_of_an_earlier_round_are_refused():
    old, new = Round(4), Round(4)
    new.keys, stale = old.keys, old.answer(2)
    setup = Setup(old.setup.identities, 5)
    new.setup, new.server = setup, Server(setup)
    for client, key in zip(new.clients, old.keys, strict=True):
        client.setup, client._identity = setup, key
    with pytest.raises(ProtocolError, match="another round: a replay"):
        new.server.receive(stale)
    new.stage()
    message = rewritten(new, new.inbox[0], Kind.KEY_LIST, _2=stale)
    refuses(new.clients[0].share_keys, message, "another round: a replay")


def test_a_message_of_the_server_from_another_round_is_refused():
    game, other = Round(4).until("share_keys"), Round(4).until("share_keys")
    refuses(game.clients[0].share_keys, other.inbox[0], "another round")


def test_keys_that_the_server_made_up_are_refused():
    """The man in the middle: keys of its own in client 2's name, without client 2's signature."""
    game = Round(4).until("share_keys")
    own = Keys(public_bytes(new_private_key()), public_bytes(new_private_key()), bytes(32))
    forged = wire.write_signed(
        Kind.ADVERTISE, game.setup.round_id, 2, wire.write_keys(own), game.keys[1]
    )
    message = rewritten(game, game.inbox[0], Kind.KEY_LIST, _2=forged)
    refuses(game.clients[0].share_keys, message, "the signature is not that of client 2")


def test_one_clients_keys_in_anothers_name_are_refused():
    game = Round(4).until("share_keys")
    keys = wire.read_items(body(game.inbox[0]), 4)
    message = rewritten(game, game.inbox[0], Kind.KEY_LIST, _2=keys[1])
    refuses(game.clients[0].share_keys, message, "the keys of client 1 came as 2's")


def test_too_few_keys_or_shares_end_the_round():
    game = Round(6).until("share_keys")
    message = rewritten(game, game.inbox[0], Kind.KEY_LIST, _1=None, _2=None)
    refuses(game.clients[0].share_keys, message, "4 holders .* need 5", AbortError)
    game = Round(6).until("masked_input")
    message = rewritten(game, game.inbox[0], Kind.SHARE_DELIVERY, _1=None, _2=None)
    refuses(game.clients[0].masked_input, message, "4 holders .* need 5", AbortError)


def test_neighbours_that_the_server_made_up_are_refused():
    game = Round(9, neighbours=4).until("share_keys")
    stranger = next(i for i in range(1, 9) if i not in game.setup.graph[0])
    raw = wire.write_signed(
        Kind.ADVERTISE, game.setup.round_id, stranger,
        wire.write_keys(game.server._keys[stranger]), game.keys[stranger],
    )  # fmt: skip
    message = rewritten(game, game.inbox[0], Kind.KEY_LIST, **{f"_{stranger}": raw})
    refuses(game.clients[0].share_keys, message, f"expected from client {stranger}")


@pytest.mark.parametrize("place", [0, SHARE_BYTES, CIPHERTEXT_BYTES - 1])
def test_altered_shares_are_left_out_and_the_total_is_right(place):
    """The server alters the shares of client 2 for client 0: they are not used."""

    def alter(stage: str, index: int, message: bytes) -> bytes:
        if stage != "share_keys" or index != 0:
            return message
        sealed = bytearray(wire.read_items(body(message), 6)[2])
        sealed[place] ^= 1
        return rewritten(game, message, Kind.SHARE_DELIVERY, _2=bytes(sealed))

    game = Round(6)
    while game.server.stage != "unmasking":
        game.stage(alter)
    opened = wire.read_items(game.answer(0)[22:-64], 6)
    assert sorted(opened) == [0, 1, 3, 4, 5]


def test_shares_meant_for_another_are_left_out():
    """A ciphertext is bound to its sender and its receiver: swapped, it opens for nobody."""

    def alter(stage: str, index: int, message: bytes) -> bytes:
        if stage != "share_keys" or index != 0:
            return message
        content = wire.read_items(body(message), 6)
        return rewritten(game, message, Kind.SHARE_DELIVERY, _2=content[3], _3=content[2])

    game = Round(6)
    while game.server.stage != "unmasking":
        game.stage(alter)
    assert sorted(wire.read_items(game.answer(0)[22:-64], 6)) == [0, 1, 4, 5]
    for index in game.inbox:
        if index:
            game.server.receive(game.answer(index))
    game.inbox = game.server.advance()
    assert (game.server.total() == game.expected()).all()


def test_a_client_does_not_take_its_own_shares_for_anothers():
    """Both ends of a pair agree on one secret; without a direction each could be sent its own."""
    game = Round(6).until("share_keys")
    sent = {index: game.answer(index) for index in game.inbox}
    own = wire.read_items(sent[0][22:-64], 6)[2]  # from 0 to 2
    for message in sent.values():
        game.server.receive(message)
    game.inbox = game.server.advance()
    game.inbox[0] = rewritten(game, game.inbox[0], Kind.SHARE_DELIVERY, _2=own)
    game.until("unmasking")
    assert sorted(wire.read_items(game.answer(0)[22:-64], 6)) == [0, 1, 3, 4, 5]


def test_a_forged_agreement_is_refused():
    game = Round(4).until("unmasking")
    raw = wire.write_signed(
        Kind.AGREEMENT, game.setup.round_id, 2, wire.digest(game.server._list), game.keys[1]
    )
    message = rewritten(game, game.inbox[0], Kind.AGREEMENTS, _1=raw)
    refuses(game.clients[0].unmasking, message, "the signature is not that of client 2")
    copies = wire.read_items(body(game.inbox[3]), 4)
    message = rewritten(game, game.inbox[3], Kind.AGREEMENTS, _0=copies[1])  # one vote twice
    refuses(game.clients[3].unmasking, message, "client 1 signed another list")


# --- clients that cheat -------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_invalid_curve_points_are_refused_by_server_and_clients(place, point):
    game = Round(4)
    pair = [public_bytes(new_private_key()), public_bytes(new_private_key())]
    pair[place] = point
    bad = wire.write_signed(
        Kind.ADVERTISE, game.setup.round_id, 2,
        wire.write_keys(Keys(*pair, bytes(32))), game.keys[2],
    )  # fmt: skip
    with pytest.raises(ProtocolError, match="no usable curve point"):
        game.server.receive(bad)
    game.stage()  # a server in league with client 2 passes the point on all the same
    message = rewritten(game, game.inbox[0], Kind.KEY_LIST, _2=bad)
    client = game.clients[0]
    if place == 0:
        refuses(client.share_keys, message, "no usable curve point")
        return
    client.share_keys(message)
    delivery = wire.write_items({i: bytes(CIPHERTEXT_BYTES) for i in (1, 2, 3)})
    refuses(
        client.masked_input, wire.write(Kind.SHARE_DELIVERY, game.setup.round_id, delivery),
        "no usable curve point",
    )  # fmt: skip


def test_a_copied_key_is_refused_by_the_server_and_by_clients():
    game = Round(4)
    game.server.receive(game.answer(1))
    copied = game.server._keys[1]
    bad = wire.write_signed(
        Kind.ADVERTISE, game.setup.round_id, 2, wire.write_keys(copied), game.keys[2]
    )
    with pytest.raises(ProtocolError, match="in use"):
        game.server.receive(bad)
    own = wire.write_signed(
        Kind.ADVERTISE, game.setup.round_id, 1, wire.write_keys(copied), game.keys[1]
    )
    game.answer(0)
    lists = wire.write_items({1: own, 2: bad})
    message = wire.write(Kind.KEY_LIST, game.setup.round_id, lists)
    refuses(game.clients[0].share_keys, message, "same key")


def test_messages_in_anothers_name_twice_or_too_late_are_refused():
    game = Round(4)
    first = game.answer(0)
    assert game.server.receive(first) == 0
    with pytest.raises(ProtocolError, match="second ADVERTISE"):
        game.server.receive(first)
    forged = wire.write_signed(Kind.ADVERTISE, game.setup.round_id, 1, bytes(96), game.keys[0])
    with pytest.raises(ProtocolError, match="signature is not that of client 1"):
        game.server.receive(forged)
    for index in (1, 2, 3):
        game.server.receive(game.answer(index))
    game.inbox = game.server.advance()
    with pytest.raises(ProtocolError, match="expected SHARES"):
        game.server.receive(first)
    assert (game.finish() == game.expected()).all()
    with pytest.raises(ProtocolError, match="the round is over"):
        game.server.receive(first)
    with pytest.raises(ProtocolError, match="the round is over"):
        game.server.advance()


def test_who_was_left_out_cannot_come_back():
    game = Round(6)
    game.inbox.pop(4)
    late = game.clients[4].advertise_keys()
    game.stage()
    with pytest.raises(ProtocolError):
        game.server.receive(late)
    assert (game.finish() == game.expected()).all() and 4 not in game.server.survivors


def altered_share(game: Round, holder: int, owner: int) -> bytes:
    """An UNMASK message of ``holder`` in which the share of ``owner`` is another one."""
    content = wire.read_items(game.answer(holder)[22:-64], game.setup.num_clients)
    share = bytearray(content[owner])
    share[5] ^= 4
    content[owner] = bytes(share)
    return wire.write_signed(
        Kind.UNMASK, game.setup.round_id, holder, wire.write_items(content), game.keys[holder]
    )


@pytest.mark.parametrize("owner", [3, 8])
def test_shares_altered_by_a_client_are_found_and_left_out(owner):
    """Client 0 opens false shares; two more than needed show which ones. Client 8 dropped out."""
    game = Round(9, threshold=5).until("masked_input")
    game.inbox.pop(8)
    game.until("unmasking")
    for index in game.inbox:
        game.server.receive(altered_share(game, 0, owner) if index == 0 else game.answer(index))
    game.inbox = game.server.advance()
    assert (game.server.total() == game.expected()).all()
    assert game.server.altered == {0}


def test_altered_shares_without_spare_ones_end_the_round():
    game = Round(6).until("unmasking")
    game.inbox.pop(5)  # five are left, five are needed
    for index in game.inbox:
        game.server.receive(altered_share(game, 0, 3) if index == 0 else game.answer(index))
    game.server.advance()
    with pytest.raises(AbortError, match="client 3's secret were altered"):
        game.server.total()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: {**content, 3: b"\x01" + content[3][1:]}, "wrong kind for 3"),
        (lambda content: {**content, 3: b"\x07" + content[3][1:]}, "wrong kind for 3"),
        (lambda content: {**content, 3: content[3][:1] + b"\xff" * SHARE_BYTES}, "beyond 65536"),
        (lambda content: {**content, 3: content[3][:-1]}, "wrong length"),
    ],
)
def test_shares_that_were_not_asked_for_are_refused(change, words):
    game = Round(6).until("unmasking")
    content = change(wire.read_items(game.answer(0)[22:-64], 6))
    bad = wire.write_signed(
        Kind.UNMASK, game.setup.round_id, 0, wire.write_items(content), game.keys[0]
    )
    with pytest.raises(ProtocolError, match=words):
        game.server.receive(bad)
    game.inbox.pop(0)
    assert (game.finish() == game.expected()).all()


def test_shares_for_others_than_the_neighbours_are_refused():
    game = Round(6).until("share_keys")
    content = wire.read_items(game.answer(0)[22:-64], 6)
    content.pop(4)
    bad = wire.write_signed(
        Kind.SHARES, game.setup.round_id, 0, wire.write_items(content), game.keys[0]
    )
    with pytest.raises(ProtocolError, match="did not share with all its neighbours"):
        game.server.receive(bad)


def test_a_client_that_shares_nonsense_is_named_when_the_round_fails():
    """The known limit: ciphertexts are for others' eyes, so this is noticed at the end only."""
    game = Round(6).until("share_keys")
    nonsense = wire.write_items({i: bytes(CIPHERTEXT_BYTES) for i in range(1, 6)})
    game.answer(0)
    for index in game.inbox:
        game.server.receive(
            game.answer(index) if index else
            wire.write_signed(Kind.SHARES, game.setup.round_id, 0, nonsense, game.keys[0])
        )  # fmt: skip
    game.inbox = game.server.advance()
    game.until("done")
    with pytest.raises(AbortError, match="1 shares of client 0's secret came, 5 are needed"):
        game.server.total()


# --- parties that do not fit ----------------------------------------------------------------------


def test_clients_that_do_not_fit_the_setup():
    game = Round(4)
    for index, words in ((4, game.words[0]), (0, game.words[0][:3]), (0, game.words[0] * 1.0)):
        with pytest.raises(ValueError):
            Client(game.setup, index, np.asarray(words), game.keys[0])
    with pytest.raises(ValueError, match="round_id"):
        Setup(game.setup.identities, 5, round_id=b"short")


def test_an_answer_before_its_time():
    game = Round(4)
    for ask in (game.server.total, lambda: game.server.survivors):
        with pytest.raises(ProtocolError, match="the stage is advertise_keys"):
            ask()

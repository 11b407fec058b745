"""Check 13.4: a signature whose key is the client's name, forged, and its repair."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flcourse.exercises._core import Wrong, exercise, expect_functions

ROUND = 16  # bytes of a round's number


@exercise(
    "13.4",
    title="find the flaw: the signature",
    takes="value",
    hints=(
        "forge: make hmac.new(name.encode(), text, 'sha256').digest() for the list that the client "
        "did sign. If that is its tag, its key is its name: make the tag of the other list in the "
        "same way. If not, leave the client out.",
        "sign: key.sign(round_id + listed). verify: public.verify(tag, round_id + listed) returns "
        "nothing if all is well, and raises InvalidSignature (cryptography.exceptions) if not.",
    ),
)
def signature(answer: Any) -> str:
    forge, sign, verify = expect_functions(answer, "13.4", "forge, sign, verify")
    draw = np.random.default_rng(134)
    for flawed, sound in ((4, 0), (3, 3), (0, 3)):
        _check_forge(forge, draw, flawed, sound)
    _check_scheme(sign, verify)
    return (
        "Whoever signs with a name has now signed the second list as well, without knowing it. "
        "With your pair only the owner of the key signs, and only for this round."
    )


def _text(draw: np.random.Generator) -> bytes:
    return b"round 4, in the sum: " + bytes(draw.integers(0, 256, 8, dtype=np.uint8))


def by_name(name: str, listed: bytes) -> bytes:
    """The flawed signature."""
    return hmac.new(name.encode(), listed, "sha256").digest()


def _check_forge(
    forge: Callable[..., Any], draw: np.random.Generator, flawed: int, sound: int
) -> None:
    everyone = ("Anna", "Béla", "Chen", "phone 17", "ward-3", "Zoë")
    order = [everyone[int(i)] for i in draw.permutation(len(everyone))]
    weak, strong = order[:flawed], order[flawed : flawed + sound]
    true, other = _text(draw), _text(draw)
    seen = {name: (true, by_name(name, true)) for name in weak}
    for place, name in enumerate(strong):
        key = draw.bytes(32)
        short = hmac.new(key, true, "sha256").digest()
        tag = Ed25519PrivateKey.from_private_bytes(key).sign(true) if place % 2 else short
        seen[name] = (true, tag)
    seen = dict(sorted(seen.items()))
    got = forge(dict(seen), other)
    if not isinstance(got, Mapping):
        raise Wrong(f"forge returns a dict {{name: tag}}; yours is a {type(got).__name__}.")
    _compare_tags(got, seen, weak, other)


def _compare_tags(
    got: Mapping[str, Any],
    seen: Mapping[str, tuple[bytes, bytes]],
    weak: Sequence[str],
    other: bytes,
) -> None:
    for name in weak:
        if name not in got:
            raise Wrong(
                f"A flaw passes: {name}'s tag is an HMAC-SHA256 keyed with {name.encode()!r}, and "
                "you leave it alone."
            )
        told = {
            "is the tag of the first list, replayed; it does not fit the other": seen[name][1],
            "is a plain hash. An HMAC takes the key and the text apart: hmac.new(key, text, …)": (
                hashlib.sha256(name.encode() + other).digest()
            ),
            "has key and text exchanged: the name is the key": (
                hmac.new(other, name.encode(), "sha256").digest()
            ),
        }
        if got[name] != by_name(name, other):
            why = [reason for reason, wrong in told.items() if got[name] == wrong]
            text = why[0] if why else f"is {got[name]!r}, which does not verify"
            raise Wrong(f"Your tag for {name} {text}.")
    extra = sorted(set(got) - set(weak))
    if extra:
        raise Wrong(
            f"You claim to sign for {extra[0]}, whose key is a secret. First make the tag of the "
            "list that the client did sign: only where it is the one you saw is the name the key."
        )


def _check_scheme(sign: Callable[..., Any], verify: Callable[..., Any]) -> None:
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public, this, last = key.public_key(), os.urandom(ROUND), os.urandom(ROUND)
    listed, other = b"0,1,2,3,4", b"0,1,3,4"
    tag = sign(key, this, listed)
    if not isinstance(tag, bytes) or not tag:
        raise Wrong(f"sign returns bytes; you return {tag!r}.")
    honest = _verdict(verify, public, this, listed, tag)
    if not honest:
        raise Wrong(
            "Your verify refuses an honest signature. (public.verify returns None where all is "
            "well: return True after it.)"
        )
    known = public.public_bytes_raw()
    made = [
        hmac.new(known, text, "sha256").digest() for text in (this + listed, listed, listed + this)
    ]
    forged = {
        "the same tag under another list": (public, this, other, tag),
        "the list of an earlier round, sent again: sign the round's number with it": (
            public, this, listed, sign(key, last, listed)),
        "a stranger's signature": (public, this, listed, sign(stranger, this, listed)),
        "an empty tag": (public, this, listed, b""),
        "a tag with one bit turned": (public, this, listed, tag[:-1] + bytes([tag[-1] ^ 1])),
    }  # fmt: skip
    for what, case in forged.items():
        if _verdict(verify, *case):
            raise Wrong(f"Your verify accepts {what}.")
    for text in made:
        if _verdict(verify, public, this, listed, text):
            raise Wrong(
                "Your verify accepts a tag that was made from the public key alone. What everybody "
                "knows is no key: key.sign(…) and public.verify(…)."
            )


def _verdict(verify: Callable[..., Any], *case: Any) -> bool:
    try:
        got = verify(*case)
    except Exception as error:
        raise Wrong(
            f"verify raises {type(error).__name__}: catch it (cryptography.exceptions has "
            "InvalidSignature) and return False."
        ) from error
    return bool(got)

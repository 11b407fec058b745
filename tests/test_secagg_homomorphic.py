"""Sums under encryption against plain ones; what the server is given; damaged messages."""

import hashlib
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("phe")
pytest.importorskip("tenseal")

from flcourse.secagg import lattice
from flcourse.secagg.ciphers import Plan
from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.homomorphic import (
    Adder,
    Envelope,
    KeyHolder,
    he_aggregate,
    homomorphic_sum,
    integers,
)
from flcourse.secagg.integer_noise import DiscreteGaussian, Skellam
from flcourse.secagg.paillier import Paillier
from flcourse.secagg.schemes import SCHEMES

TOY = {"key_bits": 512}  # quick to make; never secure
KINDS = [
    ("paillier", TOY),
    ("paillier", TOY | {"packed": False}),
    ("bfv", {}),
    ("bfv", {"ring": 8192}),
    ("ckks", {}),
    ("ckks", {"ring": 8192, "moduli": (50, 30, 50), "scale_bits": 30}),
]


@pytest.fixture(scope="module")
def parties():
    """By scheme: plan, key holder and adder for 3 clients of 60 values."""
    made = {}
    for scheme in SCHEMES:
        options = TOY if scheme == "paillier" else {}
        plan = Plan(60, 3, 1.0, noise_room=50)
        holder = KeyHolder(plan, scheme, **options)
        made[scheme] = plan, holder, Adder(plan, scheme, holder.public, **options)
    return made


@pytest.fixture(scope="module")
def sent(parties):
    return {scheme: parties[scheme][1].encrypt(np.zeros(60)) for scheme in parties}


# ---------------------------------------------------------------------------------- right sums


@pytest.mark.parametrize(("scheme", "options"), KINDS)
@pytest.mark.parametrize("size", [1, 73])
def test_the_sum_is_the_plain_one(scheme, options, size):
    rows = np.random.default_rng(size).uniform(-0.3, 0.3, (4, size))
    rows[:, 0] = 0.3, 0.3, 0.3, 0.3  # the largest sum there can be
    found = homomorphic_sum(rows, clip=0.3, scheme=scheme, **options)
    own = 0.3 * 4 * 2**-16 if scheme == "ckks" else 0.0
    assert np.abs(found.total - rows.sum(axis=0)).max() <= found.error_bound + own
    assert found.error_bound < 4 * 0.3 * 2**-15
    assert len(found.bytes_up) == 4 and min(found.bytes_up) > size and found.bytes_down > size
    assert set(found.seconds) == {"keys", "encrypt", "add", "decrypt"}


@pytest.mark.parametrize("scheme", ["paillier", "bfv"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whole_numbers_are_exact(parties, scheme, data):
    plan, holder, adder = parties[scheme]
    values = st.lists(st.integers(-plan.codec.level, plan.codec.level), min_size=60, max_size=60)
    rows = np.array([data.draw(values) for _ in range(data.draw(st.integers(1, 3)))])
    messages = [holder.encrypt(row * plan.codec.step) for row in rows]
    total = holder.decrypt(adder.add(messages)) / plan.codec.step
    assert np.array_equal(np.rint(total), rows.sum(axis=0))
    assert np.abs(total - np.rint(total)).max() < 1e-6


def test_sums_of_sums_and_more_values_than_one_ciphertext_holds():
    for scheme, size in (("bfv", 4100), ("ckks", 2100)):
        plan = Plan(size, 3, 2.0)
        holder = KeyHolder(plan, scheme)
        adder = Adder(plan, scheme, holder.public)
        rows = np.random.default_rng(0).uniform(-2, 2, (3, size))
        one, two, three = (holder.encrypt(row) for row in rows)
        assert len(Envelope.parse(one).blobs) == 2
        total = holder.decrypt(adder.add([adder.add([one, two]), three]))
        assert np.abs(total - rows.sum(axis=0)).max() < 3 * 2.0 * 2**-14


def test_precision_decides_the_error_and_tensors_stay_tensors():
    rows = torch.randn(3, 50, dtype=torch.float64).clamp(-1, 1)
    errors = []
    for precision in (8, 14, 20):
        found = homomorphic_sum(rows, clip=1.0, scheme="bfv", precision=precision)
        assert isinstance(found.total, torch.Tensor)
        errors.append(float((found.total - rows.sum(dim=0)).abs().max()))
        assert errors[-1] <= found.error_bound
    assert errors[0] > 20 * errors[1] > 400 * errors[2] > 0


def test_the_aggregate_is_the_weighted_mean():
    rows, weights = torch.randn(4, 30).clamp(-1, 1), torch.tensor([1.0, 5.0, 20.0, 3.0])
    right = (rows.double() * weights.double()[:, None]).sum(dim=0) / weights.double().sum()
    for scheme, options in (("paillier", TOY), ("ckks", {})):
        found = he_aggregate(clip=1.0, scheme=scheme, **options)(rows, weights)
        assert found.dtype == torch.float32 and found.shape == (30,)
        assert (found.double() - right).abs().max() < 4 * 2**-14


# -------------------------------------------------------------------------------------- Paillier


def test_paillier_by_hand():
    """Chapter 14's own formula, on our ciphertexts, without the library."""
    plan = Plan(1, 2, 1.0)
    holder = KeyHolder(plan, "paillier", key_bits=256)
    n = int.from_bytes(holder.public, "little")
    p = holder._cipher.secret.p
    order = math.lcm(p - 1, n // p - 1)
    message = Envelope.parse(holder.encrypt([0.5]))
    c = int.from_bytes(message.blobs[0], "little")
    plain = (pow(c, order, n * n) - 1) // n * pow(order, -1, n) % n
    assert plain == integers(plan, [0.5])[0] + plan.codec.level


def test_the_quick_masks_are_the_nth_powers_and_differ_each_time():
    plan = Plan(1, 1, 1.0)
    holder = KeyHolder(plan, "paillier", key_bits=256)
    cipher = holder._cipher
    n, square = cipher.key.n, cipher.key.nsquare
    order = (cipher.secret.p - 1) * (cipher.secret.q - 1)
    masks = [cipher._encrypted(0) for _ in range(50)]
    assert len(set(masks)) == 50
    assert all(pow(mask, order, square) == 1 for mask in masks)  # exactly the n-th powers
    # And all of them, also for a key that can be counted: every residue of the small group occurs.
    small = type("Key", (), {"n": 5 * 7, "nsquare": 35**2})()
    tiny = object.__new__(Paillier)
    tiny.key, tiny.secret = small, type("Secret", (), {"p": 5, "q": 7})()
    tiny._squares, tiny._inverse = (25, 49), pow(25, -1, 49)
    powers = {pow(r, 35, 35**2) for r in range(1, 35) if math.gcd(r, 35) == 1}
    drawn = [tiny._encrypted(0) for _ in range(4000)]
    assert set(drawn) == powers and len(powers) == 24
    counts = np.array([drawn.count(one) for one in powers])
    assert ((counts - 4000 / 24) ** 2 / (4000 / 24)).sum() < 60  # chi², 23 degrees: 1 in 30,000
    assert n * n == square


def test_packing_makes_messages_shorter_by_the_slots():
    plan = Plan(200, 10, 1.0)
    packed = KeyHolder(plan, "paillier", key_bits=1024)
    slots = 1023 // plan.slot_bits
    blobs = Envelope.parse(packed.encrypt(np.zeros(200))).blobs
    assert slots == 51 and len(blobs) == math.ceil(200 / slots) == 4
    assert {len(blob) for blob in blobs} == {256}


# --------------------------------------------------------------------- what the server cannot do


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_server_has_no_key_and_the_same_vector_never_looks_the_same(parties, scheme):
    _, holder, adder = parties[scheme]
    first, second = (Envelope.parse(holder.encrypt(np.zeros(60))).blobs[0] for _ in range(2))
    assert first != second
    with pytest.raises(ValueError, match="only the key holder"):
        adder._cipher.decrypt([first], 0)


def test_a_context_with_its_secret_key_is_refused():
    import tenseal

    plan = Plan(5, 2, 1.0)
    holder = KeyHolder(plan, "ckks")
    whole = holder._cipher.context.serialize(save_secret_key=True)
    assert tenseal.context_from(whole).is_private()
    with pytest.raises(ProtocolError, match="secret key"):
        Adder(plan, "ckks", whole)


def test_ciphertext_bytes_are_uniform():
    holder = KeyHolder(Plan(2000, 1, 1.0), "paillier", key_bits=1024)
    seen = b"".join(Envelope.parse(holder.encrypt(np.zeros(2000))).blobs)
    inner = np.frombuffer(seen, np.uint8).reshape(-1, 256)[:, :-1].reshape(-1)  # n² < 2^2048
    counts = np.bincount(inner, minlength=256)
    expected = inner.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * math.sqrt(510)


# ----------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("scheme", SCHEMES)
def test_noise_is_added_under_encryption(parties, scheme):
    plan, holder, adder = parties[scheme]
    rows = np.random.default_rng(1).uniform(-1, 1, (3, 60))
    noise = DiscreteGaussian(5.0).draw(60)
    messages = [holder.encrypt(row) for row in rows]
    plain, noisy = (holder.decrypt(adder.add(messages, extra)) for extra in (None, noise))
    assert np.abs((noisy - plain) / plan.codec.step - noise).max() < 0.5
    with pytest.raises(ProtocolError, match="noises"):
        adder.add([adder.add(messages[:1], noise), adder.add(messages[1:], noise)])
    with pytest.raises(ValueError, match="noise_room=50"):
        adder.add(messages, noise + 100)
    with pytest.raises(ValueError, match="whole numbers"):
        adder.add(messages, noise.astype(float))


def test_a_noisy_sum_has_the_noise_that_was_asked_for():
    law = Skellam(400.0)
    found = homomorphic_sum(np.zeros((2, 3000)), clip=1.0, scheme="bfv", noise=law)
    steps = found.total / Plan(3000, 2, 1.0, 16, law.reach).codec.step
    assert np.abs(steps - np.rint(steps)).max() < 1e-6
    assert steps.std() == pytest.approx(20, rel=0.08) and abs(steps.mean()) < 2


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.1])
def test_values_beyond_the_range_are_refused_with_their_index(bad):
    rows = np.zeros((2, 3))
    rows[1, 2] = bad
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        homomorphic_sum(rows, clip=1.0, scheme="bfv")


def test_options_that_make_no_sense_are_refused():
    rows = np.zeros((2, 3))
    for words, options in {
        "unknown": {"scheme": "rsa"},
        "does not read key_bits": {"scheme": "ckks", "key_bits": 2048},
        "at least 256": {"scheme": "paillier", "key_bits": 128},
        "even": {"scheme": "paillier", "key_bits": 513},
        "precision=1 ": {"precision": 1},
        "precision=40": {"precision": 40},
        "not secure": {"ring": 4096, "moduli": (60, 60)},
        "lower the scale": {"moduli": (60, 49), "scale_bits": 57},
        "ring=4000": {"scheme": "bfv", "ring": 4000},
    }.items():
        with pytest.raises(ValueError, match=words):
            homomorphic_sum(rows, clip=1.0, **options)
    with pytest.raises(ValueError, match="more than 58"):
        Plan(3, 2**30, 1.0, precision=30)
    with pytest.raises(ValueError, match="holds no value"):
        Paillier(Plan(1, 3, 1.0), type("Key", (), {"n": 2**10 + 1}))
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        homomorphic_sum(np.zeros(3), clip=1.0)


def test_a_missing_library_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ImportError, match="pip install tenseal"):
        homomorphic_sum(np.zeros((2, 3)), clip=1.0, scheme="ckks")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_vectors_than_planned_are_refused(parties, scheme):
    _, holder, adder = parties[scheme]
    message = holder.encrypt(np.zeros(60))
    with pytest.raises(ProtocolError, match="overflow"):
        adder.add([message] * 4)
    three = adder.add([message] * 3)
    with pytest.raises(ProtocolError, match="overflow"):
        adder.add([three, message])


def test_messages_of_another_scheme_or_length_are_refused(parties):
    _, holder, _ = parties["bfv"]
    other = KeyHolder(Plan(59, 3, 1.0, noise_room=50), "bfv")
    for message in (other.encrypt(np.zeros(59)), parties["ckks"][1].encrypt(np.zeros(60))):
        with pytest.raises(ProtocolError, match="agreed on"):
            parties["bfv"][2].add([holder.encrypt(np.zeros(60)), message])


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_message_is_always_noticed(parties, sent, scheme, data):
    _, holder, adder = parties[scheme]
    message = bytearray(sent[scheme])  # the same in every example
    at = data.draw(st.integers(0, len(message) - 1))
    if data.draw(st.booleans()):
        message[at] ^= data.draw(st.integers(1, 255))
    else:
        message = message[:at]
    for reader in (lambda m: adder.add([m]), holder.decrypt):
        with pytest.raises(ProtocolError):
            reader(bytes(message))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_forged_ciphertext_never_crashes_the_server(parties, sent, scheme, data):
    """With a right digest: refused, or added as the garbage that it is; nothing else happens."""
    _, holder, adder = parties[scheme]
    message = sent[scheme]
    envelope = Envelope.parse(message)
    blob = bytearray(envelope.blobs[0])
    kind = data.draw(st.sampled_from(["flip", "cut", "random", "zero"]))
    if kind == "flip":
        for _ in range(data.draw(st.integers(1, 4))):
            blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        blob = blob[: data.draw(st.integers(0, len(blob) - 1))]
    else:
        blob = bytearray(data.draw(st.binary(max_size=200))) if kind == "random" else bytearray(64)
    blobs = (bytes(blob), *envelope.blobs[1:])
    forged = Envelope(scheme, 1, False, 60, blobs).to_bytes()
    try:
        total = holder.decrypt(adder.add([message, forged]))
    except ProtocolError:
        return
    assert total.shape == (60,)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_are_parsed_or_refused(content, signed):
    data = content + hashlib.sha256(content).digest() if signed else content
    try:
        envelope = Envelope.parse(data)
    except ProtocolError:
        return
    assert envelope.to_bytes() == data


def test_wrong_keys_are_refused():
    plan = Plan(5, 2, 1.0)
    for scheme in SCHEMES:
        for bad in (b"", b"\x00" * 40, bytes(range(200))):
            with pytest.raises(ProtocolError):
                Adder(plan, scheme, bad)
    with pytest.raises(ProtocolError, match="512 bits where 1024"):
        Adder(plan, "paillier", KeyHolder(plan, "paillier", **TOY).public, key_bits=1024)


def test_plain_moduli_are_primes_with_enough_slots():
    for bits in (9, 20, 36, 58):
        for ring in (4096, 8192):
            prime = lattice._slot_prime(bits, ring)
            assert prime % (2 * ring) == 1 and prime >= 2 ** (bits - 1)
    sieve = [all(n % k for k in range(2, int(n**0.5) + 1)) for n in range(2, 3000)]
    assert [lattice._is_prime(n) for n in range(2, 3000)] == sieve
    assert not lattice._is_prime(3215031751)  # a strong pseudoprime to the bases 2, 3, 5 and 7

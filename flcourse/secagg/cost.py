"""What a round costs, from the sizes of its messages. Chapter 13."""

from __future__ import annotations

from flcourse.secagg import messages as wire
from flcourse.secagg.client import CIPHERTEXT_BYTES, SHARE_BYTES
from flcourse.secagg.field import check_bits, packed_size
from flcourse.secagg.graph import num_neighbours
from flcourse.secagg.masking import KEY_BYTES


def upload_bytes(
    num_clients: int, length: int, *, bits: int = 32, neighbours: int | None = None
) -> dict[str, int]:
    """Bytes that a client sends in each stage of a round in which nobody drops out.

    With ``k`` neighbours and ``d`` entries of ``b`` bits: ``⌈db/8⌉`` for the vector, 90 a neighbour
    for encrypted shares, 41 a neighbour (and itself) for opened ones, and 5 signed envelopes of 86.
    Raises ``ValueError`` as ``secure_sum`` does.
    """
    check_bits(bits)
    near = num_neighbours(num_clients, neighbours)
    envelope = wire.HEADER_BYTES + wire.SIGNATURE_BYTES
    return {
        "advertise_keys": envelope + 2 * KEY_BYTES + wire.DIGEST_BYTES,
        "share_keys": envelope + wire.items_size(near, CIPHERTEXT_BYTES),
        "masked_input": envelope + packed_size(length, bits),
        "consistency_check": envelope + wire.DIGEST_BYTES,
        "unmasking": envelope + wire.items_size(near + 1, 1 + SHARE_BYTES),
    }

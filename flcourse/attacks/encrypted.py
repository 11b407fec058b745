"""What a server sees of encrypted messages: `python -m flcourse attack --defence he` (chapter 14).

The message is really encrypted, the key thrown away, and the attack gets the ciphertext: its bytes
as numbers of the declared range, since numbers are what an attack reads. (An "encryption defence"
that decrypts before the attack runs, as some programs do, measures something else.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flcourse.attacks.types import Leak

SLACK = 1 + 1e-6  # a float32 row clipped to length C is C long up to its last digits


def rounded(row: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The row ``[d]`` as fixed point keeps it: what decryption gives back."""
    codec = _plan(row.numel(), 1, settings).codec
    return torch.from_numpy(codec.decode(codec.encode(row.cpu()))).to(row)


def sealed(rows: Sequence[Tensor], leak: Leak, settings: Mapping[str, Any]) -> Leak:
    """The leak as a server without the key has it: the encrypted sum of the rows ``[d]`` instead.

    Value ``i`` is read from bytes ``4i`` to ``4i + 3`` of the ciphertexts (from the start again
    where they are shorter) and scaled to ``±C``. Chapter 14.
    Raises ``ValueError`` and ``ImportError`` as `flcourse.secagg.homomorphic` does.
    """
    from flcourse.secagg.homomorphic import Adder, Envelope, KeyHolder

    scheme, options = cipher(settings)
    plan = _plan(rows[0].numel(), len(rows), settings)
    holder = KeyHolder(plan, scheme, **options)
    messages = [holder.encrypt(row.cpu()) for row in rows]
    if len(messages) > 1:
        messages = [Adder(plan, scheme, holder.public, **options).add(messages)]
    content = b"".join(Envelope.parse(messages[0]).blobs)
    raw = np.resize(np.frombuffer(content, np.uint8), 4 * plan.num_values)
    numbers = torch.from_numpy(raw.view("<i4") / 2.0**31) * settings["clip_norm"]
    return leak.with_row(numbers.to(leak.row))


def cipher(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Scheme and options: Paillier where a key length is given, else CKKS."""
    if settings["key_bits"] is None:
        return "ckks", {}
    return "paillier", {"key_bits": settings["key_bits"]}


def _plan(values: int, clients: int, settings: Mapping[str, Any]) -> Any:
    from flcourse.secagg.ciphers import Plan

    return Plan(values, clients, settings["clip_norm"] * SLACK, settings["precision"])

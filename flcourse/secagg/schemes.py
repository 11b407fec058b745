"""The ciphers behind chapter 14 by name: Paillier (python-paillier), BFV and CKKS (TenSEAL).

    holder = new_holder(plan, "bfv")               # has the secret key
    adder = public_part(plan, "bfv", holder.public)   # has the public key only
    total = adder.add([holder.encrypt(first, 0), holder.encrypt(second, 0)])
    holder.decrypt(total, offset=0)

Both libraries are optional: ``pip install phe tenseal``.
"""

from __future__ import annotations

from typing import Any

from flcourse.secagg.ciphers import Holder, Plan, PublicPart
from flcourse.secagg.lattice import BFV, CKKS
from flcourse.secagg.paillier import Paillier

SCHEMES = ("paillier", "bfv", "ckks")


def new_holder(plan: Plan, scheme: str, **options: Any) -> Holder:
    """A fresh key pair. Options: ``key_bits``, ``packed`` (Paillier); ``ring`` (BFV, CKKS).

    CKKS reads ``moduli`` and ``scale_bits``, too.

    Raises ``ValueError`` for an unknown scheme or option, ``ImportError`` that names the command
    which installs the library.
    """
    return _kind(scheme).generate(plan, **_allowed(scheme, options))


def public_part(plan: Plan, scheme: str, public: bytes, **options: Any) -> PublicPart:
    """The adder's half, from ``holder.public``. Raises ``ProtocolError`` for a damaged key."""
    return _kind(scheme).from_public(plan, public, **_allowed(scheme, options))


def _kind(scheme: str) -> Any:
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r} is unknown: use {', '.join(SCHEMES)}")
    return {"paillier": Paillier, "bfv": BFV, "ckks": CKKS}[scheme]


def _allowed(scheme: str, options: dict[str, Any]) -> dict[str, Any]:
    reads = {
        "paillier": ("key_bits", "packed"),
        "bfv": ("ring",),
        "ckks": ("ring", "moduli", "scale_bits"),
    }
    given = {name: value for name, value in options.items() if value is not None}
    if unread := sorted(set(given) - set(reads[scheme])):
        raise ValueError(
            f"scheme={scheme!r} does not read {', '.join(unread)}: it takes "
            f"{', '.join(reads[scheme])}"
        )
    return given

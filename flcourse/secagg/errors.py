"""What can go wrong in a round of secure aggregation, as two exceptions. Chapter 13."""

from __future__ import annotations


class ProtocolError(Exception):
    """A message is damaged, forged, replayed or asks for what must not be given: it is refused."""


class AbortError(ProtocolError):
    """Too few clients are left: the round ends without a sum, and nothing was opened."""

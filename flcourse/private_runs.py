"""What `--defence` does to a training run: `python -m flcourse train` (chapters 12 and 14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from flcourse import defences, fedavg
from flcourse.data import Client, Dataset
from flcourse.fedavg import History, RoundContext

DELTA, CLIP_NORM = 1e-5, 1.0  # where none is given
KEEP, BITS = 0.1, 8  # of prune and quantise
PRECISION = 16  # of encrypted values


def resolved(settings: Mapping[str, Any], steps: int, rate: float) -> dict[str, Any]:
    """The settings with clip norm, δ and noise multiplier filled in where the defence reads them.

    ``epsilon`` becomes the noise that gives it in ``steps`` releases at ``rate``.
    Raises ``ValueError`` for a budget that no noise gives, and where a library is missing.
    """
    full = dict(settings)
    if full["defence"] == "he":
        full["precision"] = full["precision"] or PRECISION
        _check_encryption(full)
    if full["defence"] in ("clip", "dp", "he"):
        full["clip_norm"] = full["clip_norm"] or CLIP_NORM
    if full["defence"] == "dp":
        from flcourse.privacy import noise_multiplier

        full["delta"] = full["delta"] or DELTA
        if full["noise_multiplier"] is None:
            found = noise_multiplier(full["epsilon"], steps, full["delta"], rate)
            full["noise_multiplier"] = found
    return full


def spent(settings: Mapping[str, Any], steps: int, rate: float) -> dict[str, Any]:
    """``{"epsilon_spent": ε}`` of ``steps`` releases by the PLD accountant; empty without DP."""
    if settings["defence"] != "dp":
        return {}
    from flcourse.privacy import epsilon

    return {"epsilon_spent": epsilon(settings["noise_multiplier"], steps, settings["delta"], rate)}


def sentence(config: Mapping[str, Any], unit: str, observer: str) -> str:
    """What was bought, in words: ε, δ, the unit, the observer."""
    return (
        f"ε = {config['epsilon_spent']:.3g} at δ = {config['delta']:g} for each {unit}, against "
        f"{observer} (z = {config['noise_multiplier']:.4g}, C = {config['clip_norm']:g})"
    )


def encryption(settings: Mapping[str, Any]) -> str:
    """What was encrypted, in words, and how far it can be trusted."""
    length = settings["key_bits"]
    name = "CKKS, ring of 4096" if length is None else f"Paillier, key of {length} bits"
    weak = "" if length is None or length >= 2048 else "; too short: such a key can be factored"
    return (
        f"encrypted ({name}, {settings['precision']} bits a value{weak}): the server sees "
        "ciphertexts; whoever has a client's key sees all"
    )


def _check_encryption(settings: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` before anything is written if the settings cannot be carried out."""
    from flcourse.secagg.ciphers import Plan, library

    if settings["key_bits"] is not None and settings["key_bits"] % 2:
        raise ValueError(f"--key-bits {settings['key_bits']} must be even: use 2048")
    try:
        library("tenseal" if settings["key_bits"] is None else "phe")
    except ImportError as error:
        raise ValueError(str(error)) from error
    Plan(1, settings["num_clients"], 1.0, settings["precision"])


def _encrypted_mean(settings: Mapping[str, Any]) -> fedavg.Aggregate:
    from flcourse.attacks.encrypted import SLACK, cipher
    from flcourse.secagg.homomorphic import he_aggregate

    scheme, options = cipher(settings)
    clip = settings["clip_norm"] * SLACK
    return he_aggregate(clip=clip, scheme=scheme, precision=settings["precision"], **options)


def train(
    model: nn.Module,
    clients: Sequence[Client],
    test: Dataset,
    settings: Mapping[str, Any],
    *,
    fraction: float,
    **options: Any,
) -> History:
    """``fedavg.train`` with the defence; DP draws cohorts by Poisson, ``privacy.train_private``."""
    if settings["defence"] == "dp":
        from flcourse.privacy import DPFedAvg, train_private

        dp = DPFedAvg(
            settings["clip_norm"],
            settings["noise_multiplier"],
            num_clients=len(clients),
            sample_rate=fraction,
        )
        return train_private(model, clients, test, dp, **options)
    transform = row_defence(settings)
    if settings["defence"] == "he":
        options["aggregate"] = _encrypted_mean(settings)
    return fedavg.train(model, clients, test, fraction=fraction, transform=transform, **options)


def row_defence(settings: Mapping[str, Any]) -> Callable[[Tensor, RoundContext], Tensor] | None:
    """What a defence without noise does to rows ``[n, d]``; None for none."""
    rules: dict[str, Callable[[Tensor], Tensor]] = {
        "clip": lambda rows: defences.clip(rows, settings["clip_norm"]),
        "he": lambda rows: defences.clip(rows, settings["clip_norm"]),
        "prune": lambda rows: defences.prune(rows, KEEP),
        "quantise": lambda rows: defences.quantise(rows, BITS),
        "sign": defences.sign,
    }
    if settings["defence"] == "none":
        return None
    rule = rules[settings["defence"]]

    def transform(rows: Tensor, _context: RoundContext) -> Tensor:
        return rule(rows)

    return transform

"""DP-FedAvg: federated averaging whose model says little about any one client.

    dp = DPFedAvg(clip_norm=1.0, noise_multiplier=1.0, num_clients=1000, sample_rate=0.1)
    history = train_private(model, clients, test, dp, rounds=20, epochs=1, lr=0.05)

``dp.transform`` and ``dp.aggregate`` also plug into ``flcourse.fedavg.train``, which draws cohorts
of a fixed size; ``train_private`` draws each client by its own coin (Poisson), which is what the
accounting of subsampling is about.

Source: McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models",
Algorithm 1 with the fixed-denominator estimator. Chapter 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from flcourse.data import Client, Dataset
from flcourse.fedavg import Checkpoint, History, Round, RoundContext, run_rounds
from flcourse.privacy.adaptive import AdaptiveClip
from flcourse.privacy.clipping import Clipped, clip_layers, clip_rows, exact, row_norms
from flcourse.privacy.noise import SecureNoise, Source, gaussian_rows, gaussian_sum
from flcourse.runtime import generator
from flcourse.vectors import layout

PLACES = ("server", "distributed", "local")
SAMPLINGS = ("poisson", "fixed")


class Records(Protocol):
    """What ``DPFedAvg`` tells an accountant after each round (``flcourse.privacy.Accountant``)."""

    def record(
        self,
        noise_multiplier: float,
        steps: int = 1,
        sample_rate: float = 1.0,
        sampling: str = "poisson",
    ) -> object:
        """One release of a Gaussian sum; may refuse it."""


class DPFedAvg:
    """Clip each client's update, add up, add noise, divide by the number expected.

    ``step = (Σ_k clip_C(row_k) + N(0, (z·C)² I)) / (q·N)``.

    The denominator ``q·N`` is fixed beforehand: how many took part is private, too. Sample counts
    (``weights``) are ignored, as every client counts once: a weight would scale what a client can
    do beyond ``C``. Empty cohorts give noise alone.

    ``where`` the noise is added decides who must be trusted and what the step's noise norm is:

    - ``"server"``: once, on the sum, by a server that is trusted with the rows. ``√d·z·C/(qN)``.
    - ``"distributed"``: by each client of the cohort, ``N(0, (z·C)²/(h·n))`` with ``h = honest``
      the share of the ``n`` that surely adds its part. The sum's noise is the server's one where
      ``h = 1``; whoever sees single rows (no secure aggregation) sees them nearly bare.
    - ``"local"``: by each client, ``N(0, (z·C)²)`` on its own row, against the server itself.
      ``√d·z·C·√n/(qN)``: √n times as much in the step. Here add/remove means that the row is there
      or is zeros; for any row against any other use ``adjacency="replace-one"``.

    What ``accountant`` (or a ``Budget``) is told in each round: one Gaussian release with ``z`` at
    ``sample_rate`` by ``sampling``; with everybody in and replace-one, with ``z/2``, since the sum
    then moves by up to ``2C``. For ``"local"`` the rate is 1: the server sees who sends. For
    ``"distributed"`` that server knows the cohort, too: the amplification holds against those who
    see only the models. With ``noise_multiplier=0`` there is no privacy to account for.

    Args:
        clip_norm: ``C``, or an ``AdaptiveClip`` (``where="server"`` only), which then follows the
            norms; its count is paid for out of ``noise_multiplier``.
        noise_multiplier: ``z = σ/C``.
        num_clients: ``N``, all clients that could be drawn.
        sample_rate: ``q``, the chance of each (``"poisson"``) or the share drawn (``"fixed"``).
        sampling: how cohorts are drawn: ``train_private`` needs ``"poisson"``, ``fedavg.train``
            with ``fraction < 1`` needs ``"fixed"``, with ``fraction=1`` either.
        adjacency: what the ε is about. The theorems at hand: ``"add/remove"`` for Poisson cohorts,
            ``"replace-one"`` for fixed ones (each the default there), either where all take part.
        per_layer: clip each layer to ``C/√L`` rather than the whole row to ``C``.
        not_finite: ``"refuse"`` or ``"drop"`` rows with NaN or infinity, as ``clip_rows``.
        seed: of the noise; ``None``: the run's seed. Such noise is repeatable, so not secret:
            ``secure=True`` draws it from ``SecureNoise`` instead.
    """

    def __init__(
        self,
        clip_norm: float | AdaptiveClip,
        noise_multiplier: float,
        *,
        num_clients: int,
        sample_rate: float = 1.0,
        where: str = "server",
        sampling: str = "poisson",
        adjacency: str | None = None,
        per_layer: bool = False,
        honest: float = 1.0,
        not_finite: str = "refuse",
        seed: int | None = None,
        secure: bool = False,
        accountant: Records | None = None,
    ) -> None:
        self.adaptive = clip_norm if isinstance(clip_norm, AdaptiveClip) else None
        self._fixed_norm = math.nan if isinstance(clip_norm, AdaptiveClip) else clip_norm
        self.noise_multiplier, self.num_clients = noise_multiplier, num_clients
        self.sample_rate, self.where, self.sampling = sample_rate, where, sampling
        usual = "add/remove" if self._whole() or sampling == "poisson" else "replace-one"
        self.adjacency = usual if adjacency is None else adjacency
        self.per_layer, self.honest = per_layer, honest
        self.not_finite, self.seed, self.secure = not_finite, seed, secure
        self.accountant = accountant
        self._check()
        self._round: RoundContext | None = None
        self._norms = torch.zeros(0)

    @property
    def clip_norm(self) -> float:
        """``C`` of the next round."""
        return self.adaptive.clip_norm if self.adaptive else self._fixed_norm

    @property
    def expected_clients(self) -> float:
        """``q·N``: what the sum is divided by, whoever came."""
        return self.sample_rate * self.num_clients

    def transform(self, rows: Tensor, context: RoundContext) -> Tensor:
        """What the clients send: clipped rows ``[n, d]``, with their own noise unless "server".

        Raises ``ValueError`` for rows that are not finite, or a cohort that ``sampling="fixed"``
        does not fit.
        """
        self._check_cohort(len(context.cohort))
        self._round, self._norms = context, row_norms(rows)
        clipped = self._clip(rows, context.model)
        if self.where == "server" or not self.noise_multiplier or not len(rows):
            return clipped.rows
        share = 1.0 if self.where == "local" else (self.honest * len(rows)) ** -0.5
        noisy = [  # one generator for each client: its noise is its own
            gaussian_rows(
                Clipped(row[None], clipped.clip_norm, self.adjacency),
                self.noise_multiplier * share,
                self._source(context, int(client.index)),
            )
            for row, client in zip(clipped.rows, context.cohort, strict=True)
        ]
        return torch.cat(noisy)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """``(Σ rows + noise) / (q·N)``, ``[n, d] -> [d]``; ``weights`` are ignored (see above).

        Raises ``ValueError`` unless ``transform`` was called for this round, and, where the noise
        is the server's, for a row that is longer than ``C``.
        """
        if self._round is None:
            raise ValueError(
                "aggregate without transform would add noise to rows that were never clipped: "
                "train(..., transform=dp.transform, aggregate=dp.aggregate)"
            )
        context, self._round = self._round, None  # once: the same noise twice cancels
        if self.accountant is not None:  # before anything is released: a budget may refuse
            self.accountant.record(*self.release())
        total = self._sum(rows, context)
        if self.adaptive:
            self.adaptive.update(self._norms, self._source(context, None, "dp count"))
        return total / self.expected_clients

    def release(self) -> tuple[float, int, float, str]:
        """What one round releases, in the order of ``Accountant.record``: ``z``, 1, rate, how."""
        if self._whole():
            halves = 2 if self.adjacency == "replace-one" else 1
            return self.noise_multiplier / halves, 1, 1.0, "poisson"
        return self.noise_multiplier, 1, self.sample_rate, self.sampling

    def _whole(self) -> bool:
        """No amplification: everybody takes part, or whoever is feared sees who does."""
        return self.sample_rate == 1 or self.where == "local"

    def noise_norm(self, dimension: int) -> float:
        """The expected length of the noise in one step, ``√d·z·C/(qN)``, times ``√n`` if local.

        ``n = q·N`` is taken for the cohort. Chapter 12 predicts with it what training will do.
        """
        std = self._rows_multiplier() * self.clip_norm
        draws = self.expected_clients if self.where == "local" else 1 / self.honest
        if self.where == "server":
            draws = 1.0
        return math.sqrt(dimension * draws) * std / self.expected_clients

    def __repr__(self) -> str:
        shown = ("clip_norm", "noise_multiplier", "num_clients", "sample_rate", "where", "sampling")
        return f"DPFedAvg({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def _sum(self, rows: Tensor, context: RoundContext) -> Tensor:
        noisy = self.where == "local" or (self.where == "distributed" and len(rows))
        if noisy or not self.noise_multiplier:
            return exact(rows).sum(dim=0).to(rows)
        # Distributed noise and nobody came: the server adds it, or the silence would tell.
        clipped = Clipped(rows, self.clip_norm, self.adjacency)  # refuses what is longer
        return gaussian_sum(clipped, self._rows_multiplier(), self._source(context, None))

    def _rows_multiplier(self) -> float:
        z = self.noise_multiplier
        return self.adaptive.rows_noise_multiplier(z) if self.adaptive else z

    def _clip(self, rows: Tensor, model: nn.Module) -> Clipped:
        if self.per_layer:
            return clip_layers(
                rows,
                layout(model),
                self.clip_norm,
                adjacency=self.adjacency,
                not_finite=self.not_finite,
            )
        return clip_rows(rows, self.clip_norm, adjacency=self.adjacency, not_finite=self.not_finite)

    def _source(
        self, context: RoundContext, client: int | None, purpose: str = "dp noise"
    ) -> Source:
        if self.secure:
            return SecureNoise()
        seed = context.seed if self.seed is None else self.seed
        parts = (purpose, context.round) if client is None else (purpose, context.round, client)
        return generator(seed, *parts)

    def _check_cohort(self, size: int) -> None:
        expected = max(round(self.expected_clients), 1)
        exact = self.sampling == "fixed" or self.sample_rate == 1
        if exact and size != expected:
            raise ValueError(
                f"a cohort of {size}, but {expected} were expected of num_clients="
                f"{self.num_clients}, sample_rate={self.sample_rate}: set both as they are"
            )

    def _check(self) -> None:
        if self.where not in PLACES:
            raise ValueError(f"where={self.where!r} is unknown: use {', '.join(PLACES)}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling={self.sampling!r} is unknown: use {', '.join(SAMPLINGS)}")
        if not (self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)):
            raise ValueError(f"noise_multiplier={self.noise_multiplier} must be 0 or more")
        if not self.noise_multiplier and (self.accountant is not None or self.adaptive):
            raise ValueError("noise_multiplier=0 gives no privacy: there is nothing to account for")
        if self.num_clients < 1:
            raise ValueError(f"num_clients={self.num_clients} must be at least 1")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate={self.sample_rate} must lie in (0, 1]")
        if not 0 < self.honest <= 1:
            raise ValueError(f"honest={self.honest} must lie in (0, 1]: the share that adds noise")
        fitting = {"poisson": "add/remove", "fixed": "replace-one"}[self.sampling]
        if not self._whole() and self.adjacency != fitting:
            raise ValueError(
                f"adjacency={self.adjacency!r} with {self.sampling} cohorts of sample_rate="
                f"{self.sample_rate} has no theorem here: use {fitting!r}"
            )
        if self.adaptive and self.where != "server":
            raise ValueError(f"AdaptiveClip needs where='server', not {self.where!r}")
        # One tiny row: norm and adjacency are checked where they are used.
        clip_rows(torch.zeros(1, 1), self.clip_norm, adjacency=self.adjacency)


def sample_poisson(
    clients: Sequence[Client], rate: float, generator: torch.Generator
) -> list[Client]:
    """Each client with probability ``rate``, independently of all others; maybe none.

    This, not ``fedavg.sample_clients`` (a fixed number), is what subsampled accounting assumes.
    Chapter 11. Raises ``ValueError`` if ``rate`` is outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate={rate} must lie in (0, 1]: the chance of each client")
    coins = torch.rand(len(clients), generator=generator, dtype=torch.float64)
    return [client for client, coin in zip(clients, coins.tolist(), strict=True) if coin < rate]


def train_private(
    model: nn.Module,
    clients: Sequence[Client],
    test: Dataset,
    dp: DPFedAvg,
    *,
    rounds: int,
    epochs: int = 1,
    batch_size: int | None = 32,
    lr: float = 0.05,
    momentum: float = 0.0,
    proximal: float = 0.0,
    server_lr: float = 1.0,
    server_momentum: float = 0.0,
    seed: int = 0,
    engine: str = "auto",
    resume: Checkpoint | None = None,
    on_round: Callable[[Round, Checkpoint], None] | None = None,
) -> History:
    """``fedavg.train`` with cohorts drawn by ``sample_poisson`` at ``dp.sample_rate``.

    ``model`` is trained in place; the options are those of ``fedavg.train``, and ``resume`` goes on
    as there. What a history holds (norms, who took part, test accuracy per round) bypasses the
    guarantee: it is for the reader of the course, not for publication.
    Server momentum and learning rate are post-processing and cost no privacy. Chapter 12.

    Raises ``ValueError`` if ``dp`` was made for another number of clients or for fixed cohorts.
    """
    if dp.num_clients != len(clients):
        raise ValueError(f"dp.num_clients={dp.num_clients}, but there are {len(clients)} clients")
    if dp.sampling != "poisson":
        raise ValueError(f"dp.sampling={dp.sampling!r}: train_private draws cohorts by Poisson")
    local = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "proximal": proximal,
        "engine": engine,
    }
    server = {"server_lr": server_lr, "server_momentum": server_momentum, "seed": seed}
    config = {"rounds": rounds, "dp": repr(dp), "model": type(model).__name__}
    return run_rounds(
        model,
        clients,
        test,
        rounds=rounds,
        sample=lambda those, generator: sample_poisson(those, dp.sample_rate, generator),
        local=local,
        aggregate=dp.aggregate,
        transform=dp.transform,
        loss=None,
        server_lr=server_lr,
        server_momentum=server_momentum,
        seed=seed,
        resume=resume,
        on_round=on_round,
        config=config | local | server,
    )

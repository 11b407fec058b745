"""One federation, one lie, one rule: what is left of the accuracy? Any part of the matrix.

    cell = run_cell("sign_flip:scale=5", "trimmed_mean", Setting(), seed=0)
    cell.accuracy, cell.cosine

An attack is written ``name:option=value,…`` with a name of ``ATTACKS``, or ``none`` or
``label_flip``; a rule likewise with a name of ``RULES``, after ``mixing+`` where rows are mixed
first: ``bucketing:size=2+coordinate_median``. Chapter 16.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from flcourse.byzantine.catalogue import ATTACKS, as_transform, lying_rows
from flcourse.byzantine.poisoning import poison
from flcourse.byzantine.rules import MIXINGS, RULES, RobustAggregate, as_aggregate
from flcourse.byzantine.setting import Federation, Setting, federation
from flcourse.byzantine.spelling import check_types, parse
from flcourse.byzantine.trust import root_update
from flcourse.fedavg import Checkpoint, Round, RoundContext, Transform, evaluate, train
from flcourse.runtime import generator
from flcourse.vectors import flatten

NONE, LABEL_FLIP = "none", "label_flip"

# The rows and columns of chapter 16.
STANDARD_ATTACKS = (
    NONE,
    "constant:value=nan",
    LABEL_FLIP,
    "sign_flip",
    "sign_flip:scale=5",
    "constant:value=100",
    "gaussian:std=1",
    "alie",
    "alie:z=1.5",
    "ipm:scale=0.5",
    "ipm:scale=5",
    "min_max",
    "min_sum",
    "mimic",
    "suppression",
    "stealth_suppression",
)
STANDARD_RULES = (
    "mean",
    "coordinate_median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "centered_clipping",
    "norm_filter",
    "cluster_filter",
    "fltrust",
    "nearest_neighbour_mixing+trimmed_mean",
    "bucketing:size=2+coordinate_median",
)


@dataclass(frozen=True)
class Cell:
    """What one run gave.

    Attributes:
        accuracy: on the test samples, of the model after the last round.
        cosine: of the step and the mean of the honest rows, averaged over rounds; 0 for a step of
            length zero.
        accuracies: the accuracy after each round; cosines: the cosine of each round.
        stopped: why training ended early, or None. The model is then what it was before.
    """

    attack: str
    rule: str
    seed: int
    accuracy: float
    cosine: float
    accuracies: tuple[float, ...]
    cosines: tuple[float, ...]
    stopped: str | None = None


class Undefined(ValueError):
    """A rule, or a lie, that is not defined for so many liars among so few rows."""


def run_cell(
    attack: str, rule: str, setting: Setting, seed: int = 0, *, folder: str | None = None
) -> Cell:
    """Train with ``f`` liars of ``n`` under ``rule`` and say what came of it.

    For one seed all rules see the same data, liars, start and batches. Rows count alike, whatever
    their sample counts. ``none`` names no liar, yet rules are told ``f`` as ever. ``folder`` is
    where data sets lie. Chapter 16.
    Raises ``Undefined`` if rule or attack refuses ``f`` of ``n``, and ``ValueError`` for a name or
    option that is unknown. What stops later (too many rows dropped for a rule, a model no longer
    finite) is told in ``Cell.stopped``.
    """
    world = federation(setting, seed, folder)
    name, options = parse(attack)
    liars = world.liars if name != NONE else frozenset()
    watch = Watch(world.model, liars, _lie(name, options, world))
    watch.rule = build_rule(rule, setting, watch, world, seed)
    clients = world.clients
    if name == LABEL_FLIP:
        clients = poison(clients, world.liars, world.num_classes)
    accuracies: list[float] = []

    def keep(record: Round, _: Checkpoint) -> None:
        accuracies.append(record.accuracy)

    stopped = None
    try:
        train(
            world.model,
            clients,
            world.test,
            rounds=setting.rounds,
            aggregate=watch.aggregate,
            transform=watch.transform,
            seed=seed,
            on_round=keep,
            **setting.local,
        )
    except Stopped as stop:
        stopped = str(stop)
    last = accuracies[-1] if accuracies else evaluate(world.model, world.test)[0]
    average = math.fsum(watch.cosines) / len(watch.cosines)
    series = tuple(accuracies), tuple(watch.cosines)
    return Cell(attack, rule, seed, last, average, *series, stopped)


def run_matrix(
    attacks: Iterable[str],
    rules: Iterable[str],
    setting: Setting,
    seeds: Iterable[int],
    *,
    folder: str | None = None,
) -> Iterator[tuple[str, str, int, Cell | None]]:
    """Every attack × rule × seed in turn; the cell is None where rule or lie is ``Undefined``."""
    rules, seeds = list(rules), list(seeds)
    for attack in attacks:
        for rule in rules:
            for seed in seeds:
                try:
                    cell = run_cell(attack, rule, setting, seed, folder=folder)
                except Undefined:
                    cell = None
                yield attack, rule, seed, cell


def check_names(
    attacks: Iterable[str], rules: Iterable[str], setting: Setting, *, folder: str | None = None
) -> dict[str, str]:
    """Refuse unknown names and options before hours of training; say what is undefined.

    Returns the reason for each rule, and each attack, that is not defined for ``f`` of ``n``.
    Raises ``ValueError``.
    """
    world, undefined = federation(setting, 0, folder), {}
    rows = torch.randn(len(world.clients), 8, generator=generator(0, "any rows"))
    context = RoundContext(1, 0, world.clients, rows[:, 0], world.model)
    rows[~lying_rows(world.liars, context)] *= 1e-3  # whether lengths allow a lie, the run shows
    for attack in attacks:
        watch = Watch(world.model, world.liars, _lie(*parse(attack), world))
        try:
            watch.transform(rows, context)
        except Undefined as error:
            undefined[attack] = str(error)
    for rule in rules:
        try:
            build_rule(rule, setting, Watch(world.model, frozenset(), None), world, 0)
        except Undefined as error:
            undefined[rule] = str(error)
    return undefined


# --- what is watched ----------------------------------------------------------------------------


class Stopped(Exception):
    """Training cannot go on."""


@dataclass
class Watch:
    """The ``transform`` and ``aggregate`` of a run: the lie, the rule, how far off each step is.

    ``typical`` is the median length of the rows that the server received in this round.
    """

    model: nn.Module
    liars: frozenset[int]
    lie: Transform | None
    rule: RobustAggregate | None = None
    honest: Tensor | None = None
    typical: float = 0.0
    cosines: list[float] = field(default_factory=list)

    def transform(self, rows: Tensor, context: RoundContext) -> Tensor:
        """Let the liars lie; remember the mean of the honest rows."""
        self.honest = rows[~lying_rows(self.liars, context).to(rows.device)].mean(dim=0)
        try:
            sent = rows if self.lie is None else self.lie(rows, context)
        except ValueError as error:
            raise Undefined(str(error)) from error
        lengths = torch.linalg.vector_norm(sent, dim=1).nan_to_num(nan=torch.inf)
        self.typical = float(lengths.median())
        return sent

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The rule's step; its cosine to the honest mean is kept."""
        assert self.rule is not None and self.honest is not None, "set by run_cell"
        try:
            step = self.rule(rows, weights)
        except (ValueError, RuntimeError) as error:  # refuses the rows left, or does not converge
            self._stop(str(error))
        if not bool(torch.isfinite(flatten(self.model) + step).all()):
            self._stop("the step makes the model NaN or infinite")
        self.cosines.append(cosine(step, self.honest))
        return step

    def _stop(self, reason: str) -> NoReturn:
        self.cosines.append(0.0)
        raise Stopped(f"round {len(self.cosines)}: {reason}")


def cosine(step: Tensor, honest: Tensor) -> float:
    """The cosine of two rows, in float64 on the CPU; 0 if one has length zero."""
    one, other = step.cpu().double(), honest.cpu().double()
    both = float(one.norm() * other.norm())
    return float(one @ other) / both if both > 0 else 0.0


# --- from text ----------------------------------------------------------------------------------


def build_rule(
    text: str, setting: Setting, watch: Watch, world: Federation, seed: int
) -> RobustAggregate:
    """The rule of a text, with what the server knows: ``f``, lengths, root set, a generator.

    Raises ``Undefined`` if it is not defined for ``f`` of ``n``; ``ValueError`` as ``parse`` and
    ``as_aggregate`` do.
    """
    before, _, after = text.rpartition("+")
    (name, options), (mix, mix_options) = parse(after), parse(before)
    known: dict[str, Callable[[], Any]] = {
        "num_byzantine": lambda: setting.num_byzantine,
        "clip_norm": lambda: lambda: setting.clip * watch.typical,
        "max_norm": lambda: lambda: setting.longest * watch.typical,
        "server_update": lambda: root_update(world.model, world.root, seed=seed, **setting.local),
        "generator": lambda: generator(seed, "buckets"),
    }
    functions = [RULES[name].function] if name in RULES else []
    functions += [MIXINGS[mix]] if mix in MIXINGS else []
    for function in functions:
        check_types(function, options | mix_options)
    takes = {option for function in functions for option in inspect.signature(function).parameters}
    given = {key: value() for key, value in known.items() if key in takes} | options | mix_options
    rule = as_aggregate(name, mix=mix or None, **given)
    _check_defined(name, setting, given)
    return rule


def _check_defined(name: str, setting: Setting, options: dict[str, Any]) -> None:
    rule, f = RULES[name], options.get("num_byzantine", setting.num_byzantine)
    size, n = options.get("size", 1), setting.num_clients
    if not 1 <= size <= n:
        raise ValueError(f"bucketing: size={size} must lie in 1 … {n}, the number of clients")
    rows = -(-n // size)
    if rule.checks and f > rule.max_byzantine(rows):
        raise Undefined(f"{name} is not defined for {f} of {rows} rows: {rule.condition}")


def _lie(name: str, options: dict[str, Any], world: Federation) -> Transform | None:
    if name in (NONE, LABEL_FLIP):
        if options:
            raise ValueError(f"{name} takes no options, got {', '.join(options)}")
        return None
    if name not in ATTACKS:
        known = ", ".join((NONE, LABEL_FLIP, *ATTACKS))
        raise ValueError(f"no attack {name!r}: use one of {known}")
    lie = as_transform(name, world.liars, **options)
    check_types(ATTACKS[name].function, options)
    return lie

"""All rules by name, what each tolerates, and how one becomes a training loop's ``aggregate``.

    aggregate = as_aggregate("trimmed_mean", num_byzantine=4, mix="nearest_neighbour_mixing")
    train(model, clients, test, rounds=10, aggregate=aggregate)
    aggregate.dropped                                  # rows left out, a list for each round

Chapters 15 and 16.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flcourse.byzantine import centres, coordinates, mixing, selection, trust
from flcourse.byzantine.screening import screen


@dataclass(frozen=True)
class Rule:
    """A rule ``[n, d] -> [d]``, and when it withstands ``f`` liars of ``n`` rows.

    ``max_byzantine(n)`` is the largest ``f`` (−1: undefined for so few rows). ``checks``: the rule
    is told ``f`` and refuses more; others can't know. No rule looks at weights.
    """

    name: str
    function: Callable[..., Tensor]
    condition: str
    max_byzantine: Callable[[int], int]

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the function's options, in order."""
        return _options(self.function)

    @property
    def checks(self) -> bool:
        """Whether the rule is told ``num_byzantine`` and refuses what it does not stand."""
        return "num_byzantine" in self.options


def _rule(function: Callable[..., Tensor], condition: str, most: Callable[[int], int]) -> Rule:
    return Rule(function.__name__, function, condition, most)


_MAJORITY = str(coordinates.MAJORITY)
_half = coordinates.MAJORITY.max_byzantine

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        _rule(coordinates.mean, "f = 0: one liar moves it anywhere", lambda n: 0),
        _rule(coordinates.coordinate_median, _MAJORITY, _half),
        _rule(coordinates.trimmed_mean, _MAJORITY, _half),
        _rule(selection.krum, str(selection.KRUM), selection.KRUM.max_byzantine),
        _rule(selection.multi_krum, str(selection.KRUM), selection.KRUM.max_byzantine),
        _rule(selection.bulyan, str(selection.BULYAN), selection.BULYAN.max_byzantine),
        _rule(centres.geometric_median, _MAJORITY, _half),
        _rule(centres.centered_clipping, f"{_MAJORITY} (the median start; C bounds a step)", _half),
        _rule(
            centres.norm_filter, f"{_MAJORITY}, and liars shorter than max_norm are averaged", _half
        ),
        _rule(trust.fltrust, "any f: trusts the server's root set instead", lambda n: n),
        _rule(trust.cluster_filter, f"{_MAJORITY}, and liars must point elsewhere", _half),
    )
}

MIXINGS: dict[str, Callable[..., Tensor]] = {
    "nearest_neighbour_mixing": mixing.nearest_neighbour_mixing,
    "bucketing": mixing.bucketing,
}


class RobustAggregate:
    """A rule as ``train`` calls it, ``aggregate(rows, weights) -> step``: see ``as_aggregate``.

    ``dropped`` has a list for each call: the indices of the rows left out since they held NaN or
    infinity. ``previous`` is the last step of centred clipping, from which it goes on (of other
    rules: None); ``reset()`` forgets both, between two trainings.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        options: dict[str, Any],
        mix: Callable[..., Tensor] | None,
        mix_options: dict[str, Any],
    ) -> None:
        self.function, self.options = function, options
        self.mix, self.mix_options = mix, mix_options
        self._follows = "start" in _options(function) and options.get("start") is None
        self.__name__ = _call(_called(function), options)
        if mix is not None:
            self.__name__ += f" after {_call(_called(mix), mix_options)}"
        self.reset()

    def reset(self) -> None:
        """Forget the previous step and what was dropped."""
        self.dropped: list[list[int]] = []
        self.previous: Tensor | None = None

    def __call__(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Screen, mix, apply the rule: ``[n, d], [n] -> [d]``. ``weights`` are not looked at.

        Raises ``ValueError`` as the rule does, and says then which rows had been left out.
        """
        left, dropped = screen(rows)
        self.dropped.append(dropped)
        try:
            step = self._apply(left)
        except ValueError as error:
            if not dropped:
                raise
            out = f"row(s) {dropped} of {len(rows)} are not finite and were left out"
            raise ValueError(f"{error} ({out})") from error
        self.previous = step.clone() if self._follows else None
        return step

    def _apply(self, rows: Tensor) -> Tensor:
        if self.mix is not None:
            rows = self.mix(rows, **self.mix_options)
        options = {name: _value(option) for name, option in self.options.items()}
        if self._follows:
            options["start"] = self.previous
        return self.function(rows, **options)

    def __repr__(self) -> str:
        return self.__name__


def as_aggregate(
    rule: str | Callable[..., Tensor],
    *,
    mix: str | Callable[..., Tensor] | None = None,
    **options: Any,
) -> RobustAggregate:
    """Make a rule the ``aggregate(rows, weights)`` of ``flcourse.fedavg.train``.

    ``rule`` is a name in ``RULES`` or any function ``[n, d] -> [d]``; ``mix`` a name in ``MIXINGS``
    or any function ``[n, d] -> [m, d]`` applied first. Each gets those of ``options`` that it has;
    ``num_byzantine`` may serve both. An option that is a function of nothing (``root_update``) is
    called in each round. Rows that are not finite are dropped first and listed in ``.dropped``.
    Centred clipping starts at the previous step (first, and after a resume: the median) unless
    ``start`` is given; use a new object, or ``reset()``, for a new training.

    **Weights are ignored**, also by ``mean``: a robust rule counts heads, since a number of samples
    is one more thing to lie about.

    Chapters 15 and 16. Raises ``ValueError`` for an unknown name or option, or one that is missing.
    """
    function = RULES[_known(rule, RULES, "rule")].function if isinstance(rule, str) else rule
    mixing = MIXINGS[_known(mix, MIXINGS, "mix")] if isinstance(mix, str) else mix
    given = _share(function, options)
    given_mix = {} if mixing is None else _share(mixing, options)
    if unknown := sorted(set(options) - set(given) - set(given_mix)):
        raise ValueError(f"{_called(function)} has no option {unknown}: {list(_options(function))}")
    for called, shared in ((function, given), (mixing, given_mix)):
        if called is not None and (missing := _missing(called, shared)):
            raise ValueError(f"{_called(called)} needs {missing}: give it to as_aggregate by name")
    return RobustAggregate(function, given, mixing, given_mix)


def _parameters(function: Callable[..., Tensor]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())[1:]


def _options(function: Callable[..., Tensor]) -> tuple[str, ...]:
    return tuple(p.name for p in _parameters(function) if p.kind is not p.VAR_KEYWORD)


def _share(function: Callable[..., Tensor], options: dict[str, Any]) -> dict[str, Any]:
    if any(p.kind is p.VAR_KEYWORD for p in _parameters(function)):
        return dict(options)
    return {name: options[name] for name in _options(function) if name in options}


def _missing(function: Callable[..., Tensor], options: dict[str, Any]) -> list[str]:
    return [
        p.name
        for p in _parameters(function)
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in options
    ]


def _known(name: str, names: dict[str, Any], what: str) -> str:
    if name not in names:
        raise ValueError(f"{what}={name!r} is unknown: use one of {', '.join(names)}")
    return name


def _value(option: Any) -> Any:
    return option() if callable(option) else option


def _called(function: Callable[..., Tensor]) -> str:
    return str(getattr(function, "__name__", repr(function)))


def _call(name: str, options: dict[str, Any]) -> str:
    shown = ", ".join(f"{key}={_shown(value)}" for key, value in options.items())
    return f"{name}({shown})" if shown else name


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor{list(value.shape)}"
    if isinstance(value, torch.Generator):
        return f"generator({value.initial_seed()})"
    return _called(value) if callable(value) else repr(value)

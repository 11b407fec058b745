"""Checks of chapter 11: composing by hand, a test for accountants, a repair, the noise added."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from flcourse.exercises._core import Wrong, as_tensor, exercise, expect_close
from flcourse.privacy import epsilon
from flcourse.privacy.composition import zcdp_epsilon
from flcourse.privacy.rdp import rdp
from flcourse.privacy.releases import Release
from flcourse.runtime import generator

Run = tuple[float, int, float, float]  # z, steps, delta, sample_rate
Account = Callable[[float, int, float, float], float]


@exercise(
    "11.1",
    title="compose by hand",
    hints=(
        "Each release costs ρ_t = 1 / 2z_t². What adds up is ρ, and only in the end it becomes ε.",
        "rho = sum(1 / (2 * z**2) for z in multipliers), then rho + 2·√(rho · ln(1/δ)).",
    ),
)
def compose(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 11.1")
    cases = [([3.0], 1e-5), ([10.0] * 20, 1e-5), ([3.09] * 20, 1e-5)]
    for _ in range(4):
        count = int(torch.randint(2, 9, (1,), generator=draw))
        multipliers = [round(z, 2) for z in (1 + 9 * torch.rand(count, generator=draw)).tolist()]
        cases.append((multipliers, 10 ** -float(torch.randint(4, 8, (1,), generator=draw))))
    for multipliers, delta in cases:
        z = torch.tensor(multipliers, dtype=torch.float64)
        rho, log = 0.5 * z.pow(-2).sum(), math.log(1 / delta)
        mistakes: dict[str, object] = {
            "You turn each release into an ε and add these. It is ρ that adds up; turn the sum of "
            "all ρ into ε once, in the end.": (0.5 / z**2 + 2 * (0.5 / z**2 * log).sqrt()).sum(),
            "The noise multiplier stands squared: ρ_t = 1 / 2z_t².": _to_epsilon(
                0.5 * z.pow(-1).sum(), log
            ),
            "A half is missing: ρ_t = 1 / 2z_t², not 1 / z_t².": _to_epsilon(2 * rho, log),
            "That is the cost of one release only, or of the mean: the ρ of all releases add "
            "up.": _to_epsilon(rho / len(z), log),
            "The logarithm is the natural one, math.log, not log10.": _to_epsilon(
                rho, math.log10(1 / delta)
            ),
            "The factor 2 before the root is missing: ε = ρ + 2√(ρ ln(1/δ)).": rho
            + (rho * log).sqrt(),
            "That is ρ alone. The step to (ε, δ) is missing: ε = ρ + 2√(ρ ln(1/δ)).": rho,
            "δ is spent once, in the end; do not divide it among the releases.": _to_epsilon(
                rho, log + math.log(len(z))
            ),
        }
        releases = [Release(z) for z in multipliers]
        exact = torch.tensor(zcdp_epsilon(releases, delta), dtype=torch.float64)
        got = as_tensor(answer(list(multipliers), delta), "the ε").reshape(-1)
        what = f"your ε for {len(z)} release(s) at δ = {delta:g}"
        if got.numel() != 1:
            raise Wrong(f"Return one ε for all releases together, not {got.numel()} values.")
        expect_close(got[0], exact, what, mistakes=mistakes)
    return "Two lines, any mixture of releases: this is the accountant behind the published table."


def _to_epsilon(rho: Tensor, log: float) -> Tensor:
    return rho + 2 * (rho * log).sqrt()


def one_order(z: float, steps: int, delta: float, sample_rate: float) -> float:
    """The accountant with the flaw: a single order, and ``q²`` for sampling."""
    order = 1 + 1 / z**2
    divergence = sample_rate**2 * steps * order / (2 * z**2)
    return divergence + math.log(1 / delta) / (order - 1)


def _fixed_delta(z: float, steps: int, delta: float, sample_rate: float) -> float:
    return epsilon(z, steps, 1e-4, sample_rate)


def _few_steps(z: float, steps: int, delta: float, sample_rate: float) -> float:
    return epsilon(z, min(steps, 10), delta, sample_rate)


def _limit(z: float, steps: int, delta: float, sample_rate: float) -> float:
    return epsilon(z, steps, delta, sample_rate, "gdp" if sample_rate == 1 else "clt")


def _renyi(z: float, steps: int, delta: float, sample_rate: float) -> float:
    return epsilon(z, steps, delta, sample_rate, "rdp")


def _not_a_number(z: float, steps: int, delta: float, sample_rate: float) -> float:
    return math.nan if sample_rate < 1 else epsilon(z, steps, delta)


LIARS: dict[str, Account] = {
    "the single order of this page": one_order,
    "the central limit, which understates once there is sampling": _limit,
    "one that stops counting after ten steps": _few_steps,
    "one that takes δ = 1e-4 whatever you ask": _fixed_delta,
    "one that answers NaN once there is sampling": _not_a_number,
}
HONEST: dict[str, Account] = {
    "Rényi's accountant": _renyi,
    "one that says three times the truth": lambda *run: 3 * epsilon(*run),
    "a still finer grid than ours, one part in ten thousand lower: `epsilon` is itself an upper "
    "bound, so allow a percent": (lambda *run: 0.9999 * epsilon(*run)),
}


@exercise(
    "11.2",
    title="catch an accountant that lies",
    hints=(
        "Which answers of an accountant are lies: those above the truth, or those below?",
        "Loop over noise, steps, δ and sampling rates, small and large; return the first run at "
        "which account(*run) is not at least 0.99 · epsilon(*run), and () after the loop.",
    ),
)
def catch(answer: Callable[..., Any]) -> str:
    for name, account in HONEST.items():
        if run := _run(answer(account)):
            said, true = account(*run), epsilon(*run)
            more = " Too much wastes noise but does not lie." if said > true else ""
            raise Wrong(
                f"You accuse an honest accountant ({name}) of a lie at {_written(run)}, where it "
                f"says {said:.4g} and `epsilon` says {true:.4g}.{more}"
            )
    for name, account in LIARS.items():
        run = _run(answer(account))
        if not run:
            raise Wrong(f"You let a liar pass: {name}. Which runs did you not ask about?")
        said, true = account(*run), epsilon(*run)
        if said >= 0.99 * true:
            raise Wrong(
                f"At {_written(run)} this accountant says {said:.4g}, the truth is {true:.4g}: "
                f"no lie. ({name[0].upper()}{name[1:]} lies elsewhere.)"
            )
    return f"{len(LIARS)} liars caught, {len(HONEST)} honest accountants left in peace."


def _written(run: Run) -> str:
    z, steps, delta, rate = run
    return f"z = {z:g}, T = {steps}, δ = {delta:g}, q = {rate:g}"


def _run(value: object) -> Run | None:
    if isinstance(value, (bool, int, float)):
        raise Wrong("Return the run (z, steps, delta, sample_rate) that shows the lie, or ().")
    if not isinstance(value, Iterable):
        raise Wrong(f"Return a run (z, steps, delta, sample_rate) or (), not {value!r}.")
    run = tuple(value)
    if not run:
        return None
    if len(run) != 4 or not all(isinstance(part, Real) for part in run):
        raise Wrong("Return one run: the four numbers (z, steps, delta, sample_rate), or ().")
    try:
        Release(run[0], int(run[1]), run[3])
    except ValueError as error:
        raise Wrong(f"This is no run: {error}") from error
    if not 0 < run[2] < 1:
        raise Wrong(f"This is no run: δ = {run[2]:g} must lie between 0 and 1.")
    return float(run[0]), int(run[1]), float(run[2]), float(run[3])


@exercise(
    "11.3",
    title="repair the accountant",
    hints=(
        "Every order gives a true bound, if its divergence is right: rdp_step from the page. "
        "You may try many orders and keep the least ε.",
        "min(steps * rdp_step(z, q, a) + ln(1/δ) / (a − 1) for a in range(2, 512)).",
    ),
)
def repair(answer: Callable[..., Any]) -> str:
    worst = 0.0
    for run in (
        (1.1, 1000, 1e-5, 0.01),
        (0.5, 1000, 1e-5, 0.01),
        (2.0, 50, 1e-6, 0.2),
        (0.8, 300, 1e-5, 0.05),
        (27.5, 50, 5e-6, 1.0),
        (10.0, 100, 1e-5, 0.5),
    ):
        value = as_tensor(answer(*run), "the ε")
        if value.numel() != 1:
            raise Wrong(f"Return one ε, the least over the orders, not {value.numel()} values.")
        _check_repaired(float(value), run)
        worst = max(worst, float(value) / _renyi(*run))
    return f"A bound everywhere, at most {worst:.2f} times what the search over all orders gives."


def _check_repaired(said: float, run: Run) -> None:
    z, steps, delta, q = run
    true, best = epsilon(*run), _renyi(*run)
    at, log = _written(run), math.log(1 / delta)
    if not math.isfinite(said):
        raise Wrong(f"At {at} you return {said}: large orders overflow; stay in logarithms.")
    if math.isclose(said, one_order(*run), rel_tol=1e-6):
        raise Wrong(f"At {at} you still take the single order 1 + 1/z² and q²: nothing changed.")
    scaled = min(
        q**2 * steps * order / (2 * z**2) + log / (order - 1)
        for order in [*range(2, 512), *(1 + k / 10 for k in range(1, 100))]
    )
    if said < 0.999 * true:
        reason = "Is that the right divergence?"
        orders = range(2, 512)
        single = min(rdp(Release(z, 1, q), a) + log / (a - 1) for a in orders)
        if said <= 1.01 * single:
            reason = "That is what one step costs: the divergences of all steps add up."
        elif math.isclose(said, scaled, rel_tol=0.01):
            reason = "q² times the divergence of everybody is no bound: use rdp_step."
        raise Wrong(f"At {at} you promise {said:.4g}, the truth is {true:.4g}: no bound. {reason}")
    if said > 1.35 * best:
        whole = min(steps * order / (2 * z**2) + log / (order - 1) for order in range(2, 512))
        hint = (
            "that is what the run costs without sampling: give rdp_step the rate q."
            if q < 1 and math.isclose(said, whole, rel_tol=0.05)
            else "try more orders, small ones and large ones (2 to 511 at least), keep the least."
        )
        raise Wrong(f"At {at} your bound is {said:.4g}, and {best:.4g} can be proved: {hint}")


@exercise(
    "11.4",
    title="the noise that was really added",
    hints=(
        "Ask for the noise on the *sum*, in standard deviations; the clip norm is the unit.",
        "Noise on the mean counts n times on the sum. Independent noises of n clients add up to "
        "√n times one of them.",
    ),
)
def really_added(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 11.4")
    for case in range(5):
        std, clip = (0.1 + 5 * torch.rand(2, generator=draw, dtype=torch.float64)).tolist()
        n = 1 if case == 4 else int(torch.randint(3, 200, (1,), generator=draw))
        truth = {"sum": std / clip, "mean": n * std / clip, "each": math.sqrt(n) * std / clip}
        for where, z in truth.items():
            got = as_tensor(answer(where, std, clip, n), "the multiplier")
            mistakes: dict[str, object] = {
                "You leave out the clip norm: z = σ/C.": z * clip,
                "You multiply by the clip norm: z = σ/C.": z * clip**2,
                "Here the noise stands on the sum already; the number of clients does not enter. "
                "Dividing it by n is the mistake of this section.": std / clip / n,
                "Noise on the mean is n times as much on the sum: z = n·std/C.": z / n,
                "n independent noises add up to √n times one of them, not n times.": n * std / clip,
                "Independent noises add up: with n clients there is √n times as much, not less."
                "": std / clip / math.sqrt(n),
                "Each of n clients adds noise: on the sum there is more than one client's.": std
                / clip,
            }
            order = {"sum": (0, 1, 2), "mean": (0, 1, 6, 3), "each": (0, 1, 4, 5, 6)}[where]
            chosen = {text: mistakes[text] for text in [list(mistakes)[k] for k in order]}
            if where == "mean":
                text = "Noise on the mean is n times as much on the sum: z = n·std/C."
                chosen = {k: v for k, v in chosen.items() if not k.startswith("Each")}
                chosen[text] = std / clip
            expect_close(
                got, torch.tensor(z, dtype=torch.float64), f'z for "{where}"', mistakes=chosen
            )
    return "The multiplier belongs to what is released. Now the ε that you quote is the run's own."

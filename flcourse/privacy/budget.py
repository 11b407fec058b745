"""A privacy budget that outlives the run: kept in a file, composed, and refused once it is spent.

    budget = Budget("privacy.json", epsilon=3.0, delta=1e-5)
    budget.spend(1.1, steps=500, sample_rate=0.01, what="first run")     # before training
    budget.remaining                                                     # what is left of ε = 3

Every experiment on the same people's data counts, also those that failed or were thrown away:
what is spent is written down before anything is released. Explained in chapter 11.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flcourse.privacy.accounting import Accountant
from flcourse.privacy.releases import Release, check_delta, check_epsilon

_VERSION = 1


class BudgetExceededError(RuntimeError):
    """A release was refused: with it, all releases together would cost more than the budget."""


class Budget:
    """``(ε, δ)`` for everything that is ever released about one data set, kept in a JSON file.

    The file is made if there is none. Each spending reads it, composes all releases by the
    accountant's ``method``, and replaces it in one step, under a lock, so two runs at once cannot
    spend the same ε twice. One file belongs to one data set and one unit of protection.

    Raises ``ValueError`` if the numbers are no budget, if the file was made with another ε, δ,
    unit or method (a budget is set once), or if it cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        epsilon: float,
        delta: float,
        *,
        unit: str = "client",
        method: str = "pld",
        patience: float = 30.0,
    ) -> None:
        check_epsilon(epsilon)
        check_delta(delta)
        if method == "clt":
            raise ValueError("method='clt' is an approximation, not a bound: use 'pld' or 'rdp'")
        self.path = Path(path)
        self.epsilon, self.delta, self.unit, self.method = epsilon, delta, unit, method
        self.patience = patience
        self._terms = {"epsilon": epsilon, "delta": delta, "unit": unit, "method": method}
        with self._locked():
            entries = self._read() if self.path.exists() else []
            _cost(entries, delta, method)  # refuses an unknown method before the first spending
            if not self.path.exists():
                self._write(entries)

    @property
    def releases(self) -> tuple[Release, ...]:
        """Everything that was spent so far, by any run, as the file has it now."""
        return tuple(release for release, _ in self._read())

    @property
    def spent(self) -> float:
        """The ε, at the budget's δ, of everything spent so far."""
        return _cost(self._read(), self.delta, self.method)

    @property
    def remaining(self) -> float:
        """``ε − spent``. More than this may fit: the ε of releases grow slower than their sum."""
        return max(self.epsilon - self.spent, 0.0)

    def spend(
        self,
        noise_multiplier: float,
        steps: int = 1,
        sample_rate: float = 1.0,
        sampling: str = "poisson",
        what: str = "",
    ) -> float:
        """Write ``steps`` noisy sums down and return the ε of all so far; call it before releasing.

        Raises `BudgetExceededError`, and writes nothing, if all together would exceed the budget;
        ``ValueError`` as `Release` and the accountant do; ``TimeoutError`` if another run holds the
        file for longer than ``patience`` seconds.
        """
        release = Release(noise_multiplier, steps, sample_rate, sampling)
        with self._locked():
            before = self._read()
            after = _joined(before, release, what)
            total = _cost(after, self.delta, self.method)
            if total > self.epsilon:
                spent = _cost(before, self.delta, self.method)
                raise BudgetExceededError(
                    f"{release} would bring ε from {spent:.4g} to {total:.4g} at "
                    f"δ = {self.delta:g}, above the budget of {self.epsilon:g} in {self.path}: "
                    "use more noise or fewer steps, or stop here"
                )
            self._write(after)
        return total

    def record(
        self,
        noise_multiplier: float,
        steps: int = 1,
        sample_rate: float = 1.0,
        sampling: str = "poisson",
    ) -> None:
        """`spend`, under the name that an `Accountant` has: training can be given a budget instead.

        The round that would overspend is stopped by `BudgetExceededError`.
        """
        self.spend(noise_multiplier, steps, sample_rate, sampling)

    def _read(self) -> list[tuple[Release, str]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            terms = {name: content[name] for name in self._terms}
            entries = [(Release(**entry["release"]), entry["what"]) for entry in content["spent"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is no budget that this version can read ({error}); restore it from a "
                "backup: a new file would forget what was spent"
            ) from error
        if terms != self._terms:
            raise ValueError(
                f"{self.path} holds a budget of {terms}, not {self._terms}: a budget is set once; "
                "open it with its own numbers"
            )
        return entries

    def _write(self, entries: list[tuple[Release, str]]) -> None:
        content: dict[str, Any] = {"version": _VERSION, **self._terms}
        content["spent"] = [{"release": asdict(one), "what": what} for one, what in entries]
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else spends meanwhile. A file that only one process can make is the lock."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + self.patience
        while True:
            try:
                os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                break
            except FileExistsError:
                if time.monotonic() > until:
                    raise TimeoutError(
                        f"{lock} was there for {self.patience:g} s: another run is spending, or "
                        "one was killed meanwhile; if none is running, delete that file"
                    ) from None
                time.sleep(0.02)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _joined(
    entries: list[tuple[Release, str]], release: Release, what: str
) -> list[tuple[Release, str]]:
    """One more release; steps of the same kind as the last ones are counted with them."""
    if entries and (replace(entries[-1][0], steps=release.steps), entries[-1][1]) == (
        release,
        what,
    ):
        steps = entries[-1][0].steps + release.steps
        return [*entries[:-1], (replace(release, steps=steps), what)]
    return [*entries, (release, what)]


def _cost(entries: list[tuple[Release, str]], delta: float, method: str) -> float:
    accountant = Accountant()
    for release, _ in entries:
        accountant.record(
            release.noise_multiplier, release.steps, release.sample_rate, release.sampling
        )
    return accountant.epsilon(delta, method)

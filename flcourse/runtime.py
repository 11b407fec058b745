"""Where the code runs and where its randomness comes from: device, profile, seeds, provenance.

Every random draw of the course is made on the CPU from ``generator(seed, purpose, ...)`` and then
moved, so a run on a GPU sees the same draws as a run on a CPU. Explained in chapter 01.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import operator
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

PROFILES = ("quick", "full")
_RECORDED_PACKAGES = ("torch", "torchvision", "numpy", "scikit-image", "matplotlib")


def device() -> torch.device:
    """The device to compute on: ``FLCOURSE_DEVICE`` if set, else CUDA, MPS or CPU as available.

    Raises ``ValueError`` if ``FLCOURSE_DEVICE`` names no known device, or one that is not here.
    """
    forced = os.environ.get("FLCOURSE_DEVICE")
    if forced:
        return _checked_device(forced)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _checked_device(name: str) -> torch.device:
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"FLCOURSE_DEVICE={name!r} is no device: use 'cpu', 'cuda', 'cuda:1' or 'mps', "
            "or unset it to choose automatically"
        ) from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if chosen.type not in ("cpu", *count):
        raise ValueError(f"FLCOURSE_DEVICE={name!r} is not supported: use 'cpu', 'cuda' or 'mps'")
    if chosen.type in count and (chosen.index or 0) >= count[chosen.type]:
        raise ValueError(
            f"FLCOURSE_DEVICE={name!r}, but this machine has {count[chosen.type]} such device(s); "
            "unset it, or use 'cpu'"
        )
    return chosen


def profile() -> str:
    """``"quick"`` (default: two CPU cores, embedded data) or ``"full"`` (``FLCOURSE_PROFILE``).

    Raises ``ValueError`` for any other value.
    """
    name = os.environ.get("FLCOURSE_PROFILE", "quick")
    if name not in PROFILES:
        raise ValueError(f"FLCOURSE_PROFILE={name!r} is unknown: use one of {', '.join(PROFILES)}")
    return name


def by_profile(*, quick: T, full: T) -> T:
    """The value for the current profile; both stand in the text, so a reader sees the two."""
    return quick if profile() == "quick" else full


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: the first bytes of SHA-256 over ``seed`` and ``purpose``.

    Streams of different purposes (or rounds, or clients) are unrelated, unlike ``seed + round``,
    where client 1 of round 2 would see the draws of client 2 of round 1.
    """
    parts = [part if isinstance(part, str) else operator.index(part) for part in (seed, *purpose)]
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``generator(0, "shuffle", round, client)``."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Run a block (building a model, dropout) under its own seed; the global state is restored.

    Holds for the CPU and, where ``device()`` is a CUDA device, for that device.
    """
    chosen = device()
    cuda = [chosen.index or 0] if chosen.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        number = derive_seed(seed, *purpose)
        torch.default_generator.manual_seed(number)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(number)
        yield


def finite_json(value: object) -> object:
    """``value`` with infinities and NaN replaced by texts ("inf", "nan"): JSON knows neither."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def provenance() -> dict[str, object]:
    """What a stored number needs beside it: versions, device, threads, profile, commit, date."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _RECORDED_PACKAGES},
        "device": _device_name(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "profile": profile(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device_name() -> str:
    chosen = device()
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type


def _commit() -> str:
    """The commit of this file's repository; "unknown" where the file is not in one (a wheel)."""
    here = Path(__file__)
    tracked = _git("ls-files", "--error-unmatch", here.name, folder=here.parent)
    if tracked is None:  # an environment inside some other repository must not lend us its commit
        return "unknown"
    return _git("describe", "--always", "--dirty", "--abbrev=12", folder=here.parent) or "unknown"


def _git(*words: str, folder: Path) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def progress(items: Iterable[T], label: str, *, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar; silent where ``FLCOURSE_PROGRESS=0`` (as in the built book)."""
    from tqdm.auto import tqdm  # imported here: a plain run of a module needs no progress bar

    silent = True if os.environ.get("FLCOURSE_PROGRESS") == "0" else None
    if "ipykernel" in sys.modules and silent is None:
        silent = False  # a notebook's stderr is no terminal, yet the bar is wanted there
    yield from tqdm(items, desc=label, total=total, leave=False, disable=silent)

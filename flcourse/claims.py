"""Sentences that are recomputed at each build, and results too slow for a page.

``claim`` prints a sentence with its numbers and raises where it does not hold, so a page that says
something untrue cannot be built. ``stored`` loads what a ``data_scripts/make_*.py`` has measured.
"""

from __future__ import annotations

import base64
import datetime
import html
import io
import json
import math
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import display

from flcourse.runtime import finite_json, profile, provenance

CLAIM_MIME = "application/vnd.flcourse.claim+json"
RESULTS = Path(__file__).parent / "assets" / "results"
# A stored result travels in the wheel: curves, tables and thumbnails fit, models do not.
MAX_STORED_BYTES = 200_000


class ClaimError(AssertionError):
    """A sentence of the course does not hold for the numbers that were just computed."""


@dataclass(frozen=True)
class Claim:
    """A sentence that was checked, with the values in it; shown by ``claim`` and kept for tests."""

    sentence: str
    values: dict[str, Any]
    profile: str

    def __str__(self) -> str:
        return f"✓ {self.sentence}"

    __repr__ = __str__

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        values = finite_json(self.values)  # JSON has no infinity, and ε can be one
        data = {"sentence": self.sentence, "values": values, "profile": self.profile}
        return {"text/html": self._html(), "text/plain": str(self), CLAIM_MIME: data}

    def _html(self) -> str:
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(self.sentence))
        # Inline style carries Colab and JupyterLab; the book's style sheet refines the classes.
        return (
            '<div class="flc-claim" style="border-left:4px solid currentColor;padding:.35em .8em">'
            '<span class="flc-claim-mark" aria-hidden="true">✓</span> '
            f"<span>{text}</span></div>"
        )


def claim(sentence: str, holds: object, /, **values: object) -> None:
    """Show ``sentence`` with ``values`` filled in and a check mark; raise where it does not hold.

    ``claim("Recovered at {psnr:.1f} dB", psnr > 25, psnr=psnr)``. The data travel beside the text
    as ``application/vnd.flcourse.claim+json``, from which strip and status page are made.

    Raises ``ClaimError`` if ``holds`` is false or a value is NaN, ``ValueError`` if the sentence
    names a value that was not given, ``TypeError`` if ``holds`` is not one truth value or a value
    cannot be written as JSON.
    """
    plain = {name: to_json(value, name) for name, value in values.items()}
    text = _filled(sentence, plain)
    if nan := [name for name, value in plain.items() if _has_nan(value)]:
        raise ClaimError(f"{', '.join(nan)} is not a number (NaN), so nothing follows: {text!r}")
    if not _truth(holds):
        given = ", ".join(f"{name}={value!r}" for name, value in plain.items())
        raise ClaimError(
            f"this does not hold: {text!r} (profile {profile()}; {given or 'no values given'}). "
            "Mend the code or the sentence; do not widen the bound without measuring over seeds."
        )
    display(Claim(text, plain, profile()))


def _filled(sentence: str, values: Mapping[str, object]) -> str:
    """``sentence`` with its fields filled in; every field must be a name among ``values``."""
    fields = [name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None]
    names = [field.split("[")[0].split(".")[0] for field in fields]
    if missing := sorted({name for name in names if name not in values}):
        raise ValueError(
            f"the sentence names {', '.join(repr(name) for name in missing)}, which is not given: "
            f"pass it, as in claim(..., {missing[0] or 'name'}={missing[0] or 'value'}); "
            f"given were {sorted(values)}"
        )
    return sentence.format(**values)


def _truth(holds: object) -> bool:
    if isinstance(holds, (torch.Tensor, np.ndarray)) and holds.shape == ():
        holds = holds.item()
    if isinstance(holds, (bool, np.bool_)):
        return bool(holds)
    kind = type(holds).__name__
    shape = f" of shape {list(holds.shape)}" if hasattr(holds, "shape") else ""
    raise TypeError(f"`holds` must be one truth value, got {kind}{shape}: compare, then use .all()")


def to_json(value: object, name: str = "value") -> Any:
    """``value`` in JSON's own types: tensors, arrays and their scalars become numbers and lists.

    Raises ``TypeError``, naming the value, for what JSON cannot hold.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}: give a number, a text, or a list of them")


def _has_nan(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(_has_nan(item) for item in value)
    return isinstance(value, float) and math.isnan(value)


@dataclass(frozen=True, eq=False)
class Stored(Mapping[str, Any]):
    """A result that a script measured: ``result["accuracy"]`` reads from ``result.data``."""

    name: str
    data: dict[str, Any]
    config: dict[str, Any]
    seeds: list[int]
    made_on: str
    provenance: dict[str, Any]
    sheet: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        try:
            return self.data[key]
        except KeyError:
            raise KeyError(f"{self.name!r} holds no {key!r}, but {sorted(self.data)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def pictures(self) -> dict[str, torch.Tensor]:
        """Stored thumbnails by name, each ``[3, h, w]`` in [0, 1]; JPEG, so right to about 1 %."""
        return _from_sheet(self.sheet) if self.sheet else {}

    @property
    def note(self) -> str:
        """A sentence for a caption: "Stored, made on 21 November 2026 on the CPU, 5 seeds."."""
        day = datetime.date.fromisoformat(self.made_on)
        date = f"{day.day} {day:%B %Y}"
        device = self.provenance.get("device", "unknown device")
        place = {"cpu": "CPU", "mps": "Apple GPU"}.get(device, device)
        seeds = f"{len(self.seeds)} seed{'' if len(self.seeds) == 1 else 's'}"
        return f"Stored, made on {date} on the {place}, {seeds}."


def stored(name: str) -> Stored:
    """Load a stored result by name.

    Raises ``FileNotFoundError`` listing the stored results if there is none of that name.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        there = sorted(found.stem for found in RESULTS.glob("*.json"))
        raise FileNotFoundError(
            f"no stored result {name!r} in {RESULTS}: there are {there or 'none'}; "
            f"data_scripts/make_{name}.py makes it, if the course has that script"
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    return Stored(
        name=name, data=record["results"], config=record["config"], seeds=record["seeds"],
        made_on=record["provenance"]["date"], provenance=record["provenance"],
        sheet=record.get("pictures", {}),
    )  # fmt: skip


def save_stored(
    name: str,
    *,
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    pictures: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write ``results`` to ``flcourse/assets/results/NAME.json`` with all that explains them.

    ``config`` must say which seeds were run: ``{"seeds": [0, 1, 2], ...}`` or ``{"seed": 0, ...}``.
    ``pictures`` are thumbnails by name, ``[3, h, w]`` in [0, 1], all of one size, kept as one JPEG.
    Raises ``ValueError`` without seeds, for a NaN, or above ``MAX_STORED_BYTES``.
    """
    seeds = config.get("seeds", [config["seed"]] if "seed" in config else None)
    if not seeds:
        raise ValueError("config must name the seeds: config={'seeds': [0, 1, 2], ...}")
    record = {
        "name": name,
        "config": to_json(config, "config"),
        "seeds": [int(seed) for seed in seeds],
        "provenance": provenance(),
        "results": _rounded(to_json(results, "results")),
    }
    if _has_nan(record["results"]):
        raise ValueError(f"results of {name!r} hold a NaN: store what happened instead, as a text")
    if pictures:
        record["pictures"] = _to_sheet(pictures)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    if (size := len(text.encode())) > MAX_STORED_BYTES:
        raise ValueError(
            f"{name!r} would take {size:,} bytes of the wheel, the limit is {MAX_STORED_BYTES:,}: "
            "keep curves and tables, leave out models and most pictures"
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(text, encoding="utf-8")
    return path


def _to_sheet(pictures: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Thumbnails side by side in one JPEG (no chroma subsampling), as base64."""
    from PIL import Image

    row = torch.cat([picture.detach().cpu().clamp(0, 1) for picture in pictures.values()], dim=2)
    levels = (row * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    raw = io.BytesIO()
    Image.fromarray(levels).save(raw, "JPEG", quality=88, subsampling=0, optimize=True)
    return {"names": list(pictures), "jpeg": base64.b64encode(raw.getvalue()).decode("ascii")}


def _from_sheet(sheet: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    from PIL import Image

    levels = np.array(Image.open(io.BytesIO(base64.b64decode(sheet["jpeg"]))).convert("RGB"))
    row = torch.from_numpy(levels).permute(2, 0, 1).float() / 255
    each = row.chunk(len(sheet["names"]), dim=2)
    return dict(zip(sheet["names"], each, strict=True))


def _rounded(value: Any) -> Any:
    """Six significant digits: float32 results hold no more, and the file stays small."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value

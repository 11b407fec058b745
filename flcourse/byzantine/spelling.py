"""Attacks and rules as text, ``alie:z=1.5``: how the command line and stored results name them.

Chapter 16.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

# What a text may give for an option that is annotated so.
_WRITTEN: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``"alie:z=1.5"`` -> ``("alie", {"z": 1.5})``; a value is a number, or else a word.

    Raises ``ValueError`` for a part that is no ``option=value``.
    """
    name, _, rest = text.partition(":")
    options = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ValueError(f"{text!r}: {part!r} is no option=value, as in sign_flip:scale=5")
        options[key] = _value(value)
    return name, options


def check_types(function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse a value that is not what the option is annotated as, such as a word for a float.

    Raises ``ValueError``; also for an option that no text can give, a tensor or a generator.
    """
    for key, parameter in inspect.signature(function).parameters.items():
        if key not in options:
            continue
        wanted = [part for part in str(parameter.annotation).split(" | ") if part in _WRITTEN]
        value = options[key]
        if isinstance(value, bool) or not any(isinstance(value, _WRITTEN[one]) for one in wanted):
            use = f"give {' or '.join(wanted)}" if wanted else "a text cannot give it"
            raise ValueError(f"{function.__name__}: {key}={value!r} will not do, {use}")


def _value(text: str) -> Any:
    try:
        return float(text) if text.lower() in ("nan", "inf", "-inf") else json.loads(text)
    except json.JSONDecodeError:
        return text

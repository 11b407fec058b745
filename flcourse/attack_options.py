"""The options of `python -m flcourse attack`: names, defaults, help, and which exclude each other.

Nothing here imports torch, so that help appears at once; a test compares the lists of names with
those of the attacks themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from flcourse.runs import (
    ENCRYPTION,
    MOMENTUM,
    NOT_NEGATIVE,
    POSITIVE,
    PRIVACY,
    SHARE,
    Option,
    Refused,
    batch_size,
    name_in,
    privacy_without_effect,
    whole,
)

MODELS = ("lenet", "simple-cnn", "light-cnn", "mlp", "logistic")
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky-relu", "elu", "silu", "softplus")
SIGNALS, MODES = ("gradient", "step", "update"), ("per-client", "aggregated", "both")
METHODS = ("auto", "peel", "match", "divide", "exact", "features")
DEFENCES = ("clip-to-1", "noise-1e-3", "noise-1e-2", "noise-3e-2", "noise-1e-1", "keep-10",
            "keep-1", "8-bits", "4-bits", "sign")  # fmt: skip
PLAIN = ("none", "clip", "dp", "he", "prune", "quantise", "sign")  # as in `train`
PRESETS = ("zhu2019", "zhao2020", "geiping2020")
LABELS = ("inferred", "known", "optimise")
YES_NO = ("yes", "no")


# ------------------------------------------------------------------------------ converters


def numbers(text: str) -> list[int]:
    """`3,5,8` or `4-7`: a list of whole numbers from 0, none twice for ranges."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        found = []
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 3,5,8 or 4-7")
    return found


def client(text: str) -> int | str:
    """The number of a client from 0, or `all`."""
    return text if text == "all" else whole(0)(text)


def words(text: str) -> list[str]:
    """`0,2`: names of layers."""
    return [part for part in text.split(",") if part]


def model_name(text: str) -> str:
    """A model, with or without its hyphens: `simplecnn` is `simple-cnn`."""
    plain = {name.replace("-", ""): name for name in MODELS}
    return name_in(MODELS)(plain.get(text.lower().replace("-", ""), text))


ON = bool  # marks a switch: an option without a value

GROUPS: dict[str, tuple[Option, ...]] = {
    "the private pictures": (
        Option("data", str, "photos", "NAME", "a data set of pictures, as in `data`"),
        Option("split", name_in(("train", "test")), "train", "PART", "train, test"),
        Option("samples", whole(1), 1, "N", "pictures of each client: the first ones"),
        Option("indices", numbers, None, "LIST", "these pictures instead, e.g. 3,5 or 4-7"),
        Option("picture", str, None, "FILE", "your own picture files, instead of the data set's"),
        Option("label", numbers, None, "LIST", "their classes (default: the data's; 0 for yours)"),
        Option("image-size", whole(1), None, "PIXELS", "for --picture, photos (default: 32)"),
    ),
    "the model": (
        Option("model", model_name, "lenet", "NAME", ", ".join(MODELS)),
        Option("activation", name_in(ACTIVATIONS), None, "NAME",
               f"{', '.join(ACTIVATIONS)} (default: the model's own)"),
        Option("init-scale", POSITIVE, None, "S",
               "weights uniform in ±S (default: as the model has it; lenet: 0.5)"),
        Option("hidden", whole(1), None, "N", "mlp: neurons of its hidden layer (default: 64)"),
        Option("classes", whole(1), None, "N", "outputs (default: the classes of the data set)"),
        Option("normalize", ON, False, "", "the model's first layer normalises each channel"),
        Option("trained", whole(0), 0, "EPOCHS", "first train on the other pictures"),
    ),
    "what the attacker sees": (
        Option("signal", name_in(SIGNALS), "gradient", "WHAT",
               "gradient; step (one of SGD on all samples); update (of FedAvg)"),
        Option("clients", whole(1), 1, "N", "how many clients take part"),
        Option("mode", name_in(MODES), "per-client", "HOW", "per-client, aggregated, both"),
        Option("client", client, 0, "C", "per-client: which one is attacked, or all"),
        Option("round", whole(1), 1, "R", "listen in this round, after R - 1 rounds of training"),
        Option("epochs", whole(1), 1, "E", "update: local passes"),
        Option("batch-size", batch_size, None, "B", "update: samples a step (default: all)"),
        Option("lr", POSITIVE, 0.01, "RATE", "the clients' learning rate"),
        Option("momentum", MOMENTUM, 0.0, "M", "update: the clients' momentum"),
        Option("normalize-clients", ON, False, "",
               "aggregated: each message is scaled to length one first"),
        Option("apply-step", ON, False, "",
               "aggregated: the attacker is a client, who sees the model before and after"),
        Option("server-lr", POSITIVE, 1.0, "RATE", "apply-step: the server's learning rate"),
    ),
    "a defence (each client's, in the observed round)": (
        Option("defence", name_in((*PLAIN[:-1], *DEFENCES)), "none", "NAME",
               f"{', '.join(PLAIN)} (dp: clipped and noisy before it is sent; he: encrypted), "
               f"or ready-made: {', '.join(DEFENCES[:-1])}", also="defense"),
        *PRIVACY,
        *ENCRYPTION,
        Option("clip", POSITIVE, None, "C", "or step by step: scale to length C at most;"),
        Option("noise", POSITIVE, None, "STD", "add noise of this deviation to each value;"),
        Option("prune", SHARE, None, "KEEP",
               "send only this share, the largest (with --defence prune: 0.1);"),
        Option("quantise", whole(2), None, "BITS",
               "round to 2 to 16 bits a value (with --defence quantise: 8);"),
        Option("sign", ON, False, "", "send only signs (in this order)"),
    ),
    "the attack": (
        Option("method", name_in(METHODS), "auto", "NAME",
               "auto (what `explain` recommends), peel, match, divide, exact, features"),
        Option("labels", name_in(LABELS), "inferred", "HOW",
               "inferred from the message, known, optimise (with the picture, as DLG does)"),
        Option("seed", int, 0, "S", "of the model, the clients' batches, the defence, the starts"),
    ),
}  # fmt: skip
DISTANCES = ("squared", "relative", "cosine", "map")
SUPPORTS, BASES = ("auto", "all", "kept"), ("pixels", "dct")
STARTS = ("auto", "exact", "grey", "normal", "uniform", "fourier")
OPTIMISERS = ("lbfgs", "adam", "signed-adam", "adamw", "sgd")
SCHEDULES, KEEPS = ("none", "cosine", "steps"), ("best", "last")


def either(pair: tuple[str, ...]) -> Callable[[str], bool]:
    """A converter of `yes` and `no`."""
    return lambda text: name_in(pair)(text) == pair[0]


def weights(text: str) -> str | list[float]:
    """`equal`, or one number a parameter tensor."""
    return text if text == "equal" else [POSITIVE(part) for part in text.split(",")]


# Options of match_gradients by its own names: given with --method auto, they choose match. One that
# is not given is left to match_gradients (and to the preset).
MATCH: dict[str, Option] = {
    "preset": Option("preset", name_in(PRESETS), None, "NAME",
                     f"as published: {', '.join(PRESETS)}; options beside it win"),
    "restarts": Option("restarts", whole(1), None, "N", "starts, run as one batch (default: 1)"),
    "distance": Option("distance", name_in(DISTANCES), None, "NAME", ", ".join(DISTANCES)),
    "layers": Option("layers", words, None, "LIST", "match only these, e.g. 0,2 or 0.weight"),
    "layer_weights": Option("layer-weights", weights, None, "LIST",
                            "one number for each matched tensor, or 'equal'"),
    "support": Option("support", name_in(SUPPORTS), None, "WHAT",
                      "all values, or only those kept by pruning (default: auto)"),
    "tv": Option("tv", NOT_NEGATIVE, None, "WEIGHT", "of the total variation"),
    "prior": Option("prior", NOT_NEGATIVE, None, "WEIGHT", "of ½‖unknown‖²"),
    "unroll": Option("unroll", either(YES_NO), None, "YES|NO", "compute local steps one by one"),
    "basis": Option("basis", name_in(BASES), None, "NAME", f"unknowns: {', '.join(BASES)}"),
    "start": Option("start", name_in(STARTS), None, "NAME", ", ".join(STARTS)),
    "start_scale": Option("start-scale", NOT_NEGATIVE, None, "S", "of the random part"),
    "optimiser": Option("optimiser", name_in(OPTIMISERS), None, "NAME", ", ".join(OPTIMISERS)),
    "line_search": Option("line-search", either(YES_NO), None, "YES|NO", "lbfgs: strong Wolfe"),
    "history": Option("history", whole(1), None, "N", "lbfgs: pairs of steps kept"),
    "steps": Option("steps", whole(1), None, "N", "evaluations of each start"),
    "lr": Option("attack-lr", POSITIVE, None, "RATE", "the attack's own step size"),
    "momentum": Option("attack-momentum", MOMENTUM, None, "M", "sgd: momentum"),
    "schedule": Option("schedule", name_in(SCHEDULES), None, "NAME", ", ".join(SCHEDULES)),
    "patience": Option("patience", whole(1), None, "N", "stop after N evaluations without gain"),
    "tolerance": Option("tolerance", NOT_NEGATIVE, None, "PART", "patience: a relative gain"),
    "clamp": Option("clamp", either(YES_NO), None, "YES|NO", "put pixels back into [0, 1]"),
    "keep": Option("keep", name_in(KEEPS), None, "POINT", "answer with the best or the last point"),
    "candidates": Option("candidates", whole(1), None, "N", "labels tried where uncertain"),
}  # fmt: skip
GROUPS["gradient matching (an option of these means --method match)"] = tuple(MATCH.values())
OPTIONS = {option.name: option for options in GROUPS.values() for option in options}
ATTACK = ("method", "labels", "seed", *(option.name for option in MATCH.values()))
SCENE = tuple(name for name in OPTIONS if name not in ATTACK)


# --------------------------------------------------------------------------- the settings


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The complete configuration: what was given, and defaults for the rest.

    Raises:
        Refused: for options that contradict each other, or would do nothing.
    """
    settings = {name: given.get(name, option.default) for name, option in OPTIONS.items()}
    wants_sum = [name for name in ("apply_step", "normalize_clients") if settings[name]]
    if wants_sum and "mode" not in given:
        settings["mode"] = "aggregated"
    for name, reason in _without_effect(settings, wants_sum):
        if name in given:
            raise Refused(f"--{OPTIONS[name].flag} does nothing {reason}")
    if settings["apply_step"] and settings["signal"] == "gradient":
        raise Refused("--apply-step with gradients is a step: use --signal step or update")
    count = len(settings["indices"] or settings["picture"] or ())
    if count % settings["num_clients"]:
        raise Refused(
            f"{count} pictures for --clients {settings['num_clients']}: give as many to each client"
        )
    settings["samples"] = count // settings["num_clients"] or settings["samples"]
    if settings["client"] != "all" and settings["client"] >= settings["num_clients"]:
        raise Refused(
            f"--client {settings['client']} of --clients {settings['num_clients']}: "
            "they count from 0"
        )
    return settings


def repeated(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of ``--repeat``: the stored scene; another method starts from defaults.

    Raises:
        Refused: for an option of the scene, which is stored, or one that would do nothing.
    """
    for name in SCENE:
        if name in given:
            raise Refused(
                f"--{OPTIONS[name].flag} does nothing with --repeat, which reads a stored message"
            )
    settings = {name: option.default for name, option in OPTIONS.items()} | dict(stored)
    settings["defence"] = settings["defence"] or "none"  # as older runs have it
    if given.get("method", stored["method"]) != stored["method"]:
        settings |= {name: OPTIONS[name].default for name in ATTACK if name != "seed"}
    settings |= given
    for name, reason in _without_effect(settings, []):
        if name in given:
            raise Refused(f"--{OPTIONS[name].flag} does nothing {reason}")
    return settings


def _without_effect(settings: Mapping[str, Any], wants_sum: list[str]) -> list[tuple[str, str]]:
    """Options that these settings never read, with the reason and a remedy."""
    found: list[tuple[str, str]] = []
    if settings["signal"] != "update":
        reason = f"with --signal {settings['signal']}: leave it out, or use --signal update"
        found += [(name, reason) for name in ("epochs", "batch_size", "momentum")]
    if settings["signal"] == "gradient" and settings["round"] == 1:
        found.append(("lr", "for a gradient in round 1: leave it out, or use --signal step"))
    if settings["mode"] == "aggregated":
        found.append(("client", "with --mode aggregated: leave it out, or use --mode both"))
    if settings["mode"] == "per-client":
        reason = "with --mode per-client: use --mode aggregated or both"
        found += [(name, reason) for name in wants_sum]
    if not settings["apply_step"]:
        found.append(("server_lr", "without --apply-step: add it, or leave this out"))
    for source in ("indices", "picture"):
        if settings[source] is not None:
            found.append(("samples", f"with --{source}, which says how many: leave it out"))
    if settings["picture"] is not None:
        found.append(("indices", "with --picture: leave one of them out"))
    if settings["model"] != "mlp":
        found.append(("hidden", f"with --model {settings['model']}: use --model mlp"))
    if settings["defence"] != "none":
        reason = "with --defence: name one of its own, or its steps"
        steps = ("clip", "noise", "prune", "quantise", "sign")
        own = settings["defence"] if settings["defence"] in ("prune", "quantise") else None
        found += [(name, reason) for name in steps if name != own]
    found += privacy_without_effect(settings)
    if settings["method"] in ("divide", "exact"):
        found.append(("labels", f"with --method {settings['method']}: leave it out"))
    if settings["method"] not in ("auto", "match"):
        reason = f"with --method {settings['method']}: leave it out, or use --method match"
        found += [(option.name, reason) for option in MATCH.values()]
    return found

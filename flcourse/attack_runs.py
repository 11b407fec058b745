"""One attack in a folder of its own: `python -m flcourse attack …` (chapters 03 to 06).

    config.json          the complete configuration
    metrics.json         scores, floors, labels, provenance
    reconstruction.png   the original beside what came back, with the error map
    loss.csv, loss.png   the attacker's loss at each evaluation, and the PSNR
    emerging.gif         the picture emerging (methods that search)
    layers.png           how exactly each layer was solved (the closed form)
    leak.pt, model.pt    all that the attack was given: `attack --repeat FOLDER` needs no picture
    recovery.pt          what it found

Where several messages are attacked, each has its own folder inside, and metrics.json all numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flcourse.attack_options import GROUPS, MATCH, ON, OPTIONS, repeated, settings_of
from flcourse.runs import Option, Refused

if TYPE_CHECKING:  # torch takes seconds to import: `attack --help` does without
    from torch import Tensor, nn

    from flcourse.attacks.scene import Scene, Target
    from flcourse.attacks.types import Leak, Recovery

CONFIG, MODEL = "config.json", "model.pt"
SNAPSHOTS = 16  # of a search: the frames of emerging.gif


# ---------------------------------------------------------------------------- the parser


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `attack` to the course's command line."""
    parser = subparsers.add_parser(
        "attack",
        help="recover private pictures from what a client sends",
        description="Recover private pictures from what a client of federated learning sends. The "
        "attack is\ngiven the message and the model, never a picture. Writes into the folder OUT:\n"
        "  config.json          the complete configuration\n"
        "  metrics.json         scores, floors, labels, provenance\n"
        "  reconstruction.png   the original beside what came back, with the error map\n"
        "  loss.csv, loss.png   the attacker's loss, and the PSNR\n"
        "  emerging.gif         the picture emerging (methods that search)\n"
        "  layers.png           how exactly each layer was solved (the closed form)\n"
        "  leak.pt, model.pt    all that the attack was given, for --repeat\n"
        "  recovery.pt          what it found",
        epilog="examples:\n"
        "  python -m flcourse attack                                one picture, one gradient\n"
        "  python -m flcourse attack --picture me.jpg --method match --image-size 64\n"
        "  python -m flcourse attack --signal update --epochs 5 --samples 2 --batch-size 1\n"
        "  python -m flcourse attack --clients 4 --mode both --model mlp\n"
        "  python -m flcourse attack --model simple-cnn --defence noise-1e-3\n"
        "  python -m flcourse attack --defence dp --epsilon 4 --method match\n"
        "  python -m flcourse attack --defence he --key-bits 2048 --precision 16\n"
        "  python -m flcourse attack --preset zhu2019 --seed 2 --out runs/dlg\n"
        "  python -m flcourse attack --repeat runs/dlg --method peel --out runs/again\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m flcourse attack [OPTION ...]",
        allow_abbrev=False,
    )
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            _add(group, option)
    group = parser.add_argument_group("the folder")
    group.add_argument("--out", type=Path, help="default: runs/attack-DATA-MODEL-SIGNAL-sSEED")
    group.add_argument(
        "--repeat", type=Path, metavar="FOLDER",
        help="attack what this folder holds again, without the pictures; takes attack options only",
    )  # fmt: skip
    group.add_argument("--root", type=Path, help="folder of data sets (default: FLCOURSE_DATA)")
    group.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run, parser=parser)


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    # SUPPRESS: an option that is not given stays absent, so that one without effect is noticed.
    shared: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS}
    if option.convert is ON:
        group.add_argument(*option.spellings, action="store_true", help=option.help, **shared)
        return
    default = "" if option.default is None else f" (default {option.default})"
    if option.name == "picture":
        shared["nargs"] = "+"
    group.add_argument(
        *option.spellings, type=option.convert, metavar=option.metavar,
        help=option.help + default, **shared,
    )  # fmt: skip


# ---------------------------------------------------------------------------- the command


def run(args: argparse.Namespace) -> int:
    """Carry out the command; 0 when everything is written."""
    given = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
    try:
        settings, scene = _prepare(args, given)
        folder = args.out or Path("runs") / _folder_name(settings, args.repeat)
        if (folder / CONFIG).exists() and not args.overwrite:
            raise Refused(f"{folder} holds an attack: choose another --out, or use --overwrite")
        if args.repeat is not None and folder.resolve() == args.repeat.resolve():
            raise Refused(f"--out {folder} is what --repeat reads: choose another --out")
    except ValueError as error:
        args.parser.error(str(error))
    except OSError as error:  # a picture or a data set is missing or damaged
        return _failed(args, error)
    try:
        _attack_all(folder, settings, scene, quiet=args.quiet)
    except ValueError as error:  # the attack does not fit the model or the message
        args.parser.error(str(error))
    except (OSError, RuntimeError) as error:  # OUT cannot be written, memory is short
        return _failed(args, error)
    return 0


def _failed(args: argparse.Namespace, error: Exception) -> int:
    print(f"{args.parser.prog}: {error}", file=sys.stderr)
    return 1


def _folder_name(settings: Mapping[str, Any], repeat: Path | None) -> str:
    if repeat is not None:
        return f"{repeat.name}-again"
    data = "own" if settings["picture"] else settings["data"]
    return f"attack-{data}-{settings['model']}-{settings['signal']}-s{settings['seed']}"


def _prepare(args: argparse.Namespace, given: Mapping[str, Any]) -> tuple[dict[str, Any], Scene]:
    from flcourse.attacks import scene

    if args.repeat is None:
        settings = complete(given)
        return settings, scene.make_scene(settings, args.root)
    path = args.repeat / CONFIG
    if not path.is_file():
        raise Refused(f"--repeat {args.repeat} holds no attack: {path} is missing")
    stored = json.loads(path.read_text(encoding="utf-8"))
    settings = repeated(stored["settings"], given)
    return settings, scene.load_scene(args.repeat, stored["known_labels"])


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the defence spelt out as the steps that it is made of.

    A message is one release in which its client takes part for sure: that is the ε of ``dp``.
    """
    from flcourse.private_runs import BITS, KEEP, resolved, spent

    settings = resolved(settings_of(given), steps=1, rate=1.0)
    clip_norm, z = settings["clip_norm"], settings["noise_multiplier"]
    steps: dict[str, dict[str, Any]] = {
        "clip": {"clip": clip_norm},
        "dp": {"clip": clip_norm, "noise": clip_norm and z and clip_norm * z},
        "he": {"clip": clip_norm},
        "prune": {"prune": settings["prune"] or KEEP},
        "quantise": {"quantise": settings["quantise"] or BITS},
    }
    return settings | steps.get(settings["defence"], {}) | spent(settings, steps=1, rate=1.0)


def _attack_all(folder: Path, settings: dict[str, Any], scene: Scene, *, quiet: bool) -> None:
    """Attack every message, then write: an attack that refuses leaves no folder behind."""
    from flcourse.attacks import report
    from flcourse.attacks.scene import save_model
    from flcourse.private_runs import encryption, sentence

    known = {target.name: _known(target, settings) for target in scene.targets}
    found = [attack(scene.model, t.leak, settings, known[t.name]) for t in scene.targets]
    folder.mkdir(parents=True, exist_ok=True)
    report.clear(folder)
    save_model(folder / MODEL, scene)
    labels = {name: None if v is None else v.tolist() for name, v in known.items()}
    config = {"settings": settings, "classes": scene.classes, "known_labels": labels}
    report.save_json(folder / CONFIG, config)
    every = {}
    for target, recovery in zip(scene.targets, found, strict=True):
        own = folder if len(scene.targets) == 1 else folder / target.name
        numbers = report.write(own, scene.model, target.leak, recovery, target.truth, scene.classes)
        if not quiet:
            print(report.sentence(target.name, numbers))
        every[target.name] = numbers
    if len(every) > 1:
        report.save_json(folder / report.METRICS, every)
    if not quiet:
        if settings["defence"] == "dp":
            print(sentence(settings, "client", "whoever sees its message, this once"))
        if settings["defence"] == "he":
            print(encryption(settings))
        print(f"written: {folder}")


def _known(target: Target, settings: Mapping[str, Any]) -> Tensor | None:
    """The labels, where the attacker is said to know them: ``--labels known``."""
    if settings["labels"] != "known":
        return None
    if target.known is None:
        raise ValueError("--labels known, but the folder was made without: use --labels inferred")
    return target.known


def attack(
    model: nn.Module, leak: Leak, settings: Mapping[str, Any], known: Tensor | None
) -> Recovery:
    """The attack itself: it is given the model, the message, its own options, known labels.

    No picture comes near it; ``--repeat`` calls it in a process that never had one.
    """
    from flcourse.attacks.recover import recover

    labels = "optimise" if settings["labels"] == "optimise" else known
    options = {
        parameter: settings[option.name]
        for parameter, option in MATCH.items()
        if settings[option.name] is not None
    }
    options |= {"seed": settings["seed"], "snapshots": SNAPSHOTS}
    return recover(model, leak, settings["method"], labels=labels, **options)

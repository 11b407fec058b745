"""One training run in a folder of its own: `python -m flcourse train …` (chapter 01).

    runs/TAG/checkpoint.pt   after each round: the model and all that is needed to go on
    runs/TAG/run.json        when finished: configuration, a record per round, versions, device
    runs/TAG/accuracy.png    when finished: test accuracy against the round

A file gets its name only when it is complete, so a run can be killed at any moment.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import: `train --help` does without
    from torch import nn

    from flcourse.data import Client, Dataset, Split
    from flcourse.fedavg import Checkpoint, History, Round

PARTITIONS = ("iid", "dirichlet", "shards", "quantity", "writer")
MODELS = ("logistic", "mlp", "light-cnn", "simple-cnn")
DEFAULT_MODELS = {
    "breast_cancer": "logistic",
    "cifar10": "simple-cnn",
    "cifar100": "simple-cnn",
    "lfw": "light-cnn",
    "celeba": "light-cnn",
}
DEFENCES = ("none", "clip", "dp", "he", "prune", "quantise", "sign")
# An option that only some partitions read: given with another one, it would silently do nothing.
USED_BY = {"alpha": ("dirichlet", "quantity"), "shards_per_client": ("shards",)}
RUN, FIGURE, CHECKPOINT = "run.json", "accuracy.png", "checkpoint.pt"


class Refused(ValueError):
    """A request that makes no sense; the message says which option, and what to do instead."""


# --------------------------------------------------------------------------------- options


def whole(least: int) -> Callable[[str], int]:
    """A converter of whole numbers of at least `least`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return value

    return convert


def number(words: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """A converter of finite numbers that fit; `words` says which do."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is no {words}")
        return value

    return convert


def batch_size(text: str) -> int | None:
    """`all` or `0`: one batch of all samples of a client (None)."""
    return None if text in ("all", "0") else whole(1)(text)


def name_in(names: tuple[str, ...]) -> Callable[[str], str]:
    """A converter that refuses other names and lists the valid ones."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is unknown: use {', '.join(names)}")
        return text

    return convert


POSITIVE = number("positive number", lambda value: value > 0)
MOMENTUM = number("number from 0 to below 1", lambda value: 0 <= value < 1)
NOT_NEGATIVE = number("number of at least 0", lambda value: value >= 0)
SHARE = number("number above 0 and at most 1", lambda value: 0 < value <= 1)
CHANCE = number("number between 0 and 1", lambda value: 0 < value < 1)


@dataclass(frozen=True)
class Option:
    """One option that decides the numbers of a run: how it is read, its default, its help."""

    flag: str
    convert: Callable[[str], Any]
    default: Any
    metavar: str
    help: str
    also: str = ""  # another spelling

    @property
    def name(self) -> str:
        """The name in the configuration; `clients` is called as everywhere in the package."""
        return self.flag.replace("-", "_") if self.flag != "clients" else "num_clients"

    @property
    def spellings(self) -> tuple[str, ...]:
        """As they stand on the command line."""
        return tuple(f"--{word}" for word in (self.flag, self.also) if word)


# Of --defence dp, in `train` and in `attack`.
PRIVACY = (
    Option("epsilon", POSITIVE, None, "E", "dp: the budget; the noise is made to fit it"),
    Option("delta", CHANCE, None, "D", "dp: at this δ (default: 1e-5)"),
    Option("noise-multiplier", POSITIVE, None, "Z", "dp: or the noise itself, σ over clip norm"),
    Option("clip-norm", POSITIVE, None, "C", "clip, dp, he: each client's message (default: 1)"),
)
# Of --defence he, in both.
ENCRYPTION = (
    Option("key-bits", whole(256), None, "BITS",
           "he: Paillier with a key of so many bits, 2048 to be secure (default: CKKS)"),
    Option("precision", whole(2), None, "BITS",
           "he: of each value, its sign included (default: 16)"),
)  # fmt: skip
GROUPS: dict[str, tuple[Option, ...]] = {
    "the federation": (
        Option("data-set", str, None, "NAME",
               "as in `data` (default: FLCOURSE_DATASET, else glyphs)"),
        Option("num-train", whole(1), None, "N",
               "use only so many training samples (default: as the data set has it)"),
        Option("partition", name_in(PARTITIONS), "iid", "HOW", ", ".join(PARTITIONS)),
        Option("alpha", POSITIVE, 0.5, "A", "dirichlet, quantity: small is uneven, large is even"),
        Option("shards-per-client", whole(1), 2, "N", "shards: pieces of the sorted data for each"),
        Option("clients", whole(1), 10, "N", "how many clients share the data"),
        Option("model", name_in(MODELS), None, "NAME",
               f"{', '.join(MODELS)} (default: what fits the data set)"),
    ),
    "the training": (
        Option("rounds", whole(1), 20, "N", "rounds of communication"),
        Option("fraction", SHARE, 1.0, "C", "share of the clients that take part in a round"),
        Option("epochs", whole(1), 1, "E", "local passes over a client's own samples"),
        Option("batch-size", batch_size, 32, "B", "samples a step; 'all' or 0: all that it holds"),
        Option("lr", POSITIVE, 0.05, "RATE", "the clients' learning rate"),
        Option("momentum", MOMENTUM, 0.0, "M", "the clients' momentum"),
        Option("proximal", NOT_NEGATIVE, 0.0, "MU", "FedProx: pull towards the global model"),
        Option("server-lr", POSITIVE, 1.0, "RATE", "the server's learning rate"),
        Option("server-momentum", MOMENTUM, 0.0, "BETA", "FedAvgM: the server's momentum"),
        Option("seed", int, 0, "S", "of partition, model, cohorts, batches and noise"),
    ),
    "a defence (of each client's update, in each round)": (
        Option("defence", name_in(DEFENCES), "none", "NAME",
               "none; clip; dp (client-level, noise at the server, each client drawn with "
               "probability C); he (added under encryption); prune to a tenth; "
               "quantise to 8 bits; sign", also="defense"),
        *PRIVACY,
        *ENCRYPTION,
    ),
}  # fmt: skip
OPTIONS = {option.name: option for options in GROUPS.values() for option in options}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `train` to the course's command line."""
    parser = subparsers.add_parser(
        "train",
        help="train a model by federated averaging, and keep the run",
        description="Train a model by federated averaging. Writes into the folder OUT/TAG:\n"
        "  checkpoint.pt   after each round: what is needed to go on\n"
        "  run.json        when finished: configuration, a record per round, versions, device\n"
        "  accuracy.png    when finished: test accuracy against the round",
        epilog="examples:\n"
        "  python -m flcourse train --rounds 30 --clients 50 --fraction 0.2 --epochs 5\n"
        "  python -m flcourse train --partition shards --proximal 0.1 --tag prox\n"
        "  python -m flcourse train --tag prox --resume              after Ctrl-C\n"
        "  python -m flcourse train --tag prox --resume --rounds 40  more of the same\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            default = "" if option.default is None else f" (default {option.default})"
            # SUPPRESS: an option that is not given stays absent, so that --resume can tell.
            group.add_argument(
                *option.spellings, dest=option.name, type=option.convert,
                metavar=option.metavar, default=argparse.SUPPRESS, help=option.help + default,
            )  # fmt: skip
    group = parser.add_argument_group("the folder")
    group.add_argument("--tag", help="name of the run (default: DATASET-PARTITION-MODEL-sSEED)")
    group.add_argument("--out", type=Path, default=Path("runs"), help="default: runs")
    group.add_argument("--root", type=Path, help="folder of data sets (default: FLCOURSE_DATA)")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    again = group.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true",
        help="go on with an interrupted run, with its own options; --rounds may be raised",
    )  # fmt: skip
    again.add_argument("--overwrite", action="store_true", help="replace a run of the same tag")
    parser.set_defaults(run=run, parser=parser)


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The complete configuration: what was given, and defaults for the rest.

    Raises:
        Refused: for an option that the chosen partition does not read.
    """
    settings = {name: given.get(name, option.default) for name, option in OPTIONS.items()}
    for name, partitions in USED_BY.items():
        if settings["partition"] in partitions:
            continue
        settings[name] = None
        if name in given:
            raise Refused(
                f"--{OPTIONS[name].flag} does nothing with --partition {settings['partition']}: "
                f"leave it out, or use --partition {' or '.join(partitions)}"
            )
    for name, reason in privacy_without_effect(settings):
        if name in given:
            raise Refused(f"--{OPTIONS[name].flag} does nothing {reason}")
    settings["data_set"] = settings["data_set"] or os.environ.get("FLCOURSE_DATASET") or "glyphs"
    settings["model"] = settings["model"] or DEFAULT_MODELS.get(settings["data_set"], "mlp")
    return settings


def privacy_without_effect(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Options of `PRIVACY` and `ENCRYPTION` that these settings never read, with reason and remedy.

    Raises:
        Refused: for --defence dp without a budget and without noise.
    """
    defence, found = settings["defence"], []
    if defence != "dp":
        reason = "without --defence dp: add it, or leave this out"
        found += [(name, reason) for name in ("epsilon", "delta", "noise_multiplier")]
    elif settings["epsilon"] is None and settings["noise_multiplier"] is None:
        raise Refused("--defence dp needs a budget or noise: give --epsilon or --noise-multiplier")
    elif settings["noise_multiplier"] is not None:
        found.append(("epsilon", "with --noise-multiplier: leave one of them out"))
    if defence not in ("clip", "dp", "he"):
        found.append(("clip_norm", "without --defence clip, dp or he: add one, or leave this out"))
    if defence != "he":
        reason = "without --defence he: add it, or leave this out"
        found += [(name, reason) for name in ("key_bits", "precision")]
    return found


# ----------------------------------------------------------------------------- the command


def run(args: argparse.Namespace) -> int:
    """Carry out the command; 0 when the run is complete."""
    from flcourse import private_runs

    try:
        given = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
        folder, settings, state = _open(args, given)
        settings = private_runs.resolved(settings, settings["rounds"], settings["fraction"])
        split, clients, model = _prepare(settings, args.root)
    except ValueError as error:
        args.parser.error(str(error))
    except OSError as error:  # files of a data set are missing or damaged
        return _failed(args, error)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if args.overwrite:
            for name in (RUN, FIGURE, CHECKPOINT):
                (folder / name).unlink(missing_ok=True)
        history = _train(folder, settings, state, split, clients, model, quiet=args.quiet)
        _finish(folder, settings, history)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_how_to_go_on(folder, args.root)}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # it diverged, or cannot be written
        return _failed(args, error)
    if not args.quiet:
        print(f"{history.accuracy[-1]:.1%} after {settings['rounds']} rounds: {folder / RUN}")
        if settings["defence"] == "dp":
            print(private_runs.sentence(history.config, "client", "whoever sees only the models"))
        if settings["defence"] == "he":
            print(private_runs.encryption(settings))
    return 0


def _failed(args: argparse.Namespace, error: Exception) -> int:
    print(f"{args.parser.prog}: {error}", file=sys.stderr)
    return 1


def _open(
    args: argparse.Namespace, given: dict[str, Any]
) -> tuple[Path, dict[str, Any], dict[str, Any] | None]:
    """The run's folder, its configuration, and its last checkpoint where it is resumed."""
    tag = args.tag or "{data_set}-{partition}-{model}-s{seed}".format(**settings_of(given))
    if not re.fullmatch(r"\w[\w.-]*", tag):
        raise Refused(f"--tag {tag!r} is no name of a folder: use letters, digits, '-', '_', '.'")
    folder = args.out / tag
    if args.resume:
        state = _load(folder / CHECKPOINT)
        stored = {name: option.default for name, option in OPTIONS.items()} | state["settings"]
        return folder, _resumed(stored, given, state["round"]), state
    if not args.overwrite and (folder / RUN).exists():
        raise Refused(f"{folder} holds a finished run: choose another --tag, or use --overwrite")
    if not args.overwrite and (folder / CHECKPOINT).exists():
        raise Refused(f"{folder} holds an interrupted run: use --resume, or --overwrite")
    return folder, settings_of(given), None


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint; nothing in it is executed, so that one from elsewhere does no harm."""
    import torch

    if not path.exists():
        raise Refused(f"there is nothing to resume in {path.parent}: start without --resume")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"{path} is no checkpoint ({reason}): use --overwrite") from error
    return state


def _resumed(stored: dict[str, Any], given: dict[str, Any], done: int) -> dict[str, Any]:
    """The stored configuration; what is given must agree with it, but there may be more rounds.

    Raises:
        Refused: naming each option that differs.
    """
    rounds = given.get("rounds", stored["rounds"])
    if rounds < done:
        raise Refused(f"--rounds {rounds}, but {done} rounds are done: use at least {done}")
    if rounds != stored["rounds"] and stored["epsilon"] is not None:
        raise Refused(
            f"--rounds {rounds}, but --epsilon {stored['epsilon']} was spread over "
            f"{stored['rounds']} rounds: more would overspend it; choose another --tag"
        )
    others = {name: value for name, value in given.items() if name != "rounds"}
    differing = [
        f"--{OPTIONS[name].flag} is {_shown(name, stored[name])} in the stored run, "
        f"not {_shown(name, value)}"
        for name, value in others.items()
        if value != stored[name]
    ]
    if differing:
        raise Refused(f"{'; '.join(differing)}: leave it out to go on, or choose another --tag")
    return stored | {"rounds": rounds}


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "all" if name in ("batch_size", "num_train") else "unused"
    return str(value)


def _prepare(settings: dict[str, Any], root: Path | None) -> tuple[Split, list[Client], nn.Module]:
    from flcourse.data import load_dataset, partition
    from flcourse.runtime import device

    device()  # refuses a wrong FLCOURSE_DEVICE before anything is written
    sizes = {} if settings["num_train"] is None else {"num_train": settings["num_train"]}
    split = load_dataset(settings["data_set"], root, **sizes)
    if not len(split.test):
        raise Refused(f"--data-set {settings['data_set']} has no test samples: try glyphs")
    dealt = {name: settings[name] for name in USED_BY if settings[name] is not None}
    clients = partition(
        split.train, settings["partition"], settings["num_clients"], seed=settings["seed"], **dealt
    )
    return split, clients, make_model(settings["model"], split.train, settings["seed"])


def make_model(name: str, train: Dataset, seed: int) -> nn.Module:
    """A fresh model for this data set.

    Tables and colour pictures are normalised first, by the training samples' mean and standard
    deviation (per feature, or per channel): public preprocessing, known before training starts.

    Raises:
        Refused: for a convolutional model on a table, or a data set of text.
    """
    import torch
    from torch import nn

    from flcourse.models import MLP, LightCNN, Logistic, Normalise, SimpleCNN

    inputs, num_classes = train.inputs, len(train.classes)
    pictures = inputs.dim() == 4
    if not inputs.is_floating_point():
        raise Refused(f"--data-set {train.name} is text, which none of the models reads")
    if name.endswith("cnn") and not pictures:
        raise Refused(f"--model {name} wants pictures, {train.name} is a table: use mlp, logistic")
    features = inputs[0].numel()
    shape = {"channels": inputs.shape[1], "image_size": inputs.shape[-1]} if pictures else {}
    model: nn.Module
    if name == "logistic":
        model = Logistic(features, num_classes, seed=seed)
    elif name == "mlp":
        model = MLP(features, num_classes=num_classes, seed=seed)
    elif name == "light-cnn":
        model = LightCNN(num_classes, **shape, seed=seed)
    else:
        model = SimpleCNN(num_classes, **shape, seed=seed)
    if pictures and inputs.shape[1] == 1:
        return model
    apart = tuple(axis for axis in range(inputs.dim()) if axis != 1)  # all but channel or feature
    deviation, average = torch.std_mean(inputs, dim=apart)
    return nn.Sequential(Normalise(average, deviation.clamp_min(1e-6)), model)


def _train(
    folder: Path,
    settings: dict[str, Any],
    state: dict[str, Any] | None,
    split: Split,
    clients: list[Client],
    model: nn.Module,
    *,
    quiet: bool,
) -> History:
    """Train, keep a checkpoint after each round, and return the history of all rounds."""
    from tqdm import tqdm

    from flcourse import fedavg, private_runs

    records = [fedavg.Round(**record) for record in state["records"]] if state else []
    resume = fedavg.Checkpoint(**{k: state[k] for k in _CHECKPOINT}) if state else None

    def keep(record: Round, checkpoint: Checkpoint) -> None:
        records.append(record)
        _save(folder, settings, checkpoint, records)
        if not quiet:
            tqdm.write(
                f"round {record.round:>3} of {settings['rounds']}: accuracy {record.accuracy:.1%}, "
                f"loss {record.loss:.3f}, {record.seconds:.2f} s"
            )
            sys.stdout.flush()  # a log file or a pipe is followed, too

    if quiet:
        os.environ["FLCOURSE_PROGRESS"] = "0"
    options = {option.name: settings[option.name] for option in GROUPS["the training"]}
    options |= {"resume": resume, "on_round": keep}
    history = private_runs.train(model, clients, split.test, settings, **options)
    spent = private_runs.spent(settings, settings["rounds"], settings["fraction"])
    return fedavg.History(history.config | settings | spent, records)


_CHECKPOINT = ("round", "row", "velocity")


def _save(
    folder: Path, settings: dict[str, Any], checkpoint: Checkpoint, records: list[Round]
) -> None:
    import torch

    state = {name: getattr(checkpoint, name) for name in _CHECKPOINT}
    state |= {"settings": settings, "records": [asdict(record) for record in records]}
    path = folder / CHECKPOINT
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def _finish(folder: Path, settings: dict[str, Any], history: History) -> None:
    from flcourse.viz import learning_curves

    label = f"{settings['data_set']}, {settings['partition']}"
    learning_curves({label: [history]}).save(folder / FIGURE)
    partial = folder / f"{RUN}.part"
    history.to_json(partial)
    partial.replace(folder / RUN)


def _how_to_go_on(folder: Path, root: Path | None) -> str:
    if not (folder / CHECKPOINT).exists():
        return "no round was finished, so nothing was kept"
    command = ["python", "-m", "flcourse", "train", "--tag", folder.name, "--resume"]
    if folder.parent != Path("runs"):
        command += ["--out", str(folder.parent)]
    if root is not None:
        command += ["--root", str(root)]
    return f"go on with: {shlex.join(command)}"

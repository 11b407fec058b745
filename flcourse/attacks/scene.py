"""The private side of the command `attack`: pictures, model, clients, and the messages they send.

Only this module and the score ever hold a picture; the attack is given ``Leak`` and model. Chapter
06 explains each signal and option.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flcourse import defences
from flcourse.attacks import encrypted
from flcourse.attacks.observe import aggregate, observe_gradient, observe_models, observe_round
from flcourse.attacks.types import Leak
from flcourse.data import Client, Dataset, load_dataset, load_image
from flcourse.fedavg import RoundContext, apply_update
from flcourse.local import local_updates
from flcourse.models import MLP, LeNet, LightCNN, Logistic, Normalise, SimpleCNN, uniform_
from flcourse.runtime import derive_seed, device, generator, seeded

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "simple-cnn": SimpleCNN,
    "light-cnn": LightCNN,
    "mlp": MLP,
    "logistic": Logistic,
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky-relu": partial(nn.LeakyReLU, 0.2),
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}
# How --trained trains: plain settings that suit every model here.
TRAINING: dict[str, Any] = {"batch_size": 32, "lr": 0.05, "momentum": 0.9}

Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Target:
    """One message to attack, and the pictures behind it, which the attack is not given.

    ``truth`` is ``(images, labels)``, None where only the message was kept. ``known`` are labels
    that an attacker may know.
    """

    name: str
    leak: Leak
    truth: tuple[Tensor, Tensor] | None
    known: Tensor | None


@dataclass(frozen=True, eq=False)
class Scene:
    """What one run attacks: the model as it was broadcast, and the observed messages."""

    model: nn.Module
    build: dict[str, Any]
    classes: tuple[str, ...]
    targets: tuple[Target, ...]


def make_scene(settings: Settings, root: Path | None = None) -> Scene:
    """Load the pictures, build (and train) the model, run the federation, keep what travels.

    Raises ``ValueError`` that names the option and its remedy; ``OSError`` for missing files.
    """
    public = _load(settings, root)
    images, labels, others = private_pictures(settings, public)
    build = describe_model(settings, public, images)
    if int(labels.max()) >= build["num_classes"]:
        raise ValueError(
            f"label {int(labels.max())} is no class of a model with {build['num_classes']} "
            "classes: raise --classes, or choose another --label"
        )
    model = make_model(build).to(device())
    if settings["trained"]:
        _train(model, others, settings)
    clients = make_clients(images, labels, settings["num_clients"])
    broadcast, leaks = messages(model, clients, settings)
    targets = tuple(_targets(broadcast, clients, leaks, settings))
    return Scene(broadcast, build, public.classes, targets)


# ------------------------------------------------------------------------------- the pictures


def private_pictures(settings: Settings, public: Dataset) -> tuple[Tensor, Tensor, Dataset]:
    """The pictures of all clients in order, their labels, and the rest of the data set."""
    count = settings["samples"] * settings["num_clients"]
    if settings["picture"] is not None:
        size = settings["image_size"] or public.inputs.shape[-1]
        images = torch.cat([load_image(path, size) for path in settings["picture"]])
        if public.inputs.shape[1] != 3:
            raise ValueError(
                f"--picture is read in colour, --data {public.name} is grey: use --data photos"
            )
        labels = torch.tensor(settings["label"] or [0])
        if len(labels) == 1:
            labels = labels.expand(len(images))
        _fits("--label", len(labels), len(images))
        return images, labels.clone(), public
    at = list(range(count)) if settings["indices"] is None else list(settings["indices"])
    if max(at) >= len(public):
        raise ValueError(
            f"picture {max(at)} of {public.name}, which has {len(public)}: lower --samples, "
            "--clients or --indices"
        )
    chosen = public.subset(at)
    labels = chosen.labels
    if settings["label"] is not None:
        _fits("--label", len(settings["label"]), len(at))
        labels = torch.tensor(settings["label"])
    others = public.subset([i for i in range(len(public)) if i not in set(at)])
    return chosen.inputs, labels, others


def make_clients(images: Tensor, labels: Tensor, count: int) -> list[Client]:
    """Client ``k`` of ``count`` holds the ``k``-th part of the pictures, all of one size.

    Raises ``ValueError`` if they cannot be shared out evenly.
    """
    if len(images) % count:
        raise ValueError(
            f"{len(images)} pictures for --clients {count}: give a multiple, as many to each"
        )
    parts = zip(images.chunk(count), labels.chunk(count), strict=True)
    return [Client(k, inputs, own) for k, (inputs, own) in enumerate(parts)]


def _load(settings: Settings, root: Path | None) -> Dataset:
    options: dict[str, Any] = {}
    if settings["image_size"] is not None and settings["picture"] is None:
        options["image_size"] = settings["image_size"]
    split = load_dataset(settings["data"], root, **options)
    data = split.train if settings["split"] == "train" else split.test
    if data.inputs.dim() != 4 or not data.inputs.is_floating_point():
        raise ValueError(
            f"--data {data.name} holds no pictures: use photos, digits, glyphs, cifar10, …"
        )
    if not len(data):
        raise ValueError(f"--data {data.name} has no samples in --split {settings['split']}")
    return data


def _fits(flag: str, given: int, wanted: int) -> None:
    if given != wanted:
        raise ValueError(f"{flag} has {given} value(s) for {wanted} pictures: give one for each")


# ---------------------------------------------------------------------------------- the model


def describe_model(settings: Settings, public: Dataset, images: Tensor) -> dict[str, Any]:
    """All that ``make_model`` needs, as plain values: with the weights, the model itself."""
    mean = std = None
    if settings["normalize"]:
        deviation, average = torch.std_mean(public.inputs, dim=(0, 2, 3))
        mean, std = average.tolist(), deviation.clamp_min(1e-6).tolist()
    return {
        "name": settings["model"],
        "hidden": settings["hidden"] or 64,
        "num_classes": settings["classes"] or len(public.classes),
        "channels": int(images.shape[1]),
        "image_size": int(images.shape[-1]),
        "activation": settings["activation"],
        "init_scale": settings["init_scale"],
        "mean": mean,
        "std": std,
        "seed": settings["seed"],
    }


def make_model(build: Mapping[str, Any]) -> nn.Module:
    """The model that ``describe_model`` describes, with its first weights."""
    channels, size, classes = build["channels"], build["image_size"], build["num_classes"]
    if build["name"] in ("mlp", "logistic"):
        shape = {"num_features": channels * size * size, "num_classes": classes}
    else:
        shape = {"num_classes": classes, "channels": channels, "image_size": size}
    if build["name"] == "mlp":
        shape["hidden"] = build["hidden"]
    model = MODELS[build["name"]](**shape, seed=build["seed"])
    if build["activation"] is not None:
        replace_activations(model, ACTIVATIONS[build["activation"]])
    if build["init_scale"] is not None:
        with seeded(build["seed"], "init-scale"):
            uniform_(model, build["init_scale"])
    if build["mean"] is not None:
        model = nn.Sequential(Normalise(build["mean"], build["std"]), model)
    return model


def replace_activations(model: nn.Module, activation: Callable[[], nn.Module]) -> None:
    """Put another activation where the model has a ReLU or a sigmoid, in place."""
    for name, module in model.named_children():
        if isinstance(module, (nn.ReLU, nn.Sigmoid)):
            setattr(model, name, activation())
        else:
            replace_activations(module, activation)


def _train(model: nn.Module, others: Dataset, settings: Settings) -> None:
    """Epochs over the rest of the data set: the private pictures are not among them."""
    rest = Client(0, others.inputs, others.labels)
    seed = derive_seed(settings["seed"], "trained")
    rows, _ = local_updates(model, [rest], epochs=settings["trained"], seed=seed, **TRAINING)
    apply_update(model, rows[0])


# ------------------------------------------------------------------------------- the messages


def messages(
    model: nn.Module, clients: Sequence[Client], settings: Settings
) -> tuple[nn.Module, list[Leak]]:
    """The model as broadcast in the observed round, and each client's message, defended.

    Earlier rounds run without the defence. A step or a gradient means that each round is one step
    over all samples of a client.
    """
    rows: list[Tensor] = []

    def listen(sent: Tensor, _context: RoundContext) -> Tensor:
        rows[:] = list(sent)  # of each round; those of the last one stay
        return sent

    many = settings["signal"] == "update"
    broadcast, first = observe_round(
        model,
        clients,
        client=0,
        round=settings["round"],
        epochs=settings["epochs"] if many else 1,
        batch_size=settings["batch_size"] if many else None,
        lr=settings["lr"],
        momentum=settings["momentum"] if many else 0.0,
        transform=listen,
        seed=settings["seed"],
    )
    if settings["signal"] == "gradient":
        leaks = [observe_gradient(broadcast, one.inputs, one.labels) for one in clients]
    else:
        leaks = [first.with_row(row) for row in rows]
    defend = make_defence(settings)
    seeds = [derive_seed(settings["seed"], "client", one.index) for one in clients]
    return broadcast, [defend(leak, seed) for leak, seed in zip(leaks, seeds, strict=True)]


def make_defence(settings: Settings) -> defences.Defence:
    """What each client does to its message: a named defence, or the steps that options name."""
    named = {slug(name): defence for name, defence in defences.SIMPLE_DEFENCES.items()}
    if settings["defence"] in named:
        return named[settings["defence"]]

    def defend(leak: Leak, seed: int) -> Leak:
        row, public = leak.row, {}
        if settings["clip"] is not None:
            row = defences.clip(row, settings["clip"])
            public["clip_norm"] = settings["clip"]
        if settings["noise"] is not None:
            noise = generator(seed, "defence", "gaussian")
            row = defences.gaussian(row, settings["noise"], noise)
            public["noise_std"] = settings["noise"]
        if settings["prune"] is not None:
            row = defences.prune(row, settings["prune"])
        if settings["quantise"] is not None:
            row = defences.quantise(row, settings["quantise"])
        if settings["sign"]:
            row = defences.sign(row)
        if settings["defence"] == "he":
            row = encrypted.rounded(row, settings)
        return leak.with_row(row, **public)

    return defend


def slug(name: str) -> str:
    """A defence's name as the command line has it: ``keep 10 %`` -> ``keep-10``."""
    return name.replace(" %", "").replace(" ", "-")


def _targets(
    broadcast: nn.Module, clients: Sequence[Client], leaks: Sequence[Leak], settings: Settings
) -> list[Target]:
    found = []
    if settings["mode"] in ("per-client", "both"):
        chosen = range(len(clients)) if settings["client"] == "all" else [settings["client"]]
        for k in chosen:
            one = clients[k]
            leak = _sent([leaks[k].row], leaks[k], settings)
            found.append(_target(f"client-{k}", leak, one.inputs, one.labels))
    if settings["mode"] in ("aggregated", "both"):
        total = aggregate(leaks, normalise=settings["normalize_clients"])
        if settings["apply_step"]:
            total = _seen_by_a_client(broadcast, total, settings["server_lr"])
        else:  # clients have the key, a server does not
            total = _sent(_summands(leaks, settings), total, settings)
        images = torch.cat([one.inputs for one in clients])
        labels = torch.cat([one.labels for one in clients])
        found.append(_target("aggregate", total, images, labels))
    return found


def _sent(rows: Sequence[Tensor], leak: Leak, settings: Settings) -> Leak:
    """What the server sees: the leak itself, or its ciphertext."""
    return encrypted.sealed(rows, leak, settings) if settings["defence"] == "he" else leak


def _summands(leaks: Sequence[Leak], settings: Settings) -> list[Tensor]:
    rows = [leak.row for leak in leaks]
    if not settings["normalize_clients"]:
        return rows
    return [row / row.norm() * settings["clip"] for row in rows] if settings["clip"] else rows


def _target(name: str, leak: Leak, images: Tensor, labels: Tensor) -> Target:
    return Target(name, leak, (images, labels), labels)


def _seen_by_a_client(broadcast: nn.Module, total: Leak, server_lr: float) -> Leak:
    """The aggregate as it can be read from the next global model, less its rounding."""
    after = copy.deepcopy(broadcast)
    apply_update(after, total.row, server_lr)
    public = ("batch_size", "image_shape", "num_clients", "epochs", "local_batch_size", "momentum",
              "normalised", "clip_norm", "noise_std")  # fmt: skip
    fields = {name: getattr(total, name) for name in public}
    assert total.lr is not None  # an update always has it
    return observe_models(broadcast, after, lr=total.lr, server_lr=server_lr, **fields)


# ------------------------------------------------------------------------ kept for another day


def save_model(path: Path, scene: Scene) -> None:
    """Write the model: how it is built, and its weights; nothing in the file is executed."""
    state = {name: value.detach().cpu() for name, value in scene.model.state_dict().items()}
    torch.save({"build": scene.build, "state": state, "classes": list(scene.classes)}, path)


def load_scene(folder: Path, known: Mapping[str, Sequence[int] | None]) -> Scene:
    """Model and messages of a finished run, without a picture.

    Raises ``ValueError`` if files are missing or damaged.
    """
    try:
        stored = torch.load(folder / "model.pt", weights_only=True)
        model = make_model(stored["build"])
        model.load_state_dict(stored["state"])
        targets = []
        for name, labels in known.items():
            own = folder if len(known) == 1 else folder / name
            leak = Leak.load(own / "leak.pt").to(device())
            given = None if labels is None else torch.tensor(labels)
            targets.append(Target(name, leak, None, given))
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} cannot be repeated ({reason}): run the attack anew") from error
    return Scene(model.to(device()), stored["build"], tuple(stored["classes"]), tuple(targets))

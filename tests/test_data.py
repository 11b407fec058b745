"""Data sets: the embedded ones, real files where they lie beside the repository, and miniatures.

Real MNIST and CIFAR-10 are read from FLCOURSE_SHARED_DATA (default: `../shared/data` beside the
repository); without it those tests are skipped. Fashion-MNIST, CIFAR-100, LFW and CelebA are tested
on miniatures that are generated here in the published format, never on the real sets.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flcourse import fetch
from flcourse.data import (
    DamagedFileError,
    Dataset,
    dataset_names,
    default_root,
    load_dataset,
    load_image,
)
from flcourse.data import glyphs as glyphs_module
from flcourse.data.files import choose
from flcourse.data.sources import SOURCES, Part

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FLCOURSE_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


def shared(folder: str) -> Path:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no real files: {SHARED / folder} is missing (set FLCOURSE_SHARED_DATA)")
    return SHARED / folder


def check_pictures(dataset: Dataset, shape: tuple[int, ...], num_classes: int) -> None:
    """The contract that every picture set keeps."""
    assert dataset.inputs.shape == shape
    assert dataset.inputs.dtype == torch.float32
    assert float(dataset.inputs.min()) >= 0 and float(dataset.inputs.max()) <= 1
    assert dataset.labels.dtype == torch.int64 and dataset.labels.shape == shape[:1]
    assert len(dataset.classes) == num_classes
    assert int(dataset.labels.min()) >= 0 and int(dataset.labels.max()) < num_classes
    assert dataset.source and dataset.licence


# ------------------------------------------------------------------------------- the switch


def test_the_default_is_glyphs_and_the_environment_changes_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLCOURSE_DATASET", raising=False)
    assert load_dataset(num_train=1, num_test=1).train.name == "glyphs"
    monkeypatch.setenv("FLCOURSE_DATASET", "digits")
    assert load_dataset().train.name == "digits"
    assert load_dataset("photos").train.name == "photos"


def test_a_wrong_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="no data set 'mnits': use one of glyphs, photos") as error:
        load_dataset("mnits")
    assert all(name in str(error.value) for name in dataset_names())


def test_a_wrong_option_lists_the_valid_ones():
    with pytest.raises(ValueError, match="has no option 'size': use num_train, num_test"):
        load_dataset("glyphs", size=3)
    with pytest.raises(ValueError, match="has no option 'root_': use num_train"):
        load_dataset("cifar10", root_="x")


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_missing_file_says_where_it_looked_and_what_to_do(name: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, root=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert f"python -m flcourse data {name} --root {tmp_path}" in str(error.value)


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FLCOURSE_DATA", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match="mine"):
        load_dataset("mnist")
    monkeypatch.delenv("FLCOURSE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "flcourse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache" / "flcourse"


def test_without_torchvision_the_error_says_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # importing it fails
    cifar100_miniature(tmp_path, monkeypatch)
    with pytest.raises(ImportError, match=r"cifar100 is read by torchvision.*glyphs, photos"):
        load_dataset("cifar100", root=tmp_path)
    assert len(load_dataset("digits").train) == 1_437


def test_a_data_set_whose_parts_do_not_match_is_refused():
    with pytest.raises(ValueError, match="2 inputs, 3 labels and no writers do not match"):
        Dataset("toy", torch.zeros(2, 1), torch.zeros(3, dtype=torch.int64), ("a",))


def test_a_subset_keeps_inputs_labels_and_writers_together():
    train, _ = load_dataset("glyphs", num_train=50, num_test=1)
    part = train.subset([7, 3])
    assert torch.equal(part.inputs, train.inputs[[7, 3]])
    assert part.labels.tolist() == train.labels[[7, 3]].tolist()
    assert part.writers is not None and train.writers is not None
    assert part.writers.tolist() == train.writers[[7, 3]].tolist()
    assert len(train.subset([])) == 0


# ----------------------------------------------------------------------------- in the package


def test_glyphs_have_the_promised_shape_and_are_evenly_dealt():
    train, test = load_dataset("glyphs")
    check_pictures(train, (4_000, 1, 28, 28), 10)
    check_pictures(test, (2_000, 1, 28, 28), 10)
    assert train.writers is not None
    assert train.writers.unique().tolist() == list(range(21))
    pairs = torch.bincount(train.writers * 10 + train.labels, minlength=210)
    assert int(pairs.max()) - int(pairs.min()) <= 1


def test_glyphs_come_from_their_seed_alone():
    first, again = load_dataset("glyphs", num_train=30), load_dataset("glyphs", num_train=30)
    assert torch.equal(first.train.inputs, again.train.inputs)
    torch.manual_seed(5)  # the global state plays no part
    assert torch.equal(load_dataset("glyphs", num_train=30).train.inputs, first.train.inputs)
    other = load_dataset("glyphs", num_train=30, seed=1)
    assert not torch.equal(other.train.inputs, first.train.inputs)


def test_no_glyph_is_in_both_halves():
    train, test = load_dataset("glyphs", num_train=2_000, num_test=2_000)
    rows = torch.cat([train.inputs, test.inputs]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 4_000


def test_glyphs_of_one_label_look_more_alike_than_others():
    train, test = load_dataset("glyphs")
    means = torch.stack([train.inputs[train.labels == k].mean(0).flatten() for k in range(10)])
    nearest = torch.cdist(test.inputs.flatten(1), means).argmin(1)
    assert 0.5 < float((nearest == test.labels).float().mean()) < 0.95  # learnable, not trivial


def test_all_characters():
    train, _ = load_dataset("glyphs", num_train=2_604, num_test=10, characters="all")
    check_pictures(train, (2_604, 1, 28, 28), 62)
    assert "".join(train.classes[:12]) == "0123456789AB" and train.classes[-1] == "z"
    assert torch.bincount(train.labels).tolist() == [42] * 62


def test_the_atlas_holds_21_distinct_typefaces():
    grey, typefaces, characters = glyphs_module.atlas()
    assert grey.shape == (21, 62, 64, 64) and len(typefaces) == 21 and len(characters) == 62
    assert float(grey.max()) == 1 and float(grey.min()) == 0
    assert len(torch.unique(grey.flatten(1), dim=0)) == 21
    assert (grey.flatten(2).max(2).values > 0.9).all()  # nobody left a glyph out
    for typeface in grey:
        assert len(torch.unique(typeface.flatten(1), dim=0)) == 62


@pytest.mark.parametrize(
    "options", [{"num_train": 0}, {"num_test": 60_001}, {"characters": "greek"}]
)
def test_glyphs_refuse_nonsense(options: dict[str, object]):
    with pytest.raises(ValueError, match=r"1 to 60,000|use 'digits'"):
        load_dataset("glyphs", **options)


@pytest.mark.parametrize("size", [32, 64])
def test_photos(size: int):
    train, test = load_dataset("photos", image_size=size)
    check_pictures(train, (20, 3, size, size), 10)
    assert len(test) == 0
    assert train.labels.tolist() == [*range(10), *range(10)]
    assert train.classes[0] == "astronaut" and train.classes[9] == "horse"
    grey = [(picture - picture[:1]).abs().max() == 0 for picture in train.inputs]
    assert [i for i, is_grey in enumerate(grey) if is_grey] == [8, 9, 18, 19]
    assert (train.inputs.flatten(1).std(1) > 0.05).all()  # none is blank


def test_photos_of_the_two_sizes_show_the_same():
    small = load_dataset("photos").train.inputs
    large = load_dataset("photos", image_size=64).train.inputs
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert float((shrunk - small).abs().mean()) < 0.03
    with pytest.raises(ValueError, match="comes in 32 and 64"):
        load_dataset("photos", image_size=48)


def test_digits_and_breast_cancer_are_those_of_scikit_learn():
    """An oracle: the sums over all samples equal those of scikit-learn's copy."""
    datasets = pytest.importorskip("sklearn.datasets")
    train, test = load_dataset("digits")
    check_pictures(train, (1_437, 1, 8, 8), 10)
    check_pictures(test, (360, 1, 8, 8), 10)
    ours = torch.cat([train.inputs, test.inputs]).squeeze(1).double().sum(0) * 16
    assert torch.equal(ours, torch.from_numpy(datasets.load_digits().images.sum(0)))

    train, test = load_dataset("breast_cancer")
    assert (len(train), len(test)) == (455, 114)
    assert train.feature_names is not None and train.feature_names[0] == "mean radius"
    assert train.classes == ("malignant", "benign")
    reference = datasets.load_breast_cancer()
    rows = torch.cat([train.inputs, test.inputs]).double()
    labels = torch.cat([train.labels, test.labels])
    order, expected = rows[:, 0].argsort(stable=True), reference.data[:, 0].argsort(kind="stable")
    assert rows.sum(0).tolist() == pytest.approx(reference.data.sum(0).tolist(), rel=1e-6)
    assert labels[order].double().mean() == pytest.approx(reference.target[expected].mean())
    malignant = reference.data[reference.target == 0].mean(0)
    assert rows[labels == 0].mean(0).tolist() == pytest.approx(malignant.tolist(), rel=1e-5)


def test_zen_is_a_text_to_continue():
    train, test = load_dataset("zen")
    assert train.inputs.dtype == torch.int64 and train.inputs.shape == (136, 8) and len(test) == 0
    words = [train.classes[token] for token in train.inputs[0].tolist()]
    assert words == ["the", "zen", "of", "python", "by", "tim", "peters", "beautiful"]
    assert train.classes[int(train.labels[0])] == "is"
    assert torch.equal(train.inputs[1:, -1], train.labels[:-1])  # each label is read next
    assert len(train.classes) == 88
    assert load_dataset("zen", context=3).train.inputs.shape == (141, 3)
    with pytest.raises(ValueError, match="use 1 to 143"):
        load_dataset("zen", context=144)


def test_the_embedded_data_stay_small():
    assets = REPOSITORY / "flcourse" / "assets"
    files = [*assets.glob("*.npz"), assets / "zen.txt"]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    listed = (assets / "README.md").read_text()
    assert all(f"`{file.name}`" in listed for file in files)  # source and licence stand beside


# -------------------------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mnist")
    shutil.copytree(shared("MNIST/raw"), root / "MNIST" / "raw", copy_function=shutil.copyfile)
    (root / "MNIST" / "raw").chmod(0o755)
    return root


def test_real_mnist(mnist_root: Path):
    """Packed files are named as such; the command unpacks them (one is a re-pack); they load."""
    with pytest.raises(FileNotFoundError, match=r"still packed: train-images-idx3-ubyte\.gz"):
        load_dataset("mnist", root=mnist_root)
    assert fetch.fetch(SOURCES["mnist"], mnist_root) == mnist_root  # nothing is downloaded
    train, test = load_dataset("mnist", root=mnist_root)
    check_pictures(train, (60_000, 1, 28, 28), 10)
    check_pictures(test, (10_000, 1, 28, 28), 10)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert float(train.inputs.mean()) == pytest.approx(0.1307, abs=1e-4)  # as widely published

    labels = mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[100] ^= 1
    labels.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"t10k-labels.* its sha256 is .*delete it"):
        load_dataset("mnist", root=mnist_root)


def test_real_cifar10():
    root = shared("cifar-10-batches-py").parent
    train, test = load_dataset("cifar10", root=root, num_train=500, num_test=200)
    check_pictures(train, (500, 3, 32, 32), 10)
    check_pictures(test, (200, 3, 32, 32), 10)
    assert train.classes[0] == "airplane"
    # Each picture carries the label that was published with it.
    with (root / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        raw = pickle.load(file, encoding="bytes")
    rows = torch.from_numpy(raw[b"data"]).reshape(-1, 3, 32, 32).float() / 255
    at = (rows == test.inputs[0]).flatten(1).all(1).nonzero().flatten()
    assert [raw[b"labels"][i] for i in at.tolist()] == [int(test.labels[0])]


def test_choosing_some_of_many():
    first = choose(100, 10, 0, "num_train", "toy")
    assert len(first.unique()) == 10 and torch.equal(first, choose(100, 10, 0, "num_train", "toy"))
    assert not torch.equal(first, choose(100, 10, 1, "num_train", "toy"))
    assert choose(3, None, 0, "num_train", "toy").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="num_test=101: toy has 100"):
        choose(100, 101, 0, "num_test", "toy")


def test_damaged_cifar10_is_refused(tmp_path: Path):
    folder = shared("cifar-10-batches-py")
    (tmp_path / folder.name).mkdir()
    for file in folder.iterdir():
        (tmp_path / folder.name / file.name).symlink_to(file)
    (tmp_path / folder.name / "batches.meta").unlink()
    (tmp_path / folder.name / "batches.meta").write_bytes(b"damaged")
    with pytest.raises(DamagedFileError, match=r"batches\.meta is damaged: its md5"):
        load_dataset("cifar10", root=tmp_path)


# --------------------------------------------------------------------------------- miniatures


def write_idx(path: Path, values: np.ndarray) -> None:
    """The IDX format of MNIST: magic number (type, dimensions), sizes, bytes; and its .gz."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + values.astype(np.uint8).tobytes())
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 1))


def test_fashion_mnist_on_a_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Generated in the published format (IDX), with 6 and 4 pictures."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "FashionMNIST" / "raw"
    images = rng.integers(0, 256, (6, 28, 28))
    write_idx(raw / "train-images-idx3-ubyte", images)
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(6))
    write_idx(raw / "t10k-images-idx3-ubyte", rng.integers(0, 256, (4, 28, 28)))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(4))
    parts = tuple(
        Part(part.path, size=(tmp_path / part.path).stat().st_size, packed=part.packed)
        for part in SOURCES["fashion_mnist"].parts
    )
    replace_parts(monkeypatch, "fashion_mnist", parts)
    train, test = load_dataset("fashion_mnist", root=tmp_path)
    check_pictures(train, (6, 1, 28, 28), 10)
    assert torch.equal((train.inputs[:, 0] * 255).round().long(), torch.from_numpy(images))
    assert train.classes[0] == "T-shirt/top" and test.labels.tolist() == [0, 1, 2, 3]

    changed = bytearray((raw / "t10k-labels-idx1-ubyte").read_bytes())
    changed[-1] ^= 1
    (raw / "t10k-labels-idx1-ubyte").write_bytes(changed)
    with pytest.raises(DamagedFileError, match="its crc32 is"):  # as the .gz beside it says
        load_dataset("fashion_mnist", root=tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(changed[:-1])
    with pytest.raises(DamagedFileError, match="bytes instead of"):
        load_dataset("fashion_mnist", root=tmp_path)


def replace_parts(monkeypatch: pytest.MonkeyPatch, name: str, parts: tuple[Part, ...]) -> None:
    """Let a miniature's parts stand for the published ones (their sizes and sums differ)."""
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], parts=parts))


def cifar100_miniature(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """CIFAR-100 in the published format (pickles), with 5 and 3 pictures; returns the MD5 sums."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 5), ("test", 3)):
        rows = rng.integers(0, 256, (count, 3_072), dtype=np.uint8)
        labels = list(range(90, 90 + count))
        content = {"data": rows, "fine_labels": labels, "coarse_labels": labels, "filenames": []}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    parts = tuple(Part(f"{folder.name}/{name}", f"md5:{md5}") for name, md5 in sums.items())
    replace_parts(monkeypatch, "cifar100", parts)
    return sums


def test_cifar100_on_a_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Generated in the published format; torchvision is told the miniature's checksums."""
    datasets = pytest.importorskip("torchvision.datasets")
    sums = cifar100_miniature(tmp_path, monkeypatch)
    reader = datasets.CIFAR100
    monkeypatch.setattr(reader, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(reader, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": sums["meta"]})
    train, test = load_dataset("cifar100", root=tmp_path)
    check_pictures(train, (5, 3, 32, 32), 100)
    assert train.labels.tolist() == [90, 91, 92, 93, 94] and len(test) == 3
    with (tmp_path / "cifar-100-python" / "train").open("rb") as file:
        rows = torch.from_numpy(pickle.load(file)["data"])
    assert torch.equal((train.inputs.flatten(1) * 255).round().to(torch.uint8), rows)
    with (tmp_path / "cifar-100-python" / "test").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedFileError, match="test is damaged: its md5"):
        load_dataset("cifar100", root=tmp_path)


def save_jpeg(path: Path, width: int, height: int, colour: tuple[int, int, int]) -> None:
    """A picture of one colour with a black frame outside of the centre that is kept."""
    picture = Image.new("RGB", (width, height))
    inner = Image.new("RGB", (152, 152), colour)
    picture.paste(inner, ((width - 152) // 2, (height - 152) // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95)


@pytest.mark.parametrize(
    "form", ["lfw", "lfw_funneled", "lfw-deepfunneled/lfw-deepfunneled", "lfw/lfw-deepfunneled"]
)
def test_lfw_on_a_miniature(form: str, tmp_path: Path):
    """Generated in the published layout (a folder a person, 250 × 250 JPEG), in its known forms."""
    for person, count in (("Ada_Lovelace", 5), ("Emmy_Noether", 3), ("Rare_Person", 1)):
        for i in range(1, count + 1):
            colour = (200, 40, 40) if person.startswith("Ada") else (40, 40, 200)
            save_jpeg(tmp_path / form / person / f"{person}_{i:04d}.jpg", 250, 250, colour)
    train, test = load_dataset("lfw", root=tmp_path, min_faces=3)
    check_pictures(train, (6, 3, 64, 64), 2)
    assert train.classes == ("Ada Lovelace", "Emmy Noether")
    assert torch.bincount(train.labels).tolist() == [4, 2]
    assert torch.bincount(test.labels).tolist() == [1, 1]
    for dataset in (train, test):  # each picture has its own person's label, without the frame
        red = dataset.inputs[:, 0].mean((1, 2)) > 0.5
        assert torch.equal(red, dataset.labels == 0)
        assert float(dataset.inputs.amax(1).min()) > 0.5
    with pytest.raises(ValueError, match="the most are 5"):
        load_dataset("lfw", root=tmp_path, min_faces=6)
    with pytest.raises(ValueError, match="use 2 or more"):
        load_dataset("lfw", root=tmp_path, min_faces=1)


CELEBA_NAMES = [f"{i:06d}.jpg" for i in range(1, 9)]
SMILING = [1, -1, 1, 1, -1, -1, 1, -1]
HALVES = [0, 0, 0, 0, 1, 2, 2, 2]


def celeba_miniature(root: Path, *, kaggle: bool, pictures: str) -> None:
    for name, smiles in zip(CELEBA_NAMES, SMILING, strict=True):
        save_jpeg(root / pictures / name, 178, 218, (200, 40, 40) if smiles > 0 else (40, 40, 200))
    if kaggle:
        rows = [f"{n},-1,{s}" for n, s in zip(CELEBA_NAMES, SMILING, strict=True)]
        halves = [f"{n},{h}" for n, h in zip(CELEBA_NAMES, HALVES, strict=True)]
        (root / "list_attr_celeba.csv").write_text("\n".join(["image_id,Bald,Smiling", *rows]))
        (root / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *halves]))
        return
    rows = [f"{n} -1  {s}" for n, s in zip(CELEBA_NAMES, SMILING, strict=True)]
    (root / "list_attr_celeba.txt").write_text("\n".join(["8", "Bald Smiling ", *rows, ""]))
    halves = [f"{n} {h}" for n, h in zip(CELEBA_NAMES, HALVES, strict=True)]
    (root / "list_eval_partition.txt").write_text("\n".join([*halves, ""]))
    people = [f"{n} {int(n[:6]) * 7}" for n in CELEBA_NAMES]
    (root / "identity_CelebA.txt").write_text("\n".join([*people, ""]))


@pytest.mark.parametrize("kaggle", [True, False])
@pytest.mark.parametrize("pictures", ["img_align_celeba", "img_align_celeba/img_align_celeba"])
def test_celeba_on_a_miniature(kaggle: bool, pictures: str, tmp_path: Path):
    """Generated in the published layouts: the original lists and Kaggle's CSV, flat and nested."""
    celeba_miniature(tmp_path / "celeba", kaggle=kaggle, pictures=pictures)
    train, test = load_dataset("celeba", root=tmp_path)
    check_pictures(train, (4, 3, 64, 64), 2)
    check_pictures(test, (3, 3, 64, 64), 2)
    assert train.classes == ("not Smiling", "Smiling")
    assert sorted(train.labels.tolist()) == [0, 1, 1, 1]
    assert sorted(test.labels.tolist()) == [0, 0, 1]
    for dataset in (train, test):  # the label belongs to the picture
        assert torch.equal(dataset.inputs[:, 0].mean((1, 2)) > 0.5, dataset.labels == 1)
        assert (dataset.writers is None) == kaggle
    if train.writers is not None:
        assert sorted(train.writers.tolist()) == [7, 14, 21, 28]
    assert load_dataset("celeba", root=tmp_path, attribute="Bald").train.labels.sum() == 0
    assert len(load_dataset("celeba", root=tmp_path / "celeba", num_train=2).train) == 2
    with pytest.raises(ValueError, match="no attribute 'Happy': use one of Bald, Smiling"):
        load_dataset("celeba", root=tmp_path, attribute="Happy")


def test_incomplete_or_damaged_celeba_is_refused(tmp_path: Path):
    """On the same miniature."""
    celeba_miniature(tmp_path, kaggle=True, pictures="img_align_celeba")
    (tmp_path / "img_align_celeba" / CELEBA_NAMES[0]).write_bytes(b"no picture")
    with pytest.raises(DamagedFileError, match=r"000001\.jpg is no picture"):
        load_dataset("celeba", root=tmp_path)
    lists = (tmp_path / "list_attr_celeba.csv").read_text()
    (tmp_path / "list_attr_celeba.csv").write_text("\n".join(lists.splitlines()[:-1]))
    with pytest.raises(DamagedFileError, match=r"names 000008\.jpg"):
        load_dataset("celeba", root=tmp_path)
    (tmp_path / "list_attr_celeba.csv").write_text(lists.replace(",1", ",yes"))
    with pytest.raises(DamagedFileError, match="no number"):
        load_dataset("celeba", root=tmp_path)
    (tmp_path / "list_eval_partition.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no list_eval_partition"):
        load_dataset("celeba", root=tmp_path)
    with pytest.raises(DamagedFileError, match="8 pictures instead of 202,599"):
        (tmp_path / "list_eval_partition.csv").write_text("")
        fetch.verify(SOURCES["celeba"], tmp_path)


# ----------------------------------------------------------------------------- own pictures


def test_load_image_cuts_the_centre_and_keeps_the_colours(tmp_path: Path):
    picture = Image.new("RGB", (300, 100), (255, 0, 0))
    picture.paste((0, 128, 255), (100, 0, 200, 100))
    picture.save(tmp_path / "own.png")
    batch = load_image(tmp_path / "own.png", image_size=16)
    assert batch.shape == (1, 3, 16, 16) and batch.dtype == torch.float32
    assert batch[0, :, 8, 8].tolist() == pytest.approx([0, 128 / 255, 1])
    assert float(batch[0, 0].max()) == 0  # nothing of the red sides
    assert load_image(str(tmp_path / "own.png")).shape == (1, 3, 32, 32)


def test_load_image_turns_the_picture_upright(tmp_path: Path):
    picture = Image.new("RGB", (40, 40))
    picture.paste((255, 255, 255), (0, 0, 40, 20))  # stored with its top white
    exif = picture.getexif()
    exif[0x0112] = 3  # held upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = load_image(tmp_path / "turned.png", image_size=8)[0, 0]
    assert float(upright[0, 0]) == 0 and float(upright[-1, 0]) == 1


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, [0.2, 0.2, 0.2]),
        ("RGBA", (255, 0, 0, 0), [1, 1, 1]),
        ("RGBA", (255, 0, 0, 255), [1, 0, 0]),
        ("P", 0, [0, 0, 0]),
        ("1", 1, [1, 1, 1]),
        ("I;16", 13_107, [0.2, 0.2, 0.2]),
    ],
)
def test_load_image_makes_rgb_of_any_kind(
    mode: str, colour: int, expected: list[float], tmp_path: Path
):
    Image.new(mode, (20, 20), colour).save(tmp_path / "own.png")
    assert load_image(tmp_path / "own.png")[0, :, 5, 5].tolist() == pytest.approx(expected)


def test_load_image_refuses_what_is_no_picture(tmp_path: Path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is no picture"):
        load_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*gone\.png"):
        load_image(tmp_path / "gone.png")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        whole
    )
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:5_000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        load_image(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="image_size=0"):
        load_image(whole, image_size=0)

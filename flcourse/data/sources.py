"""Where each data set on disk comes from, and how to tell that it is the one that was published.

The addresses and MD5 sums are those that torchvision and scikit-learn use; the SHA-256 sums of the
unpacked MNIST files were computed from archives with those MD5 sums.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from flcourse.data.types import DamagedFileError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A file to download: its addresses in order of preference, and its checksum `kind:digest`."""

    name: str
    urls: tuple[str, ...]
    checksum: str


@dataclass(frozen=True)
class Part:
    """A file that must lie under the root once everything is unpacked.

    `checksum` is `None` where only the packed file has a published one (`packed` names it): then
    `size` is compared, and the CRC-32 that the packed file carries if it still lies beside.
    """

    path: str
    checksum: str | None = None
    size: int | None = None
    packed: str | None = None


@dataclass(frozen=True)
class Source:
    """All about one data set: what to download (`archives`) into `folder`, and what comes out."""

    name: str
    title: str
    licence: str
    megabytes: int
    folder: str
    archives: tuple[Archive, ...] = ()
    parts: tuple[Part, ...] = ()
    by_hand: str = ""  # how to get what cannot be downloaded openly


def default_root() -> Path:
    """The folder of data sets: `FLCOURSE_DATA`, else `flcourse` in the user's cache folder."""
    forced = os.environ.get("FLCOURSE_DATA")
    if forced:
        return Path(forced).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "flcourse"


def digest(path: Path, kind: str) -> str:
    """The checksum of a file, hexadecimal; `kind` is `"md5"`, `"sha256"` or `"crc32"`."""
    if kind == "crc32":
        crc = 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
        return f"{crc:08x}"
    # Not for security: MD5 is what the publishers gave, and it finds damage.
    state = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def check_file(path: Path, checksum: str, remedy: str) -> None:
    """Raise `DamagedFileError` unless the file has this checksum (`"md5:…"`, `"sha256:…"`)."""
    kind, _, expected = checksum.partition(":")
    found = digest(path, kind)
    if found != expected:
        raise DamagedFileError(
            f"{path} is damaged: its {kind} is {found}, the published one is {expected}; {remedy}"
        )


def check_part(root: Path, part: Part, remedy: str) -> None:
    """Raise `DamagedFileError` unless the part under `root` is what was published."""
    path = root / part.path
    if part.size is not None and path.stat().st_size != part.size:
        raise DamagedFileError(
            f"{path} is damaged: it has {path.stat().st_size:,} bytes instead of {part.size:,}; "
            f"{remedy}"
        )
    packed = root / part.packed if part.packed else None
    if part.checksum:
        check_file(path, part.checksum, remedy)
    elif packed and packed.exists():
        check_file(path, f"crc32:{gzip_crc(packed)}", remedy)


def gzip_crc(path: Path) -> str:
    """The CRC-32 of the content, as the last eight bytes of a gzip file carry it."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        return f"{int.from_bytes(file.read(4), 'little'):08x}"


def find_root(source: Source, root: Path) -> Path:
    """The folder under which all parts lie: `root` itself or `root/NAME`.

    Raises:
        FileNotFoundError: saying where it looked and which command fetches the files.
    """
    candidates = (root, root / source.name)
    for candidate in candidates:
        if all((candidate / part.path).is_file() for part in source.parts):
            return candidate
    missing = [part.path for part in source.parts if not (root / part.path).is_file()]
    packed = [archive.name for archive in source.archives
              if (root / source.folder / archive.name).is_file()]  # fmt: skip
    looked = " and ".join(str(candidate / source.folder) for candidate in candidates)
    raise FileNotFoundError(
        f"{source.title} is not here: looked in {looked} (first missing: {missing[0]}). "
        + (f"Found, but still packed: {', '.join(packed)}. " if packed else "")
        + f"Fetch it with: {fetch_command(source.name, root)}"
    )


def fetch_command(name: str, root: Path) -> str:
    """The command that fetches (or unpacks, or verifies) a data set into `root`."""
    return f"python -m flcourse data {name} --root {root}"


def verify_parts(source: Source, root: Path) -> None:
    """Raise `DamagedFileError` for the first part under `root` that is not what was published."""
    remedy = f"delete it, then fetch it again with: {fetch_command(source.name, root)}"
    for part in source.parts:
        check_part(root, part, remedy)


def _idx(folder: str, stem: str, size: int, checksum: str | None) -> Part:
    path = f"{folder}/raw/{stem}"
    return Part(path, checksum, size, f"{path}.gz")


def _mirrored(name: str, checksum: str, *mirrors: str) -> Archive:
    return Archive(name, tuple(mirror + name for mirror in mirrors), checksum)


_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_FASHION = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
_CIFAR = ("https://www.cs.toronto.edu/~kriz/",)
_C10, _C100 = "cifar-10-batches-py", "cifar-100-python"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "mnist",
            "MNIST (LeCun, Cortes, Burges: 70,000 handwritten digits, 1 × 28 × 28)",
            "CC BY-SA 3.0, as commonly stated",
            12,
            "MNIST/raw",
            (
                _mirrored(
                    "train-images-idx3-ubyte.gz", "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873", *_MNIST
                ),
                _mirrored(
                    "train-labels-idx1-ubyte.gz", "md5:d53e105ee54ea40749a09fcbcd1e9432", *_MNIST
                ),
                _mirrored(
                    "t10k-images-idx3-ubyte.gz", "md5:9fb629c4189551a2d022fa330f9573f3", *_MNIST
                ),
                _mirrored(
                    "t10k-labels-idx1-ubyte.gz", "md5:ec29112dd5afa0611ce80d1b7f02629c", *_MNIST
                ),
            ),
            (
                _idx(
                    "MNIST",
                    "train-images-idx3-ubyte",
                    47_040_016,
                    "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                ),
                _idx(
                    "MNIST",
                    "train-labels-idx1-ubyte",
                    60_008,
                    "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                ),
                _idx(
                    "MNIST",
                    "t10k-images-idx3-ubyte",
                    7_840_016,
                    "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                ),
                _idx(
                    "MNIST",
                    "t10k-labels-idx1-ubyte",
                    10_008,
                    "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                ),
            ),
        ),
        Source(
            "fashion_mnist",
            "Fashion-MNIST (Zalando: 70,000 pieces of clothing, 1 × 28 × 28)",
            "MIT",
            31,
            "FashionMNIST/raw",
            (
                _mirrored(
                    "train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d", *_FASHION
                ),
                _mirrored(
                    "train-labels-idx1-ubyte.gz", "md5:25c81989df183df01b3e8a0aad5dffbe", *_FASHION
                ),
                _mirrored(
                    "t10k-images-idx3-ubyte.gz", "md5:bef4ecab320f06d8554ea6380940ec79", *_FASHION
                ),
                _mirrored(
                    "t10k-labels-idx1-ubyte.gz", "md5:bb300cfdad3c16e7a12a480ee83cd310", *_FASHION
                ),
            ),
            (
                _idx("FashionMNIST", "train-images-idx3-ubyte", 47_040_016, None),
                _idx("FashionMNIST", "train-labels-idx1-ubyte", 60_008, None),
                _idx("FashionMNIST", "t10k-images-idx3-ubyte", 7_840_016, None),
                _idx("FashionMNIST", "t10k-labels-idx1-ubyte", 10_008, None),
            ),
        ),
        Source(
            "cifar10",
            "CIFAR-10 (Krizhevsky: 60,000 pictures in 10 classes, 3 × 32 × 32)",
            "none stated; cite Krizhevsky 2009",
            170,
            ".",
            (_mirrored("cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a", *_CIFAR),),
            (
                Part(f"{_C10}/data_batch_1", "md5:c99cafc152244af753f735de768cd75f"),
                Part(f"{_C10}/data_batch_2", "md5:d4bba439e000b95fd0a9bffe97cbabec"),
                Part(f"{_C10}/data_batch_3", "md5:54ebc095f3ab1f0389bbae665268c751"),
                Part(f"{_C10}/data_batch_4", "md5:634d18415352ddfa80567beed471001a"),
                Part(f"{_C10}/data_batch_5", "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
                Part(f"{_C10}/test_batch", "md5:40351d587109b95175f43aff81a1287e"),
                Part(f"{_C10}/batches.meta", "md5:5ff9c542aee3614f3951f8cda6e48888"),
            ),
        ),
        Source(
            "cifar100",
            "CIFAR-100 (Krizhevsky: 60,000 pictures in 100 classes, 3 × 32 × 32)",
            "none stated; cite Krizhevsky 2009",
            169,
            ".",
            (
                _mirrored(
                    "cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85", *_CIFAR
                ),
            ),
            (
                Part(f"{_C100}/train", "md5:16019d7e3df5f24257cddd939b257f8d"),
                Part(f"{_C100}/test", "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"),
                Part(f"{_C100}/meta", "md5:7973b15100ade9c7d40fb424638fde48"),
            ),
        ),
        Source(
            "lfw",
            "Labeled Faces in the Wild (Huang et al. 2007: 13,233 pictures of 5,749 persons)",
            "unclear: collected from news pages for research; not to be given on",
            233,
            ".",
            (
                Archive(
                    "lfw-funneled.tgz",
                    ("https://ndownloader.figshare.com/files/5976015",),
                    "sha256:b47c8422c8cded889dc5a13418c4bc2abbda121092b3533a83306f90d900100a",
                ),
            ),
        ),
        Source(
            "celeba",
            "CelebA (Liu et al. 2015: 202,599 pictures of faces, 40 attributes)",
            "non-commercial research only; not to be given on",
            1_400,
            "celeba",
            by_hand=(
                "CelebA has no open direct download. Get it from its page, "
                "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (img_align_celeba.zip, "
                "list_attr_celeba.txt, list_eval_partition.txt, and identity_CelebA.txt for a "
                "split by person), or as 'celeba-dataset' from Kaggle (jessicali9530), and unpack "
                "it into {folder}, so that {folder}/img_align_celeba holds the pictures."
            ),
        ),
    )
}

"""Download and verify data sets: `python -m flcourse data [NAME] [--root FOLDER] [--verify]`.

A dropped connection is resumed where it broke, a server that cannot resume is read from the start,
and nothing gets its final name before its checksum is right. Only Python's own library is used.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import shutil
import ssl
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from tqdm import tqdm

from flcourse.data import EMBEDDED, dataset_names, default_root
from flcourse.data.faces import find_celeba, find_lfw
from flcourse.data.sources import (
    SOURCES,
    Archive,
    Part,
    Source,
    check_file,
    digest,
    fetch_command,
    find_root,
    verify_parts,
)
from flcourse.data.types import DamagedFileError

MAX_TRIES = 6  # without a single new byte in between
TIMEOUT = 30.0  # seconds of silence
_BLOCK = 1 << 16
_LFW_PICTURES, _CELEBA_PICTURES = 13_233, 202_599
_CELEBA_LISTS = {
    "list_attr_celeba.txt": "md5:75e246fa4810816ffd6ee81facbd244c",
    "list_eval_partition.txt": "md5:d32c9cbf5e040fd4025c592c306e6668",
    "identity_CelebA.txt": "md5:32bd1bd63d3c78cd57e08160ec5ed1e2",
}


class Readable(Protocol):
    """What can be copied from: an open file, also one inside an archive."""

    def read(self, size: int = ..., /) -> bytes: ...


class FetchError(OSError):
    """A file could not be downloaded; the message says from where and why."""


# --------------------------------------------------------------------------------- one file


def download(url: str, target: Path, checksum: str, *, pause: float = 1.0) -> None:
    """Download `url` to `target`, through `target.part`, which a later call resumes.

    Args:
        checksum: `"md5:…"` or `"sha256:…"`; `target` appears only if it is right.
        pause: seconds to wait before the second try, doubled before each further one.

    Raises:
        FetchError: if the server refuses, or after `MAX_TRIES` tries that brought nothing.
        DamagedFileError: if the checksum is wrong, also after one fresh start; nothing is kept.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    _receive_all(url, part, pause)
    kind, _, expected = checksum.partition(":")
    if digest(part, kind) != expected and resumed:
        part.unlink()  # what was there before may have been of another file
        _receive_all(url, part, pause)
    found = digest(part, kind)
    if found != expected:
        part.unlink()
        raise DamagedFileError(
            f"{url} sent a damaged file: its {kind} is {found}, the published one is {expected}; "
            "nothing was kept, try again later or from another network"
        )
    part.replace(target)


def _receive_all(url: str, part: Path, pause: float) -> None:
    """Receive into `part` until the server has nothing more; every try resumes the one before."""
    tries, wait = 0, pause
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part):
                return
            problem = "the connection closed early"
        except (OSError, http.client.HTTPException) as error:
            problem = _refusal(url, error)
        grown = part.exists() and part.stat().st_size > before
        tries, wait = (0, pause) if grown else (tries + 1, wait * 2)
        if tries >= MAX_TRIES:
            raise FetchError(
                f"{url}: {problem}, {MAX_TRIES} times without a new byte; what arrived is kept, "
                "so the same command goes on from there"
            )
        time.sleep(wait)


def _refusal(url: str, error: Exception) -> str:
    """What went wrong, in words; raises at once what no further try can mend."""
    if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
        raise FetchError(f"{url}: the server answered {error.code} ({error.reason})") from error
    passing = (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
        ssl.SSLError,
    )
    if isinstance(error, passing):
        return str(getattr(error, "reason", error)) or type(error).__name__
    raise error  # the disk is full, or not ours to write on


def _receive(url: str, part: Path) -> bool:
    """One connection: append what it brings to `part`; whether that completed the file."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "flcourse", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing beyond what we have: the checksum will tell
            return True
        raise
    with answer:
        start, total = _extent(answer, have)
        with part.open("r+b" if start else "wb") as file:
            file.truncate(start)
            file.seek(start)
            _copy(answer, file, start, total, part.name.removesuffix(".part"))
        return total is None or part.stat().st_size >= total


def _extent(answer: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the bytes of this answer start, and how long the whole file is (if the server says).

    A server that ignores the range answers 200 and starts from 0, whatever was asked for.
    """
    length = answer.headers.get("Content-Length")
    if answer.status != 206:
        return 0, int(length) if length else None
    given = answer.headers.get("Content-Range", "")  # "bytes 100-199/200"
    start, _, total = given.removeprefix("bytes ").replace("/", "-").partition("-")
    if not start.isdigit() or int(start) > have:
        raise FetchError(f"asked for bytes from {have}, the server sent {given!r}")
    last = total.rpartition("-")[2]
    return int(start), int(last) if last.isdigit() else None


def _copy(
    answer: http.client.HTTPResponse, file: IO[bytes], start: int, total: int | None, name: str
) -> None:
    # disable=None: no bar where nobody looks (a file, a page of the book).
    with tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None
    ) as bar:
        while block := answer.read(_BLOCK):
            file.write(block)
            bar.update(len(block))


# -------------------------------------------------------------------------------- unpacking


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar.gz, .tgz, .tar, .zip or .gz into `folder`.

    Nothing appears there before everything was read, and nothing outside it is ever written.

    Raises:
        DamagedFileError: if the archive cannot be read, or names a place outside, or holds links.
        ValueError: for another kind of file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as name:
        staging = Path(name)
        try:
            for place, content in _members(archive):
                _write(staging, place, content, archive)
        except (
            tarfile.TarError,
            zipfile.BadZipFile,
            gzip.BadGzipFile,
            zlib.error,
            EOFError,
        ) as error:
            raise DamagedFileError(
                f"{archive} cannot be unpacked ({error}): delete it and fetch it again"
            ) from error
        _move_into(staging, folder)


def _members(archive: Path) -> Iterator[tuple[str, Readable]]:
    """Name and content of every file in the archive."""
    if archive.name.endswith((".tar.gz", ".tgz", ".tar")):
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content:
                    yield member.name, content
                elif not member.isdir():
                    raise DamagedFileError(f"{archive}: {member.name} is a link or a device")
    elif archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as pack:
            for info in pack.infolist():
                if not info.is_dir():
                    with pack.open(info) as content:
                        yield info.filename, content
    elif archive.suffix == ".gz":
        with gzip.open(archive) as unpacked:
            yield archive.stem, unpacked
    else:
        raise ValueError(f"{archive.name}: use a .tar.gz, .tgz, .tar, .zip or .gz file")


def _write(folder: Path, place: str, content: Readable, archive: Path) -> None:
    target = (folder / place).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise DamagedFileError(f"{archive}: {place} would be written outside of the folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


def _move_into(staging: Path, folder: Path) -> None:
    for path in sorted(staging.rglob("*")):
        target = folder / path.relative_to(staging)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            path.replace(target)


# ----------------------------------------------------------------------------- one data set


def fetch(source: Source, root: Path, *, pause: float = 1.0) -> Path:
    """Make `source` complete under `root`: download what is missing, unpack, verify.

    Returns:
        The folder under which the data set lies.

    Raises:
        FetchError: if it cannot be downloaded; DamagedFileError: if what came is not as published.
    """
    try:
        return verify(source, root)
    except (FileNotFoundError, DamagedFileError):
        if not source.archives:
            raise
    folder = root / source.folder
    for archive in source.archives:
        path = folder / archive.name
        if not _is_published(path, archive, source):
            path.unlink(missing_ok=True)
            _download_any(archive, path, pause)
        unpack(path, folder)
    return verify(source, root)


def _is_published(path: Path, archive: Archive, source: Source) -> bool:
    """Whether the file has the published checksum, or (packed again) unpacks to what has."""
    if not path.is_file():
        return False
    kind, _, expected = archive.checksum.partition(":")
    if digest(path, kind) == expected:
        return True
    parts = (p for p in source.parts if p.packed and path.as_posix().endswith(p.packed))
    part = next(parts, None)
    return part is not None and _unpacks_to(path, part)


def _unpacks_to(path: Path, part: Part) -> bool:
    if not part.checksum:
        return False
    kind, _, expected = part.checksum.partition(":")
    state = hashlib.new(kind, usedforsecurity=False)
    try:
        with gzip.open(path) as content:
            while block := content.read(_BLOCK):
                state.update(block)
    except (OSError, EOFError):
        return False
    return state.hexdigest() == expected


def _download_any(archive: Archive, target: Path, pause: float) -> None:
    """From the first address that works; if none does, the error of each."""
    problems: list[OSError] = []
    for url in archive.urls:
        try:
            return download(url, target, archive.checksum, pause=pause)
        except (FetchError, DamagedFileError) as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    raise FetchError("; ".join(map(str, problems)))


def verify(source: Source, root: Path) -> Path:
    """The folder under which `source` lies complete and as published.

    Raises:
        FileNotFoundError: if it is not there; DamagedFileError: if it is not what was published.
    """
    if source.name == "lfw":
        folder = find_lfw(root)
        return _count_pictures(folder, "*/*.jpg", _LFW_PICTURES, source, root)
    if source.name == "celeba":
        files = find_celeba(root)
        for path in (files.attributes, files.halves, files.identity):
            if path and path.name in _CELEBA_LISTS:
                check_file(path, _CELEBA_LISTS[path.name], "get this list again")
        return _count_pictures(files.pictures, "*.jpg", _CELEBA_PICTURES, source, root)
    folder = find_root(source, root)
    verify_parts(source, folder)
    return folder


def _count_pictures(folder: Path, pattern: str, expected: int, source: Source, root: Path) -> Path:
    found = sum(1 for _ in folder.glob(pattern))
    if found != expected:
        raise DamagedFileError(
            f"{folder} holds {found:,} pictures instead of {expected:,}: unpack its archive again "
            f"({fetch_command(source.name, root)})"
        )
    return folder


# ------------------------------------------------------------------------------ the command


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `data` to the course's command line."""
    parser = subparsers.add_parser(
        "data",
        help="list, download and verify data sets",
        description="Without a name: list all data sets. With a name: download it where it is "
        "missing, unpack and verify it.",
        epilog="examples:\n"
        "  python -m flcourse data                      what there is, and how large\n"
        "  python -m flcourse data cifar10              170 MB into the user's cache\n"
        "  python -m flcourse data mnist --root data    into a folder of your own\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(dataset_names())}")
    parser.add_argument(
        "--root", type=Path, help="folder of data sets (default: FLCOURSE_DATA, else a user cache)"
    )
    parser.add_argument("--verify", action="store_true", help="only verify, download nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command; 0 if the data set is (now) there and as published."""
    root = args.root or default_root()
    if args.name is None:
        print(listing(root))
        return 0
    if args.name in EMBEDDED:
        print(f"{args.name} lies in the package: nothing to fetch")
        return 0
    source = SOURCES.get(args.name)
    if source is None:
        print(
            f"no data set {args.name!r}: use one of {', '.join(dataset_names())}", file=sys.stderr
        )
        return 2
    try:
        folder = verify(source, root) if args.verify else fetch(source, root)
    except OSError as error:  # missing, damaged, refused, or no room: one line each
        print(f"{source.name}: {error}", file=sys.stderr)
        if source.by_hand:
            print(source.by_hand.format(folder=root / source.folder), file=sys.stderr)
        return 1
    print(f"{source.name}: complete and verified in {folder}")
    return 0


def listing(root: Path) -> str:
    """A table of all data sets: name, megabytes to download, whether it is there, licence."""
    lines = [f"Data sets (folder: {root})", f"{'name':14} {'MB':>6}  {'where':12}  licence"]
    lines += [
        f"{name:14} {'0':>6}  {'in package':12}  see flcourse/assets/README.md" for name in EMBEDDED
    ]
    lines += [
        f"{source.name:14} {source.megabytes:>6,}  "
        f"{'present' if is_present(source, root) else 'not here':12}  {source.licence}"
        for source in SOURCES.values()
    ]
    return "\n".join(lines)


def is_present(source: Source, root: Path) -> bool:
    """Whether the files lie under `root` (not whether they are intact: that is `verify`)."""
    finders = {"lfw": find_lfw, "celeba": find_celeba}
    try:
        finders[source.name](root) if source.name in finders else find_root(source, root)
    except FileNotFoundError:
        return False
    return True

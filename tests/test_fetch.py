"""The fetcher against a local server that drops the connection, ignores ranges and sends damage."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flcourse import fetch
from flcourse.data import DamagedFileError
from flcourse.data.sources import SOURCES, Archive, Part, Source

CONTENT = bytes(range(256)) * 1_500  # 384,000 bytes
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@dataclass
class Server:
    """What the server does, and what it was asked for."""

    address: str = ""
    content: bytes = CONTENT
    drop_after: int | None = None  # bytes sent before the connection is cut, each time
    drops: int = 10**6  # how many times
    ranges: bool = True
    damage: int = 0  # so many answers come with a wrong byte
    statuses: list[int] = field(default_factory=list)  # answers to give first
    length: bool = True
    asked: list[str | None] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.address}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server_state: Server

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        state = self.server_state
        asked = self.headers.get("Range")
        state.asked.append(asked)
        if state.statuses:
            return self.send_error(state.statuses.pop(0))
        content = bytearray(state.content)
        if state.damage:
            state.damage -= 1
            content[-1] ^= 1
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if state.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = bytes(content[start:])
        if state.drop_after is not None and state.drops:
            state.drops -= 1
            body = body[: state.drop_after]
            self.close_connection = True
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    handler = type("BoundHandler", (Handler,), {"server_state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        state.address = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def get(server: Server, target: Path, checksum: str = SHA) -> bytes:
    fetch.download(server.url, target, checksum, pause=0.001)
    assert not target.with_name(target.name + ".part").exists()
    return target.read_bytes()


def test_a_plain_download(server: Server, tmp_path: Path):
    assert get(server, tmp_path / "deep" / "data.bin") == CONTENT
    assert server.asked == [None]


def test_a_dropped_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path):
    server.drop_after = 100_000
    assert get(server, tmp_path / "data.bin") == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_many_drops_are_fine_as_long_as_bytes_come(server: Server, tmp_path: Path):
    server.drop_after = 20_000
    assert get(server, tmp_path / "data.bin") == CONTENT
    assert len(server.asked) > fetch.MAX_TRIES * 3


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: Server, tmp_path: Path):
    server.ranges, server.drop_after, server.drops = False, 150_000, 1
    assert get(server, tmp_path / "data.bin") == CONTENT
    assert server.asked == [None, "bytes=150000-"]


def test_a_later_call_goes_on_from_the_part(server: Server, tmp_path: Path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:300_000])
    assert get(server, tmp_path / "data.bin") == CONTENT
    assert server.asked == ["bytes=300000-"]


def test_a_complete_part_is_only_verified(server: Server, tmp_path: Path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "data.bin") == CONTENT


def test_a_part_of_something_else_is_dropped(server: Server, tmp_path: Path):
    (tmp_path / "data.bin.part").write_bytes(b"x" * 1_000)
    assert get(server, tmp_path / "data.bin") == CONTENT
    assert server.asked == ["bytes=1000-", None]


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path / "data.bin") == CONTENT


def test_damage_is_refused_and_not_kept(server: Server, tmp_path: Path):
    server.damage = 10
    with pytest.raises(DamagedFileError, match="sent a damaged file: its sha256 is"):
        get(server, tmp_path / "data.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_silent_about_lengths(server: Server, tmp_path: Path):
    server.length = False
    assert get(server, tmp_path / "data.bin") == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path):
    server.statuses = [503, 429, 500]
    assert get(server, tmp_path / "data.bin") == CONTENT


def test_a_refusal_is_final(server: Server, tmp_path: Path):
    server.statuses = [404]
    with pytest.raises(fetch.FetchError, match="404"):
        get(server, tmp_path / "data.bin")
    assert len(server.asked) == 1


def test_tries_without_a_new_byte_are_bounded_and_what_came_is_kept(server: Server, tmp_path: Path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1_000])
    server.drop_after = 0
    with pytest.raises(fetch.FetchError, match="the same command goes on from there"):
        get(server, tmp_path / "data.bin")
    assert len(server.asked) == fetch.MAX_TRIES
    server.drop_after = None
    assert get(server, tmp_path / "data.bin") == CONTENT
    assert server.asked[-1] == "bytes=1000-"


def test_nobody_answers(tmp_path: Path):
    with pytest.raises(fetch.FetchError, match="without a new byte"):
        fetch.download("http://127.0.0.1:9/data", tmp_path / "data.bin", SHA, pause=0.001)


# ------------------------------------------------------------------------------- unpacking


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_unpack_tar_zip_and_gz(tmp_path: Path):
    tar_of(tmp_path / "a.tar.gz", (tarfile.TarInfo("set/one.txt"), b"1"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as pack:
        pack.writestr("set/two.txt", "2")
    (tmp_path / "three.txt.gz").write_bytes(gzip.compress(b"3"))
    for name in ("a.tar.gz", "b.zip", "three.txt.gz"):
        fetch.unpack(tmp_path / name, tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out").rglob("*.txt")}
    assert found == {"one.txt": "1", "two.txt": "2", "three.txt": "3"}


@pytest.mark.parametrize("place", ["../evil.txt", "/tmp/flcourse-evil.txt", "a/../../evil.txt"])
def test_nothing_is_written_outside(place: str, tmp_path: Path):
    tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("good.txt"), b""), (tarfile.TarInfo(place), b"x"))
    with pytest.raises(DamagedFileError, match="outside"):
        fetch.unpack(tmp_path / "a.tgz", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "evil.txt").exists()


def test_links_are_refused(tmp_path: Path):
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar_of(tmp_path / "a.tgz", (link, b""))
    with pytest.raises(DamagedFileError, match="link"):
        fetch.unpack(tmp_path / "a.tgz", tmp_path / "out")


@pytest.mark.parametrize("name", ["cut.tar.gz", "cut.gz", "cut.zip"])
def test_an_archive_cut_short_leaves_nothing_behind(name: str, tmp_path: Path):
    whole = tmp_path / name
    if name == "cut.zip":
        with zipfile.ZipFile(whole, "w") as pack:
            pack.writestr("one.txt", "1" * 1_000)
    elif name == "cut.gz":
        whole.write_bytes(gzip.compress(CONTENT))
    else:
        tar_of(whole, (tarfile.TarInfo("one.txt"), CONTENT))
    whole.write_bytes(whole.read_bytes()[:-60])
    with pytest.raises(DamagedFileError, match="cannot be unpacked"):
        fetch.unpack(whole, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_another_kind_of_file_is_refused(tmp_path: Path):
    (tmp_path / "a.rar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.tar\.gz"):
        fetch.unpack(tmp_path / "a.rar", tmp_path)


# --------------------------------------------------------------------- data sets, command


@pytest.fixture
def toy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A data set of one .gz file, published by the local server under two addresses."""
    server.content = gzip.compress(CONTENT, mtime=0)
    checksum = f"md5:{hashlib.md5(server.content).hexdigest()}"
    urls = ("http://127.0.0.1:9/gone.gz", f"{server.address}/toy.gz")
    part = Part("TOY/raw/toy", SHA, packed="TOY/raw/toy.gz")
    source = Source(
        "toy", "Toy", "none", 1, "TOY/raw", (Archive("toy.gz", urls, checksum),), (part,)
    )
    monkeypatch.setitem(SOURCES, "toy", source)
    monkeypatch.setattr(fetch, "MAX_TRIES", 2)
    return source


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    fetch.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *words])
    return int(args.run(args))


def test_fetch_tries_the_next_address_unpacks_and_verifies(
    toy: Source, server: Server, tmp_path: Path
):
    assert fetch.fetch(toy, tmp_path, pause=0.001) == tmp_path
    assert (tmp_path / "TOY" / "raw" / "toy").read_bytes() == CONTENT
    asked = len(server.asked)
    assert fetch.fetch(toy, tmp_path, pause=0.001) == tmp_path
    assert len(server.asked) == asked  # complete: nothing more is asked for


def test_a_damaged_file_is_made_again_from_its_archive(toy: Source, server: Server, tmp_path: Path):
    fetch.fetch(toy, tmp_path, pause=0.001)
    asked = len(server.asked)
    (tmp_path / "TOY" / "raw" / "toy").write_bytes(CONTENT[:-1])
    fetch.fetch(toy, tmp_path, pause=0.001)
    assert (tmp_path / "TOY" / "raw" / "toy").read_bytes() == CONTENT
    assert len(server.asked) == asked


def test_an_archive_packed_again_is_known_by_what_it_holds(
    toy: Source, server: Server, tmp_path: Path
):
    (tmp_path / "TOY" / "raw").mkdir(parents=True)
    (tmp_path / "TOY" / "raw" / "toy.gz").write_bytes(gzip.compress(CONTENT, compresslevel=1))
    fetch.fetch(toy, tmp_path, pause=0.001)
    assert server.asked == []


def test_a_damaged_archive_is_downloaded_again(toy: Source, server: Server, tmp_path: Path):
    (tmp_path / "TOY" / "raw").mkdir(parents=True)
    (tmp_path / "TOY" / "raw" / "toy.gz").write_bytes(server.content[:-9])
    fetch.fetch(toy, tmp_path, pause=0.001)
    assert (tmp_path / "TOY" / "raw" / "toy").read_bytes() == CONTENT


def test_the_command_verifies(
    toy: Source, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = str(tmp_path)
    assert command("toy", "--root", root, "--verify") == 1
    assert "is not here" in capsys.readouterr().err
    assert server.asked == []
    fetch.fetch(toy, tmp_path, pause=0.001)
    assert command("toy", "--root", root, "--verify") == 0
    assert "complete and verified" in capsys.readouterr().out
    (tmp_path / "TOY" / "raw" / "toy").write_bytes(CONTENT + b"x")
    assert command("toy", "--root", root, "--verify") == 1
    assert "is damaged: its sha256" in capsys.readouterr().err


def test_the_command_lists_all_sets(
    toy: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command("--root", str(tmp_path)) == 0
    listed = capsys.readouterr().out
    for name in ("glyphs", "photos", "mnist", "cifar10", "lfw", "celeba", "toy"):
        assert f"\n{name} " in listed
    assert "not here" in listed and "present" not in listed
    fetch.fetch(toy, tmp_path, pause=0.001)
    assert "present" in fetch.listing(tmp_path)


def test_the_command_on_sets_that_need_no_download_or_are_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command("glyphs") == 0
    assert "in the package" in capsys.readouterr().out
    assert command("imagenet") == 2
    assert "use one of glyphs" in capsys.readouterr().err


def test_the_command_says_how_to_get_what_cannot_be_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command("celeba", "--root", str(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "no open direct download" in said and str(tmp_path / "celeba") in said


def test_addresses_and_checksums_are_those_of_torchvision():
    datasets = pytest.importorskip("torchvision.datasets")
    for name, reader in (("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST)):
        source = SOURCES[name]
        assert [(a.name, a.checksum.removeprefix("md5:")) for a in source.archives] == [
            tuple(resource) for resource in reader.resources
        ]
        for archive in source.archives:
            assert set(archive.urls) == {mirror + archive.name for mirror in reader.mirrors}
    for name, reader in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        (archive,) = SOURCES[name].archives
        assert (archive.urls, archive.checksum) == ((reader.url,), f"md5:{reader.tgz_md5}")
        published = [*reader.train_list, *reader.test_list,
                     (reader.meta["filename"], reader.meta["md5"])]  # fmt: skip
        ours = [(p.path, p.checksum) for p in SOURCES[name].parts]
        assert ours == [(f"{reader.base_folder}/{file}", f"md5:{md5}") for file, md5 in published]

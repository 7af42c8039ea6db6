"""Pack a dataset into one file, and open it on another machine, which trains on it without preprocessing.

    retro dataset pack --config mine.yaml --output mine.tar.zst
    retro dataset open mine.tar.zst

A pack is a tar: pack.json, then the files that it lists, sorted, each with the sha256 that its manifest says. Nothing
else may stand in it: every byte follows from the list and the files, so that the same dataset gives the same pack, and
what is read is compared with what `pack` would have written there. The dataset appears when all of it was compared.
"""

import argparse
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import yaml
import zstandard

from retro.base import command
from retro.base.artifacts import read_json, read_manifest, replacing, write_text
from retro.base.log import say
from retro.base.shards import locked
from retro.base.stage import UserError
from retro.config import schema
from retro.config.layers import read, with_presets
from retro.config.preprocessing import different
from retro.dataset.dataset import trained_on
from retro.dataset.packed import LEFT_OUT, LIST, Member, Pack, members, opened, parsed

BLOCK, RECORD = 512, 10240  # bytes: of a tar's headers, and what its length is a multiple of
PIECE = 1 << 20  # bytes in memory at once
LONGEST_LIST = 1 << 28  # bytes
THEN = 315532800  # the time of every member, 1980-01-01: earlier ones are unknown to some programs
ZSTD = b"\x28\xb5\x2f\xfd"
CONFIG = "opened.yaml"  # in the folder of an opened dataset: a config that trains on it
OPENING = ".opening"  # in the results folder: what is not compared yet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="write a dataset whose preprocessing is done into one file")
    pack.add_argument("--config", default="config/config.yaml", help="the config that the dataset was made with")
    pack.add_argument("--output", required=True, type=Path, help="file to write: .tar, or .tar.zst, which is smaller")
    pack.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[LEFT_OUT],
        help="leave the vectors out: enough to train, not to search, write or measure overlap",
    )
    to_open = commands.add_parser("open", help="compare a pack with its list, and put the dataset in its place")
    to_open.add_argument("pack", type=Path, help="file that `pack` wrote")
    to_open.add_argument("--results", type=Path, default=Path("results"), help="folder that holds datasets")
    options = parser.parse_args()
    if options.command == "pack":
        write(options.config, options.output, options.without)
    else:
        open_pack(options.pack, options.results)


def write(config: str, output: Path, without: list[str]) -> None:
    """Write the pack of a config's dataset. Raises `UserError` where that is not whole, or not what the config says."""
    settings = schema.load(config)
    folder = Path(settings.results) / settings.dataset.name
    if not output.name.endswith((".tar", ".tar.zst")):
        raise UserError(f"--output {output}: wanted a name that ends in .tar or .tar.zst.")
    if output.exists():
        raise UserError(f"{output}: exists already. Choose another --output or remove it.")
    if opened(folder) is not None:
        raise UserError(f"{folder}: was opened from a pack. Copy that one instead: it would be the same.")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: its preprocessing is not done. Run `retro run --config {config} preprocess` first.")
    facts = settings.dataset.facts()
    if key := different(facts, _asked(folder, facts)):
        raise UserError(
            f"{config}: dataset.{'.'.join(key)} is not what {folder} was made with. Run `retro run --config {config} "
            "preprocess` first, or name the config that it was made with."
        )
    written = with_presets(read(Path(config)), config)
    others = {key: value for key, value in written.items() if key not in ("preset", "results", "dataset")}
    pack = Pack(
        kind="packed dataset",
        format=1,
        name=settings.dataset.name,
        dataset=facts,
        config=others,
        without=sorted({*without}),
        files=members(folder, without),
    )
    with replacing(output) as temporary, open(temporary, "wb") as file, _packing(file, output.suffix == ".zst") as to:
        text = pack.text().encode()
        _put(to, LIST, len(text), io.BytesIO(text))
        length = _room(len(text))
        for name, member in pack.files.items():
            with open(folder / name, "rb") as source:
                if _put(to, name, member.size, source) != member.sha256:
                    raise UserError(
                        f"{folder / name}: is not what its manifest says. `retro verify {folder}` tells more; delete "
                        "it and run snakemake to make it again."
                    )
            length += _room(member.size)
        to.write(bytes(_end(length)))
    say(f"{output}: {len(pack.files)} files of {folder}, {pack.size / 1e6:,.1f} MB, packed in {_mega(output)}.")
    say(f"There, in a copy of this project: retro dataset open {output.name}")


def _asked(folder: Path, facts: dict) -> dict:
    """What a dataset was made with, in the form of a config's `facts`: from its recorded config."""
    recorded = read_json(folder / "config.json")
    made = {key: value for key, value in recorded.items() if key in facts}
    manifests = {name: read_manifest(folder / name) for name in recorded["manifests"]}
    wanted = schema.SampleSettings(**facts["samples"]).resolved(trained_on(manifests), facts["chunk_length"])
    if wanted.facts() == recorded["samples"]:
        made["samples"] = facts["samples"]
    tokenizer = manifests["tokenizer/manifest.json"].settings["tokenizer"]  # before its counts were laid on it
    own = {"eod": ""} if not facts["tokenizer"]["eod"] else {}  # what its folder names
    return made | {"tokenizer": {**tokenizer, **own}}


@contextmanager
def _packing(file: BinaryIO, compress: bool) -> Iterator[BinaryIO]:
    """What to write to."""
    if not compress:
        yield file
        return
    with zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(file, closefd=False) as writer:
        yield cast(BinaryIO, writer)


def _header(name: str, size: int) -> bytes:
    """The block before a member: a plain file of nobody."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, THEN
    return info.tobuf(tarfile.GNU_FORMAT)


def _room(size: int) -> int:
    """Bytes that a member takes in a tar, header and padding included."""
    return BLOCK + size + -size % BLOCK


def _end(length: int) -> int:
    """Zeros after the last member."""
    return 2 * BLOCK + -(length + 2 * BLOCK) % RECORD


def _put(to: BinaryIO, name: str, size: int, source: BinaryIO) -> str:
    """Write a member; the sha256 of what was written, "" where `source` is shorter."""
    to.write(_header(name, size))
    total, left = hashlib.sha256(), size
    while left and (piece := source.read(min(left, PIECE))):
        total.update(piece)
        to.write(piece)
        left -= len(piece)
    to.write(bytes(-size % BLOCK))
    return total.hexdigest() if not left else ""


class _Unpacking:
    """A pack being read: every byte is wanted, and compared with the one that `pack` would have written."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.length = path, 0
        compressed = file.read(len(ZSTD)) == ZSTD
        file.seek(0)
        self._file = cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(file)) if compressed else file

    def wrong(self, why: str) -> UserError:
        return UserError(f"{self.path}: {why}. Nothing was opened. Copy the pack again, or pack again.")

    def read(self, size: int) -> bytes:
        """So many bytes."""
        found = bytearray()
        try:
            while len(found) < size and (piece := self._file.read(min(size - len(found), PIECE))):
                found += piece
        except zstandard.ZstdError as error:
            raise self.wrong(f"is damaged after {self.length:,} bytes ({error})") from None
        self.length += len(found)
        if len(found) < size:
            raise self.wrong(f"ends after {self.length:,} bytes, in the middle; it was not copied whole")
        return bytes(found)

    def begin(self, name: str, size: int | None) -> int:
        """Read the header of a member, which must be this one; its size. `size` None: any."""
        block = self.read(BLOCK)
        try:
            found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self.wrong(f"is no pack, or is damaged before {name} ({error})") from None
        if block != _header(name, found.size if size is None else size):
            kind = "" if found.isreg() else ", which is no plain file"
            raise self.wrong(f"has {found.name!r}{kind} where {name} of {size or 'some'} bytes was wanted")
        return found.size

    def zeros(self, size: int) -> None:
        if any(self.read(size)):
            raise self.wrong(f"is damaged before byte {self.length:,}")

    def copy(self, name: str, member: Member, target: Path) -> None:
        """Read a member into a new file."""
        self.begin(name, member.size)
        total, left = hashlib.sha256(), member.size
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            while left:
                piece = self.read(min(left, PIECE))
                total.update(piece)
                file.write(piece)
                left -= len(piece)
            file.flush()
            os.fsync(file.fileno())
        if total.hexdigest() != member.sha256:
            raise self.wrong(f"{name} is not what its list says (sha256 {total.hexdigest()[:16]}…)")
        self.zeros(-member.size % BLOCK)

    def listed(self) -> Pack:
        """Read the list, which comes first."""
        size = self.begin(LIST, None)
        if size > LONGEST_LIST:
            raise self.wrong(f"has a list of {size:,} bytes, more than there can be")
        text = self.read(size).decode("utf-8", "replace")
        self.zeros(-size % BLOCK)
        return parsed(text, str(self.path))

    def end(self) -> None:
        """See that nothing follows."""
        self.zeros(_end(self.length))
        try:
            more = self._file.read(1)
        except zstandard.ZstdError:
            more = b"?"
        if more:
            raise self.wrong("goes on after its last file")


def open_pack(path: Path, results: Path) -> None:
    """Put the dataset of a pack below `results`. Raises `UserError`, and leaves nothing, if a byte is not as it was."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. Name one that `retro dataset pack` wrote.")
    with open(path, "rb") as file:
        source = _Unpacking(path, file)
        pack = source.listed()
        target = results / pack.name
        if target.exists() or target.is_symlink():
            there = (target / LIST).is_file() and (target / LIST).read_text(encoding="utf-8") == pack.text()
            if there:
                say(f"{target}: was opened from this pack already. `retro verify {target}` compares what is there.")
                return
            raise UserError(f"{target}: exists already. Remove it, or open the pack elsewhere: --results.")
        with locked(results / OPENING):
            free = shutil.disk_usage(results).free
            if free < pack.size:
                raise UserError(
                    f"{results}: {free / 1e9:,.1f} GB are free, and the dataset has {pack.size / 1e9:,.1f} GB. Make "
                    "room, or open it elsewhere: --results."
                )
            part = results / OPENING / pack.name
            shutil.rmtree(part, ignore_errors=True)  # of an opening that was killed
            try:
                _fill(part, source, pack, results)
                os.rename(part, target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    say(f"{target}: {len(pack.files)} files, {pack.size / 1e6:,.1f} MB, every byte as it was packed.")
    goal = " train_all" if pack.without else ""
    say(f"{_lacks(pack)}Train on it: retro run --config {target / CONFIG}{goal}")


def _fill(part: Path, source: _Unpacking, pack: Pack, results: Path) -> None:
    """All of a pack in the folder `part`, and a config for it."""
    for name, member in pack.files.items():
        source.copy(name, member, part / name)
    source.end()
    try:
        found = members(part, pack.without)
    except (UserError, TypeError, ValueError, AttributeError) as error:
        raise source.wrong(f"holds no whole dataset ({error})") from None
    if found != pack.files:
        other = sorted({*found.items()} ^ {*pack.files.items()}, key=str)[0][0]
        raise source.wrong(f"lists {other} otherwise than its manifests do")
    write_text(part / LIST, pack.text())
    config = {"results": str(results), "dataset": {**pack.dataset, "name": pack.name}, **pack.config}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_text(
        part / CONFIG,
        "# Written by retro dataset open. What `dataset` says is recorded; all else may be changed, or be said by a\n"
        f"# config of your own.\n{text}",
    )
    schema.load(part / CONFIG)


def _lacks(pack: Pack) -> str:
    return f"It was packed without {' and '.join(pack.without)}: train_all can be made. " if pack.without else ""


def _mega(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f} MB"


if __name__ == "__main__":
    command.run(main)

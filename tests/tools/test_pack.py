"""What `retro dataset pack` and `open` hold to: the same bytes each time, all or nothing, no file elsewhere."""

import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import yaml

from retro.base.artifacts import sha256, write_json, write_manifest, write_text
from retro.base.stage import UserError
from retro.config import schema
from retro.config.workflow import Workflow
from retro.dataset import packed
from retro.dataset.packed import LIST, Pack, parsed
from retro.tools import add_book, pack, verify

RAW = {
    "preset": "tiny",
    "dataset": {"name": "d", "sources": {"a": {"path": "a.jsonl"}}, "encoder": {"type": "static"}},
    "train": {"lr": 0.01},
}


class Made:
    """A dataset as preprocessing leaves it, of a few small files, in a working folder of its own."""

    def __init__(self, place: Path, raw: dict = RAW):
        self.place, self.folder = place, place / "results/d"
        write_text(place / "a.jsonl", '{"text": "a"}\n')
        write_text(place / "c.yaml", yaml.safe_dump(raw))
        self.facts = schema.load(place / "c.yaml").dataset.facts()
        counts = {"train": 7, "vocab_size": 300, "train_bytes": 3}
        for name, kind in {"tokenizer": "tokenizer", "embeddings/a": "embeddings", "database": "database"}.items():
            self.array(name).parent.mkdir(parents=True)
            self.array(name).write_bytes(kind.encode() * 100)
            self.describe(name, kind, counts)
        self.record(counts)

    def array(self, name: str) -> Path:
        return self.folder / name / f"{name.split('/')[0]}.bin"

    def describe(self, name: str, kind: str, counts: dict) -> None:
        """Write a manifest."""
        path = self.folder / name / "manifest.json"
        settings = {"tokenizer": self.facts["tokenizer"], "encoder": self.facts["encoder"]}
        inputs = [self.place / "a.jsonl"] if kind == "tokenizer" else []
        write_manifest(
            path, kind=kind, stage="x", files=[self.array(name)], inputs=inputs, settings=settings, counts=counts
        )

    def record(self, counts: dict) -> None:
        samples = schema.SampleSettings(**self.facts["samples"]).resolved(7, self.facts["chunk_length"])
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("manifest.json")]
        facts = {"kind": "recorded config", **self.facts, "samples": samples.facts(), "source_order": ["a"]}
        facts["tokenizer"] = {**self.facts["tokenizer"], **counts}
        facts["manifests"] = {name: sha256(self.folder / name) for name in names}
        for name in ("config.json", "config-gpt.json", "config-retro.json"):
            write_json(self.folder / name, facts)


@pytest.fixture
def made(tmp_path, monkeypatch) -> Made:
    found = Made(tmp_path / "first")
    monkeypatch.chdir(found.place)
    return found


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Another machine: a function that goes there, to an empty folder."""

    def go() -> Path:
        (tmp_path / "there").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "there")
        return tmp_path / "there"

    return go


def packing(name: str = "d.tar", without: tuple[str, ...] = ()) -> Path:
    pack.write("c.yaml", Path(name), list(without))
    return Path(name).resolve()


def left(place: Path) -> list[str]:
    """All files below a folder, but for the lock."""
    return sorted(
        path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file() and path.name != ".lock"
    )


def refused(path: Path, message: str) -> None:
    """The pack is refused with one message that names it, and leaves nothing."""
    with pytest.raises(UserError, match=message) as error:
        pack.open_pack(path, Path("results"))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert left(Path.cwd()) == []


@pytest.mark.parametrize("name", ["d.tar", "d.tar.zst"])
def test_the_same_dataset_gives_the_same_pack_and_the_pack_the_dataset(name, made, there, monkeypatch, capsys):
    file = packing(name)
    for path in made.folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert packing(f"again-{name}").read_bytes() == file.read_bytes()
    place = there()
    pack.open_pack(file, Path("results"))
    for path in left(made.folder):
        assert (place / "results/d" / path).read_bytes() == (made.folder / path).read_bytes()
    assert {*left(place / "results/d")} - {*left(made.folder)} == {"pack.json", "opened.yaml"}
    monkeypatch.setattr("sys.argv", ["verify", "results/d"])
    verify.main()
    assert "3 artifacts hold" in capsys.readouterr().out
    config = schema.load("results/d/opened.yaml")
    assert config.dataset.facts() == made.facts and config.train.lr == 0.01 and Workflow(config).packed


def test_an_opened_config_leads_to_the_folder_it_was_opened_in(made, there, tmp_path):
    file = packing()
    there()
    pack.open_pack(file, tmp_path / "scratch")
    assert Workflow(schema.load(tmp_path / "scratch/d/opened.yaml")).folder == str(tmp_path / "scratch/d")


def test_one_byte_that_is_not_as_it_was_is_refused_wherever_it_is(made, there):
    file, damaged = packing(), made.place / "damaged.tar"
    there()
    whole = file.read_bytes()
    for at in [*range(0, len(whole), 211), *range(512, 700, 3)]:
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(damaged, "(opy|Copy) the pack again")


@pytest.mark.parametrize("name", ["d.tar", "d.tar.zst"])
def test_a_pack_that_ends_too_early_is_refused(name, made, there):
    file, cut = packing(name), made.place / "cut"
    there()
    whole = file.read_bytes()
    for length in {0, 1, 511, 600, 5000, len(whole) // 2, len(whole) - 9} & {*range(len(whole))}:
        cut.write_bytes(whole[:length])
        refused(cut, "Copy the pack again")


def test_a_compressed_byte_that_is_not_as_it_was_is_refused(made, there):
    file, damaged = packing("d.tar.zst"), made.place / "damaged.tar.zst"
    there()
    whole = file.read_bytes()
    for at in range(0, len(whole), 97):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(damaged, "Copy the pack again")


def listing(path: Path, **changes: object) -> bytes:
    """The list of a pack, changed, with a sha256 that fits."""
    with tarfile.open(path) as tar:
        facts = json.load(tar.extractfile(LIST))["list"] | changes
    return packed.canonical({"list": facts, "sha256": packed.digest(facts)}).encode()


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in members:
            info.size, info.mtime = len(content), pack.THEN
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "a//b", ".hidden", "a\\b", "", "a/./b", "x\0y"]
)
def test_a_list_whose_names_lead_elsewhere_is_refused(name, made, there):
    file = packing()
    hostile = listing(file, files={name: {"size": 1, "sha256": "0" * 64}})
    path = tar_of(made.place / "hostile.tar", [(tarfile.TarInfo(LIST), hostile), (tarfile.TarInfo(name), b"x")])
    there()
    refused(path, "files")


@pytest.mark.parametrize(
    "change", [{"name": "../d"}, {"name": "a/b"}, {"format": 2}, {"without": ["tokens"]}, {"more": 1}]
)
def test_a_list_that_is_none_is_refused(change, made, there):
    path = tar_of(made.place / "hostile.tar", [(tarfile.TarInfo(LIST), listing(packing(), **change))])
    there()
    refused(path, next(iter(change)))


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_is_no_plain_file_is_refused(kind, made, there):
    file = packing()
    with tarfile.open(file) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
    odd = tarfile.TarInfo(members[1][0].name)
    odd.type, odd.linkname = kind, "/etc/passwd"
    path = tar_of(made.place / "hostile.tar", [members[0], (odd, b""), *members[2:]])
    there()
    refused(path, "which is no plain file")


def test_a_file_beside_those_listed_is_refused(made, there):
    file = packing()
    with tarfile.open(file) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
    more = (tarfile.TarInfo("more.bin"), b"x")
    between, after = (made.place / name for name in ("between.tar", "after.tar"))
    tar_of(between, [members[0], more, *members[1:]])
    tar_of(after, [*members, more])
    twice = made.place / "twice.tar"
    twice.write_bytes(file.read_bytes() * 2)
    there()
    refused(between, "'more.bin' where")
    refused(after, "is damaged before byte")
    refused(twice, "goes on after its last file")


def test_what_lists_more_than_its_manifests_is_refused(made, there):
    """A list that fits its files, of which one is not of the dataset."""
    file = packing()
    with tarfile.open(file) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
    files = parsed(members[0][1].decode(), "").facts()["files"]
    files["runs.bin"] = {"size": 1, "sha256": pack.hashlib.sha256(b"x").hexdigest()}
    hostile = listing(file, files=files)
    more = sorted([*members[1:], (tarfile.TarInfo("runs.bin"), b"x")], key=lambda each: each[0].name)
    path = tar_of(made.place / "hostile.tar", [(tarfile.TarInfo(LIST), hostile), *more])
    there()
    refused(path, "lists runs.bin otherwise than its manifests do")


def test_more_than_the_disk_has_room_for_is_refused_before_it_is_read(made, there):
    hostile = listing(packing(), files={"a.bin": {"size": 10**17, "sha256": "0" * 64}})
    path = tar_of(made.place / "hostile.tar", [(tarfile.TarInfo(LIST), hostile)])
    place = there()
    with pytest.raises(UserError, match="GB are free"):
        pack.open_pack(path, Path("results"))
    assert left(place) == []


def test_an_opening_that_was_killed_begins_again(made, there):
    file = packing()
    place = there()
    write_text(place / "results/.opening/d/config.json", "half")
    write_text(place / "results/.opening/d/rest", "half")
    pack.open_pack(file, Path("results"))
    assert not (place / "results/d/rest").exists() and left(place / "results/.opening") == []


def test_what_is_there_is_never_replaced(made, there, capsys):
    file = packing()
    with pytest.raises(UserError, match="results/d: exists already"):
        pack.open_pack(file, Path("results"))  # where it was made
    there()
    pack.open_pack(file, Path("results"))
    pack.open_pack(file, Path("results"))
    assert "was opened from this pack already" in capsys.readouterr().err


def test_what_is_not_as_it_was_made_is_not_packed(made):
    made.array("database").write_bytes(b"x" * 800)
    with pytest.raises(UserError, match=r"database\.bin: is not what its manifest says"):
        packing()
    write_text(made.place / "c.yaml", yaml.safe_dump({**RAW, "dataset": {**RAW["dataset"], "seed": 5}}))
    with pytest.raises(UserError, match=r"dataset\.seed is not what results/d was made with"):
        packing()
    (made.folder / "config.json").unlink()
    with pytest.raises(UserError, match="preprocessing is not done"):
        packing()
    with pytest.raises(UserError, match="wanted a name that ends in"):
        packing("d.zip")
    assert not list(made.place.glob("*d.*"))


def test_a_large_array_is_not_held_in_memory(made, there):
    with open(made.array("database"), "wb") as file:
        file.truncate(48 << 20)
    made.describe("database", "database", {"train": 7})
    made.record({"vocab_size": 300})
    tracemalloc.start()
    file = packing("d.tar.zst")
    there()
    pack.open_pack(file, Path("results"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_embeddings_may_stay_behind(made, there, monkeypatch, capsys):
    file = packing(without=("embeddings",))
    place = there()
    pack.open_pack(file, Path("results"))
    assert "train_all can be made" in capsys.readouterr().err
    assert [path for path in left(place) if "embeddings" in path] == ["results/d/embeddings/a/manifest.json"]
    monkeypatch.setattr("sys.argv", ["verify", "results/d"])
    verify.main()
    assert "embeddings: were not packed" in capsys.readouterr().out
    workflow = Workflow(schema.load("results/d/opened.yaml"))
    assert not [path for path in workflow.preprocessed() if path.endswith("embeddings.npy")]
    with pytest.raises(UserError, match="packed without embeddings, which this needs"):
        workflow.embeddings("", "embeddings.npy")
    assert workflow.validated().keys() == {"chunks", "database"}


@pytest.fixture
def opened_config(made, there):
    """The config of an opened dataset, as a mapping."""
    file = packing()
    there()
    pack.open_pack(file, Path("results"))
    return yaml.safe_load(Path("results/d/opened.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("chunk_length", 32), ("seed", 5), ("samples", {"seq_length": 1024}), ("sources", {"b": {"path": "b.jsonl"}})],
)
def test_another_setting_than_was_recorded_is_refused(key, value, opened_config):
    opened_config["dataset"][key] = value
    with pytest.raises(UserError, match=rf"dataset\.{key}.*results/d was made with .* opened from a pack") as error:
        Workflow(schema.parse(opened_config))
    assert "its sources are not here" in str(error.value)


def test_where_sources_lay_and_what_training_decides_may_differ(opened_config):
    opened_config["dataset"]["sources"]["a"]["path"] = "/elsewhere/a.jsonl"
    opened_config["dataset"]["shards"] = 3
    opened_config["train"]["lr"] = 0.5
    assert Workflow(schema.parse(opened_config)).packed


def test_an_opened_dataset_that_was_changed_does_not_hold(opened_config, monkeypatch, capsys):
    path = Path("results/d/config.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"seed": 1234', '"seed": 4321'), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["verify", "results/d"])
    with pytest.raises(UserError, match="what that held, open again"):
        verify.main()
    assert "config.json: is not as it was packed" in capsys.readouterr().out
    Path("results/d/pack.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"pack\.json: not the list of a pack"):
        Workflow(schema.parse(opened_config))


def test_a_book_is_not_added_where_its_sources_are_not(opened_config):
    with pytest.raises(UserError, match="was opened from a pack"):
        add_book.add(Path("results/d"), "new.txt", None, None, "1")


def test_a_pack_of_a_pack_is_the_first(opened_config):
    with pytest.raises(UserError, match="Copy that one instead"):
        pack.write("results/d/opened.yaml", Path("e.tar"), [])


def test_a_list_is_what_was_written(made):
    with tarfile.open(packing()) as tar:
        text = tar.extractfile(LIST).read().decode()
    assert isinstance(parsed(text, ""), Pack) and parsed(text, "").text() == text

"""Vectors that are kept: what was embedded once is not embedded again, and no byte of what is made depends on them."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.database import kept
from retro.database.embed import texts_of
from retro.database.encoders import open_encoder
from retro.database.kept import HEAD, Kept, Segment, keys_of, name_of
from retro.database.settings import EncoderSettings
from tests.database.stages import Corpus, stage

ROOT = Path(__file__).parents[2]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *map("##{}".format, "abeiklmotusr"),
]
ROW = np.dtype((np.float32, (8,)))
needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> dict[str, str]:
    """A tiny BERT with random weights: ONNX Runtime computes it."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=100, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return {"type": "transformers", "path": str(folder)}


class Editions(Corpus):
    """`main`, and `open`: the same documents in another order, of which every third has other words."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        lines = (folder / "main.jsonl").read_text(encoding="utf-8").splitlines()
        documents = [json.loads(line) for line in lines]
        for number, facts in enumerate(documents):
            facts["id"] = f"new-{number}"
            if number % 3 == 0:
                facts["text"] = " ".join(reversed(facts["text"].split()))
        random.Random(0).shuffle(documents)
        (folder / "open.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8")

    def texts(self, name: str) -> list[str]:
        """Of every chunk of a source."""
        from retro.corpus.mmididx import TokenStore
        from retro.corpus.tokenizers import Tokenizer

        table = read_manifest(self.manifest("chunks", name)).array("chunks.npy")
        store = TokenStore(read_manifest(self.manifest("tokens", name)).file("tokens.bin").with_suffix(""))
        return texts_of(store, table, Tokenizer.load(self.manifest("tokenizer")))


@pytest.fixture(scope="module")
def editions(tmp_path_factory) -> Editions:
    made = Editions(tmp_path_factory.mktemp("editions"))
    made.tokenize().chunk()
    return made


@pytest.fixture(scope="module")
def plain(editions, bert, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What the stage makes of each source without kept vectors."""
    folder = tmp_path_factory.mktemp("plain")
    return {name: embed(editions, name, bert, folder / name) for name in editions.names}


def options(editions: Editions, name: str, encoder: dict, folder: Path, keep: Path | None = None, **more) -> dict:
    """Those of the stage, into a folder from which inputs are as far as from any other."""
    made = editions.embed_options(name, **encoder)
    place = editions.folder / "D/embeddings" / f"{folder.parent.name}-{folder.name}"
    made |= {"output": place / "manifest.json", "blocks": place / "blocks", "block": 16}
    return made | ({"keep": keep} if keep else {}) | more


def embed(editions: Editions, name: str, encoder: dict, folder: Path, keep: Path | None = None, **more):
    """Run the stage; the bytes that it makes."""
    given = options(editions, name, encoder, folder, keep, **more)
    stage("retro.database.embed", **given)
    place = given["output"].parent
    assert not (place / "blocks").exists()
    found = {path: (place / path).read_bytes() for path in ("embeddings.npy", "manifest.json")}
    shutil.rmtree(place)
    return found


def taken(said: str) -> int:
    """How many chunks the log says were embedded before."""
    found = re.search(r"(\d+) chunks were embedded before", said)
    return int(found[1]) if found else 0


def test_a_new_edition_embeds_what_is_new(editions, bert, plain, tmp_path, capsys):
    """The same source again embeds nothing, another edition only chunks whose text stands in no older one."""
    keep, old, new = tmp_path / "keep", editions.texts("main"), editions.texts("open")
    assert embed(editions, "main", bert, tmp_path / "first", keep) == plain["main"]
    assert taken(capsys.readouterr().err) == 0
    assert embed(editions, "main", bert, tmp_path / "again", keep) == plain["main"]
    assert taken(capsys.readouterr().err) == len(old)
    assert embed(editions, "open", bert, tmp_path / "edition", keep) == plain["open"]
    shared = sum(text in set(old) for text in new)
    assert taken(capsys.readouterr().err) == shared
    assert len(new) / 3 < shared < len(new)


def test_texts_that_are_equal_are_embedded_once(bert, tmp_path):
    encoder, asked = open_encoder(EncoderSettings(**bert), 1), []

    class Counting:
        def encode(self, texts, advance):
            asked.extend(texts)
            return encoder.encode(texts, advance)

    store = Kept(tmp_path, 10**9, "x", ROW)
    texts, done = ["the mat", "a rat", "the mat", "a rat", "the mat"], []
    found = store.encode(texts, Counting(), done.append)
    assert sorted(asked) == ["a rat", "the mat"] and sum(done) == 5
    assert found.tobytes() == encoder.encode(texts).tobytes()


def test_without_the_folder_the_same_is_made(editions, bert, plain, tmp_path, capsys):
    keep = tmp_path / "keep"
    embed(editions, "main", bert, tmp_path / "first", keep)
    shutil.rmtree(keep)
    assert embed(editions, "open", bert, tmp_path / "second", keep) == plain["open"]
    assert taken(capsys.readouterr().err) == 0
    assert embed(editions, "open", bert, tmp_path / "third", tmp_path / "none", **{"keep-gb": 0}) == plain["open"]
    assert not (tmp_path / "none").exists()


def test_shards_side_by_side_keep_and_take(editions, bert, plain, tmp_path, warm):
    """Eight jobs at once, then the joining one; then eight of the other edition, which take what those kept."""
    keep, told = tmp_path / "keep", []
    for name in editions.names:
        notes, running = [], []
        for number in range(8):
            given = options(editions, name, bert, tmp_path / name, keep, shard=f"{number}-of-8")
            given["output"] = given["output"].parent / "shards" / f"{number}-of-8.json"
            words = [word for key, value in given.items() if key != "blocks" for word in (f"--{key}", text(value))]
            command = [warm.python, "-m", "retro.database.embed", *words]
            running.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
            notes.append(given["output"])
        told.append(sum(taken(each.communicate()[1]) for each in running))
        assert [each.returncode for each in running] == [0] * 8
        assert embed(editions, name, bert, tmp_path / name, keep, shards=notes) == plain[name]
    old, new = set(editions.texts("main")), editions.texts("open")
    assert told[1] >= sum(each in old for each in new)
    assert not list(keep.glob("*/.*"))


def text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("changed", ["max_word_pieces", "dtype", "vocab.txt", None])
def test_vectors_of_another_encoder_are_not_taken(editions, bert, tmp_path, capsys, changed):
    keep = tmp_path / "keep"
    embed(editions, "main", bert, tmp_path / "first", keep)
    other = dict(bert)
    if changed == "vocab.txt":
        other["path"] = str(shutil.copytree(bert["path"], tmp_path / "bert"))
        (tmp_path / "bert/vocab.txt").write_text("\n".join([*WORDS, "##n"]))
    elif changed:
        other |= {"max_word_pieces": 6} if changed == "max_word_pieces" else {"dtype": "float16"}
    wanted = embed(editions, "main", other, tmp_path / "plain")
    capsys.readouterr()
    assert (
        embed(editions, "main", other | {"batch_size": 3}, tmp_path / "second", keep)["embeddings.npy"]
        == wanted["embeddings.npy"]
    )
    assert bool(taken(capsys.readouterr().err)) == (changed is None)
    assert len(list(keep.iterdir())) == (1 if changed is None else 2)


def test_what_is_quicker_to_compute_or_depends_on_its_batch_is_not_kept(editions, tmp_path):
    from retro.database.engines import TorchEngine

    embed(editions, "main", {"type": "static", "width": 32}, tmp_path / "static", tmp_path / "keep")
    assert not (tmp_path / "keep").exists() and not TorchEngine.alone


def filled(folder: Path, count: int = 50) -> tuple[Kept, list[str], np.ndarray]:
    """A store of `count` vectors in one segment, their texts and the vectors."""
    texts = [f"text {number}" for number in range(count)]
    vectors = np.random.default_rng(count).standard_normal((count, 8)).astype(np.float32)
    store = Kept(folder, 10**9, "x", ROW)
    store.add([(keys_of(texts), vectors)])
    return store, texts, vectors


PLACES = {"magic": 3, "count": 17, "size": 26, "digest": 40, "hash": HEAD.size + 30 * 8, "vectors": -25, "last": -1}


@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_segment_gives_nothing_wrong_and_is_told_of(tmp_path, capsys, place):
    _, texts, vectors = filled(tmp_path)
    (path,) = tmp_path.glob("*/*.vectors")
    content = bytearray(path.read_bytes())
    content[PLACES[place]] ^= 4
    path.write_bytes(content)
    store = Kept(tmp_path, 10**9, "x", ROW)
    found, there = store.find(keys_of(texts))
    assert not found.any() or (there[found] == vectors[found]).all()
    assert f"{path}: " in capsys.readouterr().err
    assert not store.find(keys_of(texts))[0].any()


@pytest.mark.parametrize("left", [0, 10, HEAD.size, HEAD.size + 100, -1])
def test_a_segment_that_is_cut_is_not_used(tmp_path, capsys, left):
    _, texts, _ = filled(tmp_path)
    (path,) = tmp_path.glob("*/*.vectors")
    path.write_bytes(path.read_bytes()[:left])
    assert not Kept(tmp_path, 10**9, "x", ROW).find(keys_of(texts))[0].any()
    assert f"{path}: " in capsys.readouterr().err


def test_a_segment_that_goes_or_is_cut_while_it_is_open_ends_nothing(tmp_path, capsys):
    store, texts, _ = filled(tmp_path)
    store = Kept(tmp_path, 10**9, "x", ROW)
    (path,) = tmp_path.glob("*/*.vectors")
    os.truncate(path, HEAD.size + 50 * 8 + 5)
    assert not store.find(keys_of(texts))[0].any()
    store = filled(tmp_path)[0]
    store._open()
    next(tmp_path.glob("*/*.vectors")).unlink()
    assert not store.find(keys_of(texts))[0].any()


WRITER = """
import sys
import numpy as np
from pathlib import Path
from retro.database import kept
kept.SEGMENT = 32 * 2000
store = kept.Kept(Path(sys.argv[1]), 10**9, "x", np.dtype((np.float32, (8,))))
for start in range(0, 10**7, 4000):
    texts = [str(number) for number in range(start, start + 4000)]
    vectors = np.repeat(np.arange(start, start + 4000, dtype=np.float32)[:, None], 8, axis=1)
    store.add([(kept.keys_of(texts), vectors)])
"""


def test_kill_9_at_any_moment_leaves_whole_segments(tmp_path, capsys):
    for moment in range(3):
        before = len(list(tmp_path.glob("*/*.vectors")))
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT)
        while process.poll() is None and len(list(tmp_path.glob("*/*.vectors"))) <= before + moment:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    store = Kept(tmp_path, 10**9, "x", ROW)
    found, vectors = store.find(keys_of([str(number) for number in range(20_000)]))
    assert found.sum() >= 4000 and (vectors[found] == np.flatnonzero(found)[:, None]).all()
    assert capsys.readouterr().err == ""


def test_what_the_dead_left_unfinished_is_removed_in_time(tmp_path):
    filled(tmp_path)
    for name, age in (("old", 7200), ("new", 60)):
        path = tmp_path / "x" / f".{name}.vectors.77.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    filled(tmp_path, 60)
    assert [path.name for path in tmp_path.glob("x/.*")] == [".new.vectors.77.tmp"]


@pytest.fixture
def aged(tmp_path) -> dict[str, Path]:
    """Three segments of 20 other texts each, by their age."""
    made = {}
    for age, name in enumerate(["young", "older", "oldest"]):
        texts = [f"{name} {number}" for number in range(20)]
        Kept(tmp_path, 10**9, "x", ROW).add([(keys_of(texts), np.zeros((20, 8), np.float32))])
        (made[name],) = set(tmp_path.glob("x/*.vectors")) - set(made.values())
        os.utime(made[name], (time.time() - 100 * age,) * 2)
    return made


def left(aged: dict[str, Path], count: int) -> list[str]:
    """What there is after all but the bytes of so many segments were removed."""
    folder = aged["young"].parent
    kept.trim(folder.parent, folder, count * aged["young"].stat().st_size)
    return [name for name, path in aged.items() if path.exists()]


def test_the_oldest_go_first(aged):
    assert [left(aged, count) for count in (3, 2, 1, 0)] == [
        ["young", "older", "oldest"],
        ["young", "older"],
        ["young"],
        [],
    ]


@pytest.mark.parametrize(("limit", "segments"), [(100, 0), (1000, 1), (2000, 2), (10**9, 4)])
def test_one_job_writes_no_more_than_may_be_kept(tmp_path, monkeypatch, limit, segments):
    monkeypatch.setattr(kept, "SEGMENT", 32 * 16)
    texts = [str(number) for number in range(64)]
    Kept(tmp_path, limit, "x", ROW).add([(keys_of(texts), np.zeros((64, 8), np.float32))])
    found = [path.stat().st_size for path in tmp_path.glob("x/*.vectors")]
    assert len(found) == segments and sum(found) <= limit


def test_what_was_used_is_young(aged):
    folder = aged["young"].parent
    assert Kept(folder.parent, 10**9, "x", ROW).find(keys_of(["oldest 3"]))[0].all()
    assert left(aged, 2) == ["young", "oldest"]


def test_only_so_many_files_of_an_encoder_are_kept(aged, monkeypatch):
    monkeypatch.setattr(kept, "SEGMENTS", 2)
    assert left(aged, 3) == ["young", "older"]


def test_segments_are_of_limited_size_and_hold_each_text_once(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SEGMENT", 32 * 16)
    store, texts, vectors = filled(tmp_path)
    store.add([(keys_of(texts), vectors), (keys_of(texts), vectors)])
    segments = [Segment(path, ROW) for path in tmp_path.glob("x/*.vectors")]
    assert sorted(len(each.firsts) for each in segments) == [2, 16, 16, 16]
    found, there = Kept(tmp_path, 10**9, "x", ROW).find(keys_of(texts))
    assert found.all() and (there == vectors).all()


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own, and a function that remounts it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(words: str) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", words, "retro-test", folder], check=True)
        return folder

    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", folder], stderr=subprocess.DEVNULL)


@needs_mount
def test_a_full_disk_keeps_nothing_and_stops_nothing(editions, bert, plain, disk, tmp_path, capsys):
    keep = disk("size=16k")
    assert embed(editions, "main", bert, tmp_path / "full", keep) == plain["main"]
    assert "are not kept" in capsys.readouterr().err
    assert not list(keep.glob("*/*"))


@needs_mount
def test_a_folder_that_cannot_be_written_is_read(editions, bert, plain, disk, tmp_path, capsys):
    keep = disk("size=10m")
    embed(editions, "main", bert, tmp_path / "first", keep)
    disk("remount,ro")
    capsys.readouterr()
    assert embed(editions, "open", bert, tmp_path / "second", keep) == plain["open"]
    said = capsys.readouterr().err
    assert taken(said) > 0 and "vectors are not kept (Read-only file system)" in said


def test_a_file_in_the_place_of_the_folder_stops_nothing(editions, bert, plain, tmp_path, capsys):
    (tmp_path / "keep").write_text("")
    assert embed(editions, "main", bert, tmp_path / "file", tmp_path / "keep") == plain["main"]
    assert "vectors are not kept" in capsys.readouterr().err


def test_the_name_of_an_encoder_is_that_of_its_bits(bert):
    names = [name_of(open_encoder(EncoderSettings(**bert), threads), EncoderSettings(**bert)) for threads in (1, 2)]
    assert names[0] == names[1]

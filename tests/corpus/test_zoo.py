"""Unusual documents, each kind a source of its own, from text to neighbours; or one message that refuses them."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.stage import run
from retro.corpus.tokenizers import Tokenizer
from retro.dataset.store import ChunkStore
from tests.database.stages import Corpus, M, stage, write_corpus

pytestmark = pytest.mark.slow

LONG_WORDS = [
    "Donaudampfschifffahrtsgesellschaft",
    "Rindfleischetikettierungsüberwachung",
    "Grundstücksverkehrsgenehmigung",
]


def records(*texts: str, **more) -> bytes:
    """JSON lines with the texts' characters as they are."""
    return "".join(json.dumps({"text": text, **more}, ensure_ascii=False) + "\n" for text in texts).encode()


def plain(*texts: str) -> tuple[str, bytes, list[str]]:
    return "a.jsonl", records(*texts), list(texts)


GERMAN = "Über den Wolken muss die Freiheit wohl grenzenlos sein; Ärger, Öl und Füße bleiben darunter."
HEBREW = "בראשית ברא אלהים את השמים ואת הארץ׃ וְהָאָרֶץ הָיְתָה תֹהוּ וָבֹהוּ"
CHINESE = "道可道，非常道。名可名，非常名。𠀀𠮷是罕见的汉字。"
MIXED = (
    "Die Straße nach Köln; שלום עולם; 你好，世界。 नमस्ते दुनिया! naïve \U0001f469\u200d\U0001f467 e\u0301 \u200f\u202e"
)
HINDI = "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।"
CONTROLS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0xFEFF, 0xFFFE, 0xFFFD, 0x10FFFF]))
ENDS = "one\r\ntwo\nthree\rfour\u2028five\u2029six\x85seven\x0beight\x0cnine\r\n\r\n"
PASSES = {
    # source: (file, its bytes, the texts that must come out)
    "byte-order-mark": ("a.jsonl", b"\xef\xbb\xbf" + records("marked", "\ufeffinside"), ["marked", "\ufeffinside"]),
    "chinese": plain(CHINESE, CHINESE * 20),
    "controls": plain(CONTROLS, f"between{CONTROLS}words"),
    "duplicate-ids": ("a.jsonl", records("first", "second", "first", id="same"), ["first", "second", "first"]),
    "empty": ("a.jsonl", records("", "not empty", "\n \u2028\t"), ["not empty"]),
    "escaped-pair": ("a.jsonl", b'{"text": "\\ud83d\\ude00 \\u0000"}\n', ["\U0001f600 \x00"]),
    "german": plain(GERMAN),
    "hebrew": plain(HEBREW),
    "hindi": plain(HINDI),
    "ids-missing": ("a.jsonl", records("a") + records("b", id=None) + records("c", id=""), ["a", "b", "c"]),
    "line-ends": plain(ENDS, "\na\r\r\n"),
    "line-ends-of-records": ("a.jsonl", b'{"text": "a"}\r\n\r\n{"text": "b"}\n \n{"text": "c"}', ["a", "b", "c"]),
    "long-document": plain(" ".join(random.Random(1).choices(LONG_WORDS, k=60_000))),
    "mixed": plain(MIXED, MIXED * 30),
    "one-character": plain("a", "\x00", "\u200b", "ß", "א", "中", "𠀀"),
    "one-word": plain("x" * 100_000),
    "special-tokens": plain("<|endoftext|>", "a <|endoftext|><|endoftext|> b"),
    "text-file": ("a.txt", b"\xef\xbb\xbfOne line\r\nof a file\rand more\n", ["One line\nof a file\rand more\n"]),
}  # fmt: skip
REFUSED = {
    # kind: (file, its bytes, what the message says after "error: ")
    "lone surrogate": ("a.jsonl", b'{"text": "good"}\n{"text": "bad \\ud800 bad"}\n',
                       ["{path}, line 2: holds \\ud800, half of a character", "Correct it, or set dataset.on_error"]),
    "surrogates the wrong way round": ("a.jsonl", b'{"text": "\\ude00\\ud83d"}\n', ["{path}, line 1: holds \\ude00"]),
    "surrogate as an id": ("a.jsonl", b'{"id": "\\udc00", "text": "a"}\n', ["{path}, line 1: holds \\udc00"]),
    "nothing but empty documents": ("a.jsonl", records("", ""),
                                    ["source kind: no documents left", "2 empty", "Correct dataset.sources.kind"]),
    "no byte": ("a.jsonl", b"", ["{path}, line 1: the file is empty"]),
    "only a byte-order mark": ("a.jsonl", b"\xef\xbb\xbf", ["{path}, line 1: the file is empty"]),
    "an empty text file": ("a.txt", b"", ["source kind: no documents left of 1 records", "1 empty"]),
    "UTF-16": ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), ["{path}, line 1: not valid UTF-8 (byte 0xff"]),
    "old Mac line ends": ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', ["{path}, line 1: not valid JSON (Extra data"]),
    "a bare control character": ("a.jsonl", b'{"text": "a\x00b"}\n', ["{path}, line 1: not valid JSON (Invalid"]),
}  # fmt: skip


class Zoo(Corpus):
    """A source for each kind that passes, and `usual`, made-up sentences to find and to be found by."""

    def __init__(self, folder: Path):
        self.folder, self.names = folder, sorted([*PASSES, "usual"])
        self.sources = {name: {"path": str(folder / name), "train": True} for name in self.names}
        for name, (file, data, _) in PASSES.items():
            (folder / name).mkdir()
            (folder / name / file).write_bytes(data)
        (folder / "usual").mkdir()
        write_corpus(folder / "usual" / "a.jsonl", 40, seed=1)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    made = Zoo(tmp_path_factory.mktemp("zoo")).tokenize().chunk().embed().assemble().index()
    for split in ("train", "valid", "test"):
        made.neighbours(split, saved=4)
    return made


@pytest.fixture(scope="module")
def store(zoo) -> ChunkStore:
    pad = Tokenizer.load(zoo.manifest("tokenizer")).pad_id
    return ChunkStore(zoo.names, zoo.manifests("tokens"), zoo.manifests("chunks"), M, pad)


@pytest.mark.parametrize("name", PASSES)
def test_the_chunks_of_a_document_decode_to_its_text(zoo, store, name):
    number, wanted = zoo.names.index(name), PASSES[name][2]
    table, tokens = store.tables[number], store.stores[number].tokens
    tokenizer = Tokenizer.load(zoo.manifest("tokenizer"))
    ends = np.flatnonzero(np.diff(table["document"], append=-1)) + 1
    found = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        pieces = [
            tokens[at : at + size]
            for at, size in zip(*(table[column][start:end] for column in ("start", "length")), strict=True)
        ]
        found.append(tokenizer.decode(np.concatenate(pieces)))
    assert [text.encode() for text in found] == [text.encode() for text in wanted]
    assert np.add.reduceat(table["bytes"], np.r_[0, ends[:-1]]).tolist() == [len(text.encode()) for text in wanted]


@pytest.mark.parametrize("name", PASSES)
def test_every_chunk_has_a_unit_vector(zoo, name):
    vectors = read_manifest(zoo.manifest("embeddings", name)).array("embeddings.npy")
    assert len(vectors) == read_manifest(zoo.manifest("chunks", name)).counts["chunks"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_chunk_has_neighbours_of_other_documents(zoo, store, split):
    database = read_manifest(zoo.manifest("database"))
    rows, ids = database.array(f"{split}.npy"), read_manifest(zoo.manifest("neighbours", split)).array("ids.npy")
    assert len(rows) == len(ids) > 0
    assert (ids >= 0).all()
    found = database.array("database.npy")[ids]
    same = store.chunks(found)["document"] == store.chunks(np.asarray(rows))["document"][:, None]
    assert not (same & (store.source(found) == store.source(np.asarray(rows))[:, None])).any()


def test_what_is_odd_is_counted(zoo):
    counts = {name: read_manifest(zoo.manifest("tokens", name)).counts for name in PASSES}
    assert counts["empty"]["empty"] == 2
    assert counts["duplicate-ids"]["duplicate_ids"] == 2
    assert {name for name in PASSES if counts[name]["duplicate_ids"]} == {"duplicate-ids"}
    assert counts["long-document"]["bytes"] > 2_000_000


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_pass_is_refused_with_one_message(zoo, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.delenv("RETRO_DEBUG", raising=False)
    file, data, wanted = REFUSED[kind]
    path = tmp_path / file
    path.write_bytes(data)
    settings = {"source": {"path": str(path)}, "name": "kind", "split": {}, "seed": 1, "on_error": "stop"}
    output = tmp_path / "tokens" / "manifest.json"
    with pytest.raises(SystemExit) as caught:
        tokenizer = zoo.manifest("tokenizer")
        run(lambda: stage("retro.corpus.tokenize", settings=settings, tokenizer=tokenizer, output=output))
    assert caught.value.code == 1
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(message) == 1
    for part in wanted:
        assert part.format(path=path) in message[0]
    assert {left.name for left in output.parent.glob("*")} <= {"skipped.jsonl", "documents.jsonl"}

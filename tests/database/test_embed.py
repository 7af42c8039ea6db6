"""The embedding stage survives kill -9: a relaunch goes on and makes the same bytes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.database.encoders import open_encoder
from retro.database.settings import EncoderSettings
from tests.database.stages import STATIC, stage

ROOT = Path(__file__).parents[2]


def command(options: dict, python=sys.executable) -> list[str]:
    arguments = [python, "-m", "retro.database.embed"]
    for name, value in options.items():
        arguments += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return arguments


def into(corpus, folder: Path, **encoder) -> dict:
    """Options that embed the source `main` into a folder of its own beside the corpus."""
    options = corpus.embed_options("main", **encoder)
    folder = corpus.folder / "D" / folder
    return {**options, "blocks": folder / "blocks", "output": folder / "manifest.json", "block": 16}


def test_vectors_are_those_of_the_chunks_texts(corpus):
    from retro.corpus.mmididx import TokenStore
    from retro.corpus.tokenizers import Tokenizer

    options = into(corpus, "texts")
    stage("retro.database.embed", **options)
    manifest = read_manifest(options["output"], "embeddings")
    table = read_manifest(corpus.manifest("chunks", "main")).array("chunks.npy")
    store = TokenStore(read_manifest(corpus.manifest("tokens", "main")).file("tokens.bin").with_suffix(""))
    tokenizer, found = Tokenizer.load(corpus.manifest("tokenizer")), manifest.array("embeddings.npy")
    texts = [tokenizer.decode(store.tokens[row["start"] :][: row["length"]]) for row in table]
    assert (found == open_encoder(EncoderSettings(**STATIC), 1).encode(texts)).all()
    assert manifest.settings["encoder"]["identity"] == open_encoder(EncoderSettings(**STATIC), 1).identity
    assert not options["blocks"].exists()


def test_vectors_can_be_stored_as_float16(corpus):
    options = into(corpus, "half", **STATIC, dtype="float16")
    stage("retro.database.embed", **options)
    found = read_manifest(options["output"]).array("embeddings.npy")
    assert found.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1, atol=2e-3)


@pytest.mark.slow
def test_a_killed_job_goes_on_and_makes_the_same_bytes(corpus, warm):
    """SIGKILL with some blocks finished; then to the end. The encoder is the real one."""
    minilm = {"type": "minilm"}
    unbroken, broken = into(corpus, "unbroken", **minilm), into(corpus, "broken", **minilm)
    unbroken["block"] = broken["block"] = 8
    subprocess.run(command(unbroken, warm.python), cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(command(broken), cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(list(broken["blocks"].glob("*.npy"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not broken["output"].exists()
    kept = len(list(broken["blocks"].glob("*.npy")))
    ended = subprocess.run(command(broken, warm.python), cwd=ROOT, check=True, capture_output=True, text=True)
    assert f"going on after {kept} finished blocks" in ended.stderr
    for name in ("embeddings.npy", "manifest.json"):
        assert (broken["output"].parent / name).read_bytes() == (unbroken["output"].parent / name).read_bytes()


def test_blocks_of_another_encoder_are_not_used(corpus, capsys):
    """A job killed before it wrote its manifest, then another encoder: nothing of the first survives."""
    first, second = into(corpus, "changed", type="static", width=32), into(corpus, "changed", type="static", width=48)
    stage("retro.database.embed", **first)
    from retro.base.shards import Blocks

    with Blocks(first["blocks"], {"encoder": "another"}, (32,), np.float32) as blocks:
        blocks.write(0, np.zeros((16, 32)))
    stage("retro.database.embed", **second)
    assert "discarded 1 blocks" in capsys.readouterr().err
    found = read_manifest(second["output"]).array("embeddings.npy")
    assert found.shape[1] == 48
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("changed", [None, "vocab.txt", "tokenizer_config.json"])
def test_blocks_of_a_changed_encoder_folder_are_not_used(corpus, tmp_path, capsys, changed):
    """A job killed among its blocks; then other word pieces in the encoder's folder, its weights as they were."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=200, **sizes)).save_pretrained(tmp_path)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *map("##{}".format, "abklmotu"),
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    options = into(corpus, "folder", type="transformers", path=str(tmp_path))
    killed = options | {"shard": "0-of-2", "output": options["output"].parent / "0-of-2.json"}
    stage("retro.database.embed", **{name: value for name, value in killed.items() if name != "blocks"})
    options["blocks"] = killed["output"].with_suffix("")
    if changed:
        more = {"vocab.txt": "\n##x", "tokenizer_config.json": '{"do_lower_case": false}'}[changed]
        with open(tmp_path / changed, "a") as file:
            file.write(more)
    capsys.readouterr()
    stage("retro.database.embed", **options)
    said = capsys.readouterr().err
    assert ("discarded" in said) == bool(changed) and ("finished blocks" in said) == (not changed)


def test_chunks_of_another_length_are_refused(corpus):
    options = into(corpus, "length")
    options["settings"] = {"encoder": STATIC, "chunk_length": 99}
    with pytest.raises(UserError, match="chunks of 16 tokens, wanted 99"):
        stage("retro.database.embed", **options)
    options["settings"] = {"encoder": {"type": "statik"}, "chunk_length": 16}
    with pytest.raises(UserError, match=r"--settings: encoder\.type: wanted .* \(found .statik"):
        stage("retro.database.embed", **options)

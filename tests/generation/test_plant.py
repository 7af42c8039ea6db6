"""A fact put into the database after training lowers the loss of text that states it: real text, a trained model."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from retro.base.names import SPLITS
from retro.corpus.documents import split_of
from retro.generation.decoding import Sampler
from retro.generation.generate import Writer
from retro.generation.plant import measure
from retro.training.batches import Batcher
from tests.evaluation.built import LENGTH, M, build_dataset, configure, make_model, stage, write_run

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[2] / "data"
POINT, FACT = re.compile(r"highest point: [^\d\n]+ ([\d,]+) m\n"), "7,319"


def pages(file: str, count: int) -> list[dict]:
    with gzip.open(DATA / file, "rt", encoding="utf-8") as lines:
        found = [each for each in map(json.loads, lines) if each["section"] == "geography"]
    return [{key: each[key] for key in ("id", "text", "group", "title")} for each in found[:count]]


def train(dataset, steps: int = 250) -> torch.nn.Module:
    """A copy-ready model trained on random windows of the train split."""
    model, rng = make_model(dataset, "retro", scale=1.0).train(), np.random.default_rng(0)
    batcher = Batcher(dataset, "train", neighbours_used=2, retrieved_chunks=2, ids="stored", seed=1)
    optimizer, length = torch.optim.AdamW(model.parameters(), lr=4e-3), LENGTH // M
    for _ in range(steps):
        starts = rng.integers(0, len(dataset.rows("train")) - length, 16)
        batch = batcher.batch(starts[:, None] + np.arange(length + 1))
        losses = model(batch.tokens, batch.neighbours, batch.mask, batch.targets)
        loss = losses.sum() / (batch.targets >= 0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_a_planted_fact_lowers_the_loss_of_its_continuation(tmp_path, capsys):
    atlas, others = pages("factbook.jsonl.gz", 40), pages("factbook_2015.jsonl.gz", 40)
    rules = configure(tmp_path / "rules").dataset
    drawn = [split_of(each["group"], each["id"], True, rules.split, rules.seed) for each in atlas]
    held = [each for each, split in zip(atlas, drawn, strict=True) if SPLITS[split] == "test"]
    page = next(each for each in held if POINT.search(each["text"]))
    book = {"atlas": atlas, "atlas-old": [each for each in others if each["group"] != page["group"]]}
    at = POINT.search(page["text"]).start(1)
    text = page["text"][:at] + FACT + page["text"][POINT.search(page["text"]).end(1) :]
    assert all(FACT not in each["text"] for records in book.values() for each in records)
    old = build_dataset(tmp_path / "old", book)
    new = build_dataset(tmp_path / "new", book | {"planted": [{**page, "id": "planted", "text": text}]})
    write_run(old, "retro-s1", train(old))
    run = old.folder / "runs/retro-s1"
    # Begin a chunk before the fact, so that what this chunk finds is read when the fact is.
    before = old.tokenizer.encode_batch([text[: at - 1]])[0]
    stretch = text[len(old.tokenizer.decode(before[:-M])) : at + len(FACT) + 40]
    writers = {"old": Writer(run), "new": Writer(run, database=new.path)}
    made = {name: measure(writer, stretch, FACT, True) for name, writer in writers.items()}
    assert "planted" in made["new"]["found"] and "planted" not in made["old"]["found"]
    assert made["new"]["fact_bits"] < 0.7 * made["old"]["fact_bits"]
    assert made["new"]["bits_per_byte"] < made["old"]["bits_per_byte"]
    off = measure(writers["new"], stretch, FACT, False)
    assert off == {**measure(writers["old"], stretch, FACT, False)}

    file, output = tmp_path / "documents.jsonl", tmp_path / "figures.json"
    file.write_text(json.dumps({"text": stretch, "fact": FACT}) + "\n")
    given = ("--run", run, "--database", new.path, "--documents", file, "--output", output)
    stage("retro.generation.plant", *given)
    assert json.loads(output.read_text())[0]["new"] == made["new"]
    assert "bits for the fact" in capsys.readouterr().out
    assert list(writers["new"].write(stretch, 3, Sampler()))[-1]["type"] == "end"

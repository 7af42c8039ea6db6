"""A fact put into the database after training lowers the loss of text that states it: real text, a trained model."""

import gzip
import json
from pathlib import Path

import numpy as np
import torch

from retro.evaluation.decoding import Sampler
from retro.evaluation.plant import measure
from retro.evaluation.writer import Writer
from retro.training.batches import Batcher
from tests.evaluation.built import LENGTH, M, build_dataset, make_model, stage, write_run

DATA = Path(__file__).parents[2] / "data"
NEW = "7,519,264 sq km"


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


def test_a_planted_fact_lowers_the_loss_of_its_continuation(tmp_path, capsys):
    book = {"atlas": pages("factbook.jsonl.gz", 40), "atlas-old": pages("factbook_2015.jsonl.gz", 40)}
    old = build_dataset(tmp_path / "old", book)
    held = {old.store.document(int(row))["id"] for row in old.rows("test")}
    page = next(each for each in book["atlas"] if each["id"] in held)
    before, _, rest = page["text"].partition("total: ")
    text = f"{before}total: {NEW}" + rest[rest.index("\n") :]
    assert all(NEW not in each["text"] for records in book.values() for each in records)
    new = build_dataset(tmp_path / "new", book | {"planted": [{**page, "id": "planted", "text": text}]})
    write_run(old, "retro-s1", train(old))
    run, size = old.folder / "runs/retro-s1", len(old.tokenizer.encode_batch([before])[0])
    # From so far before the fact that it stands inside the window, after its first chunk.
    start = len(old.tokenizer.decode(old.tokenizer.encode_batch([before])[0][: size // M * M - M]))
    stretch = text[start : text.index(NEW) + len(NEW) + 40]
    writers = {"old": Writer(run), "new": Writer(run, database=new.path)}
    made = {name: measure(writer, stretch, NEW, True) for name, writer in writers.items()}
    assert "planted" in made["new"]["found"] and "planted" not in made["old"]["found"]
    assert made["new"]["fact_bits"] < 0.7 * made["old"]["fact_bits"]
    assert made["new"]["bits_per_byte"] < made["old"]["bits_per_byte"]
    off = measure(writers["new"], stretch, NEW, False)
    assert off == {**measure(writers["old"], stretch, NEW, False)}

    file, output = tmp_path / "documents.jsonl", tmp_path / "figures.json"
    file.write_text(json.dumps({"text": stretch, "fact": NEW}) + "\n")
    given = ("--run", run, "--database", new.path, "--documents", file, "--output", output)
    stage("retro.evaluation.plant", *given)
    assert json.loads(output.read_text())[0]["new"] == made["new"]
    assert "bits for the fact" in capsys.readouterr().out
    assert list(writers["new"].write(stretch, 3, Sampler()))[-1]["type"] == "end"

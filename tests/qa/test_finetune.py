"""Fine-tuning: what it reads, what it learns from, and that it goes on where it was cut off."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch

from retro.artifacts import read_manifest
from retro.errors import UserError
from retro.qa import finetune
from retro.qa.files import read
from retro.qa.settings import QuestionSettings
from retro.training.load import load_model
from tests.evaluation.built import stage

SETTINGS = {"examples": 48, "batch_size": 4, "lr": 3e-3, "warmup_samples": 4, "answer_tokens": 12, "candidates": 8}


@pytest.fixture
def tune(dataset, questions, tmp_path):
    """Fine-tune a run in a folder of its own; the folder."""

    def run(name: str, folder: str, **changed):
        settings = json.dumps({"instructions": [str(questions)], **SETTINGS, **changed})
        model, where = dataset.folder / "runs" / name / "model.json", tmp_path / folder
        given = ("--config", dataset.path, "--model", model, "--settings", settings)
        stage("retro.qa.finetune", *given, "--checkpoints", where / "checkpoints", "--output", where / "model.json")
        return where

    return run


def laid_out(dataset, questions, retrieves=True):
    settings = QuestionSettings(**{**SETTINGS, "instructions": [str(questions)]})
    examples = finetune.examples_of(settings.instructions, dataset)
    return settings, examples, finetune.lay_out(examples, dataset, settings, 2, retrieves, 1)


def test_held_out_places_are_never_trained_on(dataset, questions):
    splits = {each.group: each.split for each in read(questions, dataset)}
    assert set(splits.values()) == {"train", "valid", "test"}
    pages = {}  # the dataset's own split of pages
    for split in ("train", "valid", "test"):
        for row in dataset.rows(split):
            pages[dataset.store.document(int(row))["group"]] = split
    assert splits == {group: pages[group] for group in splits}
    _, examples, _ = laid_out(dataset, questions)
    assert {splits[each.group] for each in examples} == {"train"}


def test_the_own_page_is_never_shown_in_training(dataset, questions):
    _, examples, laid = laid_out(dataset, questions)
    chunks = {}  # text of each database chunk to the page it is of
    for row in dataset.database:
        tokens, mask = dataset.store.retrieved(np.array([[int(row)]]), 1)
        chunks.setdefault(tokens[0, 0][mask[0, 0]].tobytes(), set()).add(dataset.store.document(int(row))["id"])
    for example, each in zip(examples, laid, strict=True):
        assert each.seen.mask.any()
        for tokens, mask in zip(each.seen.tokens, each.seen.mask, strict=True):
            first = tokens[:16][mask[:16]]
            if first.size:
                assert example.document not in chunks[first.tobytes()]


def test_the_loss_is_of_answer_tokens_only(dataset, questions):
    _, examples, laid = laid_out(dataset, questions)
    tokens, targets, neighbours, mask = finetune.collate(laid[:4], np.zeros(4, bool), dataset)
    assert neighbours.shape == mask.shape and neighbours.shape[:2] == (4, tokens.shape[1] // 16)
    for row, (example, each) in enumerate(zip(examples[:4], laid[:4], strict=True)):
        kept = targets[row][targets[row] >= 0]
        assert kept.tolist() == each.answer.tolist() and kept[-1] == dataset.tokenizer.eod_id
        assert dataset.tokenizer.decode(kept.numpy()).strip() == example.answers[0]
        first = int((targets[row] >= 0).nonzero()[0])
        assert tokens[row, first + 1 - len(each.prompt) : first + 1].tolist() == each.prompt.tolist()
    model, _ = load_model(dataset.folder / "runs/retro-s1/model.json", dataset)
    losses = model(tokens, neighbours, mask, targets)
    assert (losses[targets < 0] == 0).all() and (losses[targets >= 0] > 0).all()


def test_hidden_neighbours_are_retrieval_off(dataset, questions):
    _, _, laid = laid_out(dataset, questions)
    model, _ = load_model(dataset.folder / "runs/retro-s1/model.json", dataset)
    tokens, targets, neighbours, mask = finetune.collate(laid[:3], np.array([True, False, False]), dataset)
    off = model(tokens, None, None, targets)
    on = model(tokens, neighbours, mask, targets)
    assert torch.allclose(on[0], off[0], atol=1e-5) and not torch.allclose(on[1], off[1], atol=1e-3)
    assert finetune.collate(laid[:3], np.ones(3, bool), dataset)[2:] == (None, None)


def test_an_epoch_reads_every_example_once(dataset, questions):
    settings, _, laid = laid_out(dataset, questions, retrieves=False)
    settings = settings.model_copy(update={"examples": 2 * len(laid), "batch_size": len(laid)})
    answers = sorted(each.answer.tolist() for each in laid)
    orders = []
    for step in range(2):
        targets = finetune.batch_of(step, laid, settings, 7, dataset)[1]
        orders.append([row[row >= 0].tolist() for row in targets])
        assert sorted(orders[-1]) == answers
    assert orders[0] != orders[1]


@pytest.mark.parametrize("name", ["retro-s1", "gpt-s1"])
def test_it_learns_and_loads_as_a_model(dataset, questions, tune, name):
    before, _ = load_model(dataset.folder / "runs" / name / "model.json", dataset)
    after, run = load_model(tune(name, "made") / "model.json", dataset)
    assert run["name"] == f"{name}-qa" and run["qa"]["examples"] == 48
    _, _, laid = laid_out(dataset, questions, retrieves=name == "retro-s1")
    batch = finetune.collate(laid, np.zeros(len(laid), bool), dataset)
    tokens, targets, neighbours, mask = batch
    with torch.no_grad():
        losses = [float(model(tokens, neighbours, mask, targets).sum()) for model in (before, after)]
    assert losses[1] < 0.7 * losses[0]


def test_the_same_bytes_again_and_after_a_stop(tune, monkeypatch, capsys):
    whole = tune("retro-s1", "whole")
    again = tune("retro-s1", "again")
    advance = finetune.Session.advance

    def stopped(session, batch):
        advance(session, batch)
        if session.step == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(finetune.Session, "advance", stopped)
    with pytest.raises(SystemExit) as exit_:
        tune("retro-s1", "cut")
    assert exit_.value.code == 128 + signal.SIGTERM
    monkeypatch.setattr(finetune.Session, "advance", advance)
    cut = tune("retro-s1", "cut")
    assert "resumed after step 7 of 12" in capsys.readouterr().err
    for name in ("model.safetensors", "model.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert read_manifest(cut / "model.json", "model").counts["qa"]["steps"] == 12


def test_a_kill_between_checkpoints_costs_steps_not_bytes(tune, monkeypatch):
    whole = tune("gpt-s1", "whole", checkpoint_interval=5)
    advance = finetune.Session.advance

    def killed(session, batch):
        if session.step == 8:
            raise KeyboardInterrupt  # nothing is saved on the way out
        advance(session, batch)

    monkeypatch.setattr(finetune.Session, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        tune("gpt-s1", "cut", checkpoint_interval=5)
    monkeypatch.setattr(finetune.Session, "advance", advance)
    cut = tune("gpt-s1", "cut", checkpoint_interval=5)
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_stops_and_writes_nothing(tune, tmp_path):
    with pytest.raises(UserError, match=r"wanted finite numbers. Lower qa.lr"):
        tune("gpt-s1", "made", lr=1e38, warmup_samples=0)
    assert not (tmp_path / "made/model.json").exists()
    shutil.rmtree(tmp_path / "made")


def test_no_example_to_train_on_is_said(dataset, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"question": "Where?", "answers": ["Here"], "doc_id": "unknown", "group": "x"}) + "\n")
    with pytest.raises(UserError, match="no example of the training split"):
        finetune.examples_of([str(path)], dataset)

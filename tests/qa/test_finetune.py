"""Fine-tuning: what it reads, what it learns from, and that it goes on where it was cut off."""

import itertools
import json
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.qa import finetune
from retro.qa.questions import read
from retro.qa.settings import QuestionSettings
from retro.training.weights import load_model, read_tensors
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


@pytest.fixture
def variant(dataset):
    """Write a run that is another one but for some of its settings."""
    made = []

    def write(name: str, base: str, **sections):
        made.append(shutil.copytree(dataset.folder / "runs" / base, dataset.folder / "runs" / name))
        facts = json.loads((made[-1] / "model.json").read_text())
        for section, changed in sections.items():
            facts["settings"][section] |= changed
        (made[-1] / "model.json").write_text(json.dumps(facts))

    yield write
    for folder in made:
        shutil.rmtree(folder)


def laid_out(dataset, questions, retrieves=True):
    settings = QuestionSettings(**{**SETTINGS, "instructions": [str(questions)]})
    examples = finetune.examples_of(settings.instructions, dataset)
    return settings, examples, finetune.lay_out(examples, dataset, settings, 2, retrieves, 1)


def tensors(batch):
    return batch.tokens, batch.targets, batch.neighbours, batch.mask


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


def test_what_is_too_long_to_be_read_or_learnt_is_counted(dataset, tmp_path, capsys):
    path, group = tmp_path / "long.jsonl", next(iter(dataset.rows("train")))
    short = {"question": "Area?", "answers": ["one"], "doc_id": dataset.store.document(int(group))["id"]}
    odd = [{"question": "coast river " * 80}, {"answers": ["wheat " * 40]}, {"contexts": ["iron law"] * 4}]
    path.write_text("".join(json.dumps({**short, **each}) + "\n" for each in [{}, *odd]))
    laid_out(dataset, path)
    said = capsys.readouterr().err
    assert "1 of 4 prompts are longer than 48 tokens: their beginning is not read" in said
    assert "1 of 4 answers are longer than 11 tokens: their end is not learnt" in said
    assert "1 of 4 examples have passages of more than 3 chunks: the rest is not shown" in said


def test_nothing_is_said_of_what_fits(dataset, questions, capsys):
    capsys.readouterr()
    laid_out(dataset, questions)
    said = capsys.readouterr().err
    assert "longer" not in said and "more than" not in said


def test_the_loss_is_of_answer_tokens_only(dataset, questions):
    _, examples, laid = laid_out(dataset, questions)
    tokens, targets, neighbours, mask = tensors(finetune.collate(laid[:4], np.zeros(4, bool), dataset))
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
    tokens, targets, neighbours, mask = tensors(finetune.collate(laid[:3], np.array([True, False, False]), dataset))
    off = model(tokens, None, None, targets)
    on = model(tokens, neighbours, mask, targets)
    assert torch.allclose(on[0], off[0], atol=1e-5) and not torch.allclose(on[1], off[1], atol=1e-3)
    assert finetune.collate(laid[:3], np.ones(3, bool), dataset).neighbours is None


def test_an_epoch_reads_every_example_once(dataset, questions):
    settings, examples, laid = laid_out(dataset, questions, retrieves=False)
    settings = settings.model_copy(update={"examples": 2 * len(laid), "batch_size": len(laid)})
    read = finetune.Questions(examples, laid, dataset, settings, 7)
    answers = sorted(each.answer.tolist() for each in laid)
    orders = []
    for step in range(2):
        targets = read.batch(np.arange(step * len(laid), (step + 1) * len(laid))).targets
        orders.append([row[row >= 0].tolist() for row in targets])
        assert sorted(orders[-1]) == answers
    assert orders[0] != orders[1]


def test_a_sample_depends_on_its_number_alone(dataset, questions):
    settings, examples, laid = laid_out(dataset, questions)
    settings = settings.model_copy(update={"neighbour_dropout": 0.5})
    read = finetune.Questions(examples, laid, dataset, settings, 7)
    together = read.hidden(np.arange(48))
    assert 0 < together.sum() < 48
    for number in (47, 3, 11):
        assert read.chosen(np.array([number])) == [read.chosen(np.arange(48))[number]]
        assert read.hidden(np.array([number])).tolist() == [together[number]]
    (targets,) = read.batch(np.array([-1])).targets
    assert (targets == -1).all()


@pytest.mark.parametrize("name", ["retro-s1", "gpt-s1"])
def test_it_learns_and_loads_as_a_model(dataset, questions, tune, name):
    before, _ = load_model(dataset.folder / "runs" / name / "model.json", dataset)
    after, run = load_model(tune(name, "made") / "model.json", dataset)
    assert run.name == f"{name}-qa" and run.qa["examples"] == 48
    _, _, laid = laid_out(dataset, questions, retrieves=name == "retro-s1")
    tokens, targets, neighbours, mask = tensors(finetune.collate(laid, np.zeros(len(laid), bool), dataset))
    with torch.no_grad():
        losses = [float(model(tokens, neighbours, mask, targets).sum()) for model in (before, after)]
    assert losses[1] < 0.7 * losses[0]


@contextmanager
def after_steps(count, what):
    """Do `what` in the middle of an optimizer step, once `count` have been made."""
    made = []

    def hook(*_):
        made.append(0)
        if len(made) == count:
            what()

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGUSR1, 75)])
def test_the_same_bytes_again_and_after_a_stop(tune, capsys, signum, status):
    whole = tune("retro-s1", "whole")
    again = tune("retro-s1", "again")
    with pytest.raises(SystemExit) as exit_, after_steps(7, lambda: signal.raise_signal(signum)):
        tune("retro-s1", "cut")
    assert exit_.value.code == status
    assert f"stopped by {signum.name} after step 7 of 12" in capsys.readouterr().err
    cut = tune("retro-s1", "cut")
    assert "start      step 7 of" in capsys.readouterr().err
    for name in ("model.safetensors", "model.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes() == (cut / name).read_bytes()
    assert read_manifest(cut / "model.json", "model").counts["qa"]["steps"] == 12


@pytest.mark.slow
def test_a_kill_between_checkpoints_costs_steps_not_bytes(tune):
    def killed():
        raise KeyboardInterrupt  # nothing is saved on the way out

    whole = tune("gpt-s1", "whole", checkpoint_interval=5)
    with pytest.raises(KeyboardInterrupt), after_steps(9, killed):
        tune("gpt-s1", "cut", checkpoint_interval=5)
    cut = tune("gpt-s1", "cut", checkpoint_interval=5)
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_with_dropout_resumes_to_the_same_bytes(tune, variant):
    variant("gpt-wet", "gpt-s1", model={"dropout": 0.2})
    whole = tune("gpt-wet", "whole")
    with pytest.raises(SystemExit), after_steps(5, lambda: signal.raise_signal(signal.SIGINT)):
        tune("gpt-wet", "cut")
    cut = tune("gpt-wet", "cut")
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    dry = tune("gpt-s1", "dry")
    assert (whole / "model.safetensors").read_bytes() != (dry / "model.safetensors").read_bytes()


def test_a_run_ends_at_its_time_limit(tune, variant, capsys):
    variant("gpt-short", "gpt-s1", train={"exit_minutes": 1e-9})
    with pytest.raises(SystemExit) as exit_:
        tune("gpt-short", "made")
    assert exit_.value.code == 75
    assert "stopped by its time limit after step 0 of 12" in capsys.readouterr().err


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_run_is_fine_tuned_in_its_own_precision(tune, variant, precision, dtype):
    variant("retro-own", "retro-s1", train={"precision": precision})
    seen = set()

    def hook(module, _, output):
        if isinstance(module, torch.nn.Linear) and module.training:
            seen.add(output.dtype)

    handle = register_module_forward_hook(hook)
    try:
        made = tune("retro-own", "made")
    finally:
        handle.remove()
    assert seen == {dtype}
    kept, _ = read_tensors(made / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_metrics_hold_the_learning_curve(tune, variant, capsys):
    variant("gpt-told", "gpt-s1", train={"log_interval": 1})
    made = tune("gpt-told", "made")
    lines = [json.loads(text) for text in (made / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"]) for line in lines] == [(step, 4 * step) for step in range(1, 13)]
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["lr"] == pytest.approx(SETTINGS["lr"] / 10)
    assert all(later["tokens"] > line["tokens"] for line, later in itertools.pairwise(lines))
    assert read_manifest(made / "model.json").counts["qa"]["loss"] == lines[-1]["loss"]
    assert "step 11/12" in (said := capsys.readouterr().err) and said.count(" left\n") == 12


def test_gradients_are_clipped_and_cut_as_in_training(tune, variant):
    variant("gpt-cut", "gpt-s1", train={"micro_batch_size": 3})
    whole, cut = (read_tensors(tune(name, name) / "model.safetensors")[0] for name in ("gpt-s1", "gpt-cut"))
    assert all(torch.allclose(whole[name], cut[name], atol=1e-3) for name in whole)
    variant("gpt-free", "gpt-s1", train={"clip": 0.0})
    free = read_tensors(tune("gpt-free", "free") / "model.safetensors")[0]
    assert not all(torch.equal(whole[name], free[name]) for name in whole)


def test_several_processes_are_refused(tune, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"retro.qa.finetune is one process, found 2. Start it without torchrun"):
        tune("gpt-s1", "made")


def test_a_loss_that_is_not_finite_stops_and_writes_nothing(tune, tmp_path):
    with pytest.raises(UserError, match=r"gpt-s1-qa: .* at step .*, examples q-.* Lower qa.lr, lengthen"):
        tune("gpt-s1", "made", lr=1e38, warmup_samples=0)
    assert not (tmp_path / "made/model.json").exists()
    shutil.rmtree(tmp_path / "made")


def test_no_example_to_train_on_is_said(dataset, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"question": "Where?", "answers": ["Here"], "doc_id": "unknown", "group": "x"}) + "\n")
    with pytest.raises(UserError, match="no example of the training split"):
        finetune.examples_of([str(path)], dataset)

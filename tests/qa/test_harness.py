"""lm-eval's adapter: its numbers are evaluation's and question answering's, and its tasks run without network."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.evaluation.bits_per_byte import bits_per_byte, group_documents
from retro.generation.decoding import Prompt, Sampler
from retro.qa import harness
from retro.qa.questions import Example, QuestionLookup, question_of, read
from retro.qa.reading import Lookups, Reader, Text, windows
from retro.qa.tasks import kind_of, pages
from retro.training.weights import load_model
from tests.evaluation.built import M, measure, stage


@pytest.fixture(scope="module", autouse=True)
def lm_eval():
    """Imported by the process alone that runs these tests: it takes seconds."""
    harness.find()


def ask(model, kind, *arguments, record=None):
    """What a model answers to requests of lm-eval."""
    from lm_eval.api.instance import Instance

    requests = [Instance(kind, record or {}, each, number) for number, each in enumerate(arguments)]
    return getattr(model, kind)(requests)


def read_lines(path):
    """JSON lines; only a line feed ends one."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def opened(dataset, run, retrieval=True, batch_size=8):
    path = dataset.folder / "runs" / run / "model.json"
    return harness.open_run(dataset.path, path, retrieval, batch_size, 1)[0]


@pytest.fixture(scope="module")
def losses(dataset):
    """Nats of the test split by the evaluation's own stage: mode → [C, m]."""
    return {mode: read_manifest(path, "losses").array("losses.npy") for mode, path in measure(dataset).items()}


@pytest.fixture(scope="module")
def models(dataset):
    gpt, on, off = opened(dataset, "gpt-s1"), opened(dataset, "retro-s1"), opened(dataset, "retro-s1", False)
    return {"none": gpt, "on": on, "off": off}


@pytest.mark.parametrize("mode", ["none", "on", "off"])
def test_a_text_costs_what_evaluation_says(dataset, losses, models, mode):
    """The split's first document, which evaluation too reads after nothing: all but the end that lm-eval has not."""
    rows = dataset.rows("test")
    documents = group_documents(rows, dataset.store.source(rows), dataset.store.chunks(rows))
    own = losses[mode][: documents.first[1]]
    nats = own[np.isfinite(own)].astype(np.float64)
    assert len(nats) > dataset.seq_length - M  # more than a window, which begins with a chunk of padding
    text = pages(dataset, "test")[0]["text"]
    (rolling,) = ask(models[mode], "loglikelihood_rolling", (text,))
    assert -rolling == pytest.approx(nats[:-1].sum(), rel=1e-5)
    per_byte = bits_per_byte(documents.nats(losses[mode])[0], documents.bytes[0])
    assert bits_per_byte(-rolling + nats[-1], documents.bytes[0]) == pytest.approx(per_byte, rel=1e-5)
    ((whole, _),) = ask(models[mode], "loglikelihood", ("", text))
    assert whole == pytest.approx(rolling, rel=1e-9)


def test_retrieval_counts(losses, models, dataset):
    text = pages(dataset, "test")[0]["text"]
    found = {mode: ask(model, "loglikelihood_rolling", (text,))[0] for mode, model in models.items()}
    assert abs(found["on"] - found["off"]) > 1


def test_a_continuation_reads_its_context_and_the_contexts_neighbours(dataset):
    """Against a plain forward pass over the padded context, whose one chunk was looked up."""
    model, run = load_model(dataset.folder / "runs/retro-s1/model.json", dataset)
    lookups = Lookups(dataset, run)
    context, answer = (dataset.tokenizer.encode_batch([text])[0].tolist() for text in ("Alba: coast", " river iron"))
    assert len(context) < M
    text = Text.after(context, answer, dataset)
    ((nats, likeliest),) = Reader(model, run, dataset, lookups).read([text])
    rows = lookups.rows(np.array(context))
    neighbours, mask = dataset.store.retrieved(rows[None, None], run.train.retrieved_chunks)
    tokens = torch.tensor([[dataset.tokenizer.pad_id] * (M - len(context)) + context + answer])
    with torch.no_grad():
        logits = model(tokens, torch.from_numpy(neighbours), torch.from_numpy(mask))[0, M - 1 : -1]
    wanted = -logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
    assert np.allclose(nats, wanted.numpy(), atol=1e-4)
    assert likeliest.tolist() == (logits.argmax(-1) == torch.tensor(answer)).tolist()


@pytest.mark.parametrize("mode", ["none", "on", "off"])
def test_what_is_written_is_read_as_the_likeliest(dataset, models, mode):
    """Chunks that fill while it writes are looked up then; read at once, they have the same neighbours."""
    model = models[mode]
    prompt = np.array(model.tok_encode("Alba: coast"))
    wish = Prompt(prompt, 40, Sampler(), -len(prompt) % M)
    written = [step.token for _, step in model.decoder([wish]).write_all([wish], 1)]
    assert len(written) > M
    ((_, likeliest),) = model.reader.read([Text.after(prompt.tolist(), written, dataset)])
    assert likeliest.all()
    written[5] = (written[5] + 1) % dataset.vocab_size
    ((_, likeliest),) = model.reader.read([Text.after(prompt.tolist(), written, dataset)])
    assert likeliest[:5].all() and not likeliest[5]


def test_batches_do_not_change_numbers(dataset):
    texts = [page["text"] for page in pages(dataset, "test")[:6]]
    asked = [(texts[0][:40], texts[1]), ("", texts[2][:9]), (texts[3] * 3, " coast"), (texts[4], "")]
    one, many = (opened(dataset, "retro-s1", batch_size=size) for size in (1, 5))
    first, second = (ask(model, "loglikelihood", *asked) for model in (one, many))
    assert [each[1] for each in first] == [each[1] for each in second] and first[3] == (0.0, True)
    assert [each[0] for each in first] == pytest.approx([each[0] for each in second], rel=1e-5)


@pytest.mark.parametrize("context", [0, 1, 15, 16, 17, 47, 48, 49, 200])
@pytest.mark.parametrize("answer", [1, 15, 16, 17, 64, 65, 150])
def test_every_token_is_scored_once_with_the_context_that_fits(dataset, context, answer):
    text, chunks = Text.after([5] * context, [6] * answer, dataset), 4
    covered, first = [], None
    for window in windows(text, M, chunks):
        first = window.start if first is None else first
        assert window.start * M < window.low and window.chunks(M) <= chunks
        covered += range(window.low, window.high)
    assert covered == list(range(text.first, len(text.tokens)))
    total = -(-(len(text.tokens) - 1) // M)
    if text.first > (total - chunks) * M > 0:
        assert first == total - chunks  # a full window


@pytest.fixture(scope="module")
def tuned(dataset, questions, tmp_path_factory):
    """A run of the dataset that was fine-tuned, a little, to answer."""
    folder = dataset.folder / "runs/retro-s1-qa"
    facts = {"instructions": [str(questions)], "examples": 16, "batch_size": 4, "candidates": 8, "answer_tokens": 8}
    model = dataset.folder / "runs/retro-s1/model.json"
    given = ("--config", dataset.path, "--model", model, "--settings", json.dumps(facts))
    stage("retro.qa.finetune", *given, "--checkpoints", folder / "checkpoints", "--output", folder / "model.json")
    return folder / "model.json"


@pytest.mark.parametrize("retrieval", ["on", "off"])
def test_a_fine_tuned_run_answers_as_in_question_answering(dataset, questions, tuned, tmp_path, retrieval):
    settings = json.dumps({"candidates": 8, "answer_tokens": 8})
    given = ("--config", dataset.path, "--model", tuned, "--settings", settings, "--questions", questions)
    stage("retro.qa.answer", *given, "--retrieval", retrieval, "--output", tmp_path / "answers.jsonl")
    lines = read_lines(tmp_path / "answers.jsonl")
    asked = [(line["prompt"], {"until": [], "max_gen_toks": 8}) for line in lines]
    found = ask(opened(dataset, "retro-s1-qa", retrieval == "on"), "generate_until", *asked)
    assert [text.strip() for text in found] == [line["prediction"] for line in lines]


@pytest.mark.parametrize("named", ["doc_id", "group"])
def test_pages_trained_on_are_kept_from_who_asks_as_in_question_answering(dataset, questions, tuned, tmp_path, named):
    """A task's record says what its question was made from; questions of the training split have a page to lose."""
    records = read_lines(questions)
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in each.items() if k != named}) + "\n" for each in records))
    examples = [each for each in read(path, dataset) if each.split == "train"][:6]
    asking = [{"doc_id": each.document, "group": each.group} for each in examples]
    lookups, free = (Lookups(dataset, load_model(tuned, dataset)[1]) for _ in range(2))
    lookup = QuestionLookup(dataset, lookups.k, 8, 1.0)
    wanted = lookup([question_of(each.prompt) for each in examples], examples)
    for example, record, rows in zip(examples, asking, wanted, strict=True):
        context = dataset.tokenizer.encode_batch([example.prompt])[0]
        lookups.ask(context.tolist(), record)
        assert lookups.rows(context).tolist() == rows.tolist() != free.rows(context).tolist()


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_both_requests_tell_who_asks(dataset, tuned, monkeypatch, kind):
    told = []
    monkeypatch.setattr(Lookups, "ask", lambda self, context, record: told.append((context, record)))
    model, second = opened(dataset, "retro-s1-qa"), {"generate_until": {"max_gen_toks": 1}, "loglikelihood": " coast"}
    prompt, record = "Question: Where?\nAnswer:", {"doc_id": "alba-economy"}
    ask(model, kind, (prompt, second[kind]), record=record)
    assert told == [(model.tok_encode(prompt), record)]


def test_stop_sequences_end_a_text(models):
    prompt = "coast river mountain"
    (whole,) = ask(models["off"], "generate_until", (prompt, {"max_gen_toks": 20, "until": []}))
    stop = whole[len(whole) // 2 :][:2]
    (cut,) = ask(models["off"], "generate_until", (prompt, {"max_gen_toks": 20, "until": [stop]}))
    assert cut == whole.split(stop)[0] and len(cut) < len(whole)
    wish = ("", {"do_sample": True, "temperature": 50.0, "max_gen_toks": 8})
    drawn = ask(models["off"], "generate_until", wish, wish)
    assert drawn == ask(models["off"], "generate_until", wish, wish) and drawn[0] != drawn[1]


@pytest.fixture(scope="module")
def folder(dataset, questions, tmp_path_factory):
    """The dataset's tasks."""
    made = tmp_path_factory.mktemp("tasks") / "words"
    stage("retro.qa.tasks", "--config", dataset.path, "--questions", questions, "--name", "words", "--output", made)
    return made


def test_tasks_say_what_their_questions_were_made_from(folder, dataset, questions):
    pages = {each.id: (each.document, each.group) for each in read(questions, dataset)}
    lines = [*read_lines(folder / "test.jsonl"), *read_lines(folder / "train.jsonl")]
    assert lines and all((line["doc_id"], line["group"]) == pages[line["id"]] for line in lines)


def test_choices_hold_the_answer_once(folder, dataset, questions):
    lines = read_lines(folder / "test.jsonl")
    assert len(lines) == 6 and len({line["gold"] for line in lines}) > 1
    for line in lines:
        assert line["choices"][line["gold"]] == line["answers"][0] and len(set(line["choices"])) == 4


def test_tasks_run_without_network(dataset, folder, losses, warm, tmp_path):
    """As a user starts it, in an environment from which no host can be reached."""
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere}
    command = [warm.python, "-m", "retro.qa.harness", "--config", dataset.path, "--include_path", folder]
    command += ["--model", dataset.folder / "runs/retro-s1/model.json", "--tasks", "words_choice", "words_open"]
    command += ["words_pages", "--output", tmp_path / "scores.json", "--samples", tmp_path / "samples.jsonl"]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert (found["run"], found["retrieval"], found["lm_eval"]) == ("retro-s1", "on", "0.4.13")
    assert found["results"].keys() == {"words_choice", "words_open", "words_pages"}
    assert "retro-s1, retrieval on: words_choice, acc: " in done.stdout
    texts, model = pages(dataset, "test"), opened(dataset, "retro-s1")
    nats = -sum(ask(model, "loglikelihood_rolling", *[(page["text"],) for page in texts]))
    size = sum(len(page["text"].encode()) for page in texts)
    assert found["results"]["words_pages"]["bits_per_byte,none"] == pytest.approx(bits_per_byte(nats, size), rel=1e-5)
    samples = read_lines(tmp_path / "samples.jsonl")
    right = [line["acc"] for line in samples if line["task"] == "words_choice"]
    assert found["results"]["words_choice"]["acc,none"] == pytest.approx(np.mean(right))


def test_questions_of_a_kind_differ_in_their_group():
    ids = [Example(f"fbqa-{group}-coastline", "?", ("x",), "test", group, None, ()) for group in ("in", "li")]
    assert kind_of(ids[0]) == kind_of(ids[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--include_path", "nowhere"], "nowhere: no such folder"),
        (["--limit", "0"], "--limit: found 0; wanted a whole number, at least 1"),
    ],
)
def test_wrong_wishes_are_said(dataset, words, said, capsys):
    model = dataset.folder / "runs/gpt-s1/model.json"
    with pytest.raises((UserError, SystemExit)) as refused:
        stage("retro.qa.harness", "--config", dataset.path, "--model", model, "--tasks", "x", *words)
    assert said in f"{refused.value} {capsys.readouterr().err}"


def test_without_lm_eval_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(UserError, match="make harness"):
        harness.find()

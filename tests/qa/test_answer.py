"""Answers, scores and the section of the report: from questions to HTML."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from retro.base.artifacts import write_text
from retro.base.stage import UserError
from retro.qa import score
from retro.qa.answer import answers, shown_first
from retro.qa.questions import Example, QuestionLookup, given, neighbours_of, padded, question_of, read, stack
from retro.report.read import read_csv
from retro.training.weights import load_model
from tests.evaluation.built import build_dataset, stage, write_run
from tests.evaluation.words import corpus

SETTINGS = {"splits": ["test"], "answer_tokens": 8, "candidates": 8, "neighbours_used": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def answered(dataset, questions, tmp_path_factory):
    """Answers of both untrained runs, by mode."""
    folder, found = tmp_path_factory.mktemp("answers"), {}
    for name, mode in (("retro-s1", "on"), ("retro-s1", "off"), ("gpt-s1", "none")):
        model = dataset.folder / "runs" / name / "model.json"
        found[mode] = folder / f"{mode}.jsonl"
        given_ = ("--config", dataset.path, "--model", model, "--settings", json.dumps(SETTINGS))
        given_ += ("--questions", questions, "--retrieval", mode, "--output", found[mode])
        stage("retro.qa.answer", *given_)
    return found


def test_questions_of_held_out_places_are_answered(answered, dataset, questions):
    wanted = [each.id for each in read(questions, dataset) if each.split == "test"]
    for mode, path in answered.items():
        lines = score.read(path)
        assert [line["id"] for line in lines] == wanted and {line["split"] for line in lines} == {"test"}
        assert all(bool(line["neighbours"]) == (mode == "on") for line in lines)
        assert all((line["rank"] is None) == (mode != "on") for line in lines)


def test_retrieval_finds_the_other_edition(answered):
    ranks = [line["rank"] for line in score.read(answered["on"])]
    assert np.mean([rank >= 0 for rank in ranks]) > 0.5


def test_a_gpt_retrieves_nothing(dataset, questions, tmp_path):
    given_ = ("--config", dataset.path, "--model", dataset.folder / "runs/gpt-s1/model.json", "--settings", "{}")
    with pytest.raises(UserError, match="retrieves nothing"):
        stage("retro.qa.answer", *given_, "--questions", questions, "--retrieval", "on", "--output", tmp_path / "a")


def test_batches_do_not_change_answers(dataset):
    model, _ = load_model(dataset.folder / "runs/retro-s1/model.json", dataset)
    lookup = QuestionLookup(dataset, 2, 8, 1.0)
    prompts = [f"Question: What is the total area in {place}: Economy?\nAnswer:" for place in ("Alba", "Borea", "Cera")]
    prompts.append("Area?")  # of another length
    seen = [given((text,), dataset, lookup.k, 2) for text in ("Total area: 1 sq km", "coast", "river 2", "wheat")]
    seen[1] = None
    one, all_ = (answers(model, dataset, prompts, seen, 8, size) for size in (1, 4))
    assert one == all_ and len({*one}) > 1


def test_a_page_can_be_barred_and_titles_decide(dataset):
    lookup = QuestionLookup(dataset, 3, 12, 1.0)
    question = "What is the total area in Alba: Economy?"
    found = [dataset.store.document(int(row)) for row in lookup([question])[0]]
    assert found[0]["id"].endswith("alba-economy")
    page = next(each["id"] for each in found if each["source"] == "atlas")
    own = Example("q", question, ("x",), "train", "g", page, ())
    barred = [dataset.store.document(int(row))["id"] for row in lookup([question], [own])[0] if row >= 0]
    assert page not in barred and barred


def test_prompts_fill_chunks_and_keep_their_end(dataset):
    short, long = padded("Area?", dataset, 8), padded("coast river " * 80 + "Area?", dataset, 8)
    assert len(short) % 16 == 0 and short[0] == dataset.tokenizer.pad_id
    assert len(long) == 48 and dataset.tokenizer.decode(long).endswith("Area?")
    passages = given(("coast " * 60,), dataset, 3, 2)
    tokens, mask = stack([passages, None], 2)
    assert tokens.shape == (2, 2, 3, 32) and not mask[1].any() and mask[0, 0].any()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "wanted a JSON object, found a list"),
        ('{"text": "x"}', "neither question nor instruction"),
        ('{"question": " ", "answers": ["x"]}', "field 'question' is blank"),
        ('{"question": "x", "answers": []}', "field 'answers' is empty"),
        ('{"question": "x", "answers": "y"}', "field 'answers' is text, wanted a list of texts"),
        ('{"instruction": "x"}', "no field 'output', only 'instruction'"),
    ],
)
def test_bad_lines_are_named(dataset, tmp_path, line, said):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "x", "answers": ["y"]}\n' + line + "\n")
    with pytest.raises(UserError, match=f"bad.jsonl, line 2: .*{said}"):
        read(path, dataset)


def test_instructions_and_given_passages(dataset, tmp_path):
    path = tmp_path / "given.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"instruction": "Say it.", "input": "A page.", "output": "It.", "group": "g"}) + "\n")
        file.write(json.dumps({"question": "Who?", "answers": ["I"], "contexts": ["One.", "Two."]}) + "\n")
    first, second = read(path, dataset)
    assert first.prompt == "Say it.\nAnswer:" and first.contexts == ("A page.",) and first.answers == ("It.",)
    assert second.prompt == "Question: Who?\nAnswer:" and second.contexts == ("One.", "Two.")


def lines_of(model, retrieval, right, tuned=False, seed=1, shots=0):
    """Answers to two questions of each of four places; `right`: which are correct."""
    return [
        {
            "run": f"{model}-s{seed}{'-qa' if tuned else ''}",
            "model": model,
            "seed": seed,
            "tuned": tuned,
            "retrieval": retrieval,
            "shots": shots,
            "split": "test",
            "id": str(i),
            "group": str(i // 2),
            "prompt": "<b>?",
            "answers": ["yes"],
            "prediction": "Yes." if good else "<i> yes\u2028</i>",
            "rank": (0 if good else 1) if retrieval == "on" else None,
        }
        for i, good in enumerate(right)
    ]


ALL, HALF, NONE = [True] * 8, [True, False] * 4, [False] * 8


def files(folder, *answers):
    """Each list of answers as a file."""
    paths = [folder / f"{number}.jsonl" for number in range(len(answers))]
    for path, lines in zip(paths, answers, strict=True):
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return paths


def test_scores_differences_and_report(tmp_path):
    paths = files(
        tmp_path,
        lines_of("retro", "on", ALL, tuned=True),
        lines_of("retro", "off", HALF, tuned=True),
        lines_of("retro", "on", NONE, shots=4),
        lines_of("gpt", "none", NONE, shots=4),
    )
    scores, differences = tmp_path / "qa.csv", tmp_path / "differences.csv"
    given_ = ("--answers", *paths, "--bootstrap", 200, "--scores", scores, "--differences", differences)
    stage("retro.qa.score", *given_)
    rows = read_csv(scores)
    assert [row["exact_match"] for row in rows] == [100, 50, 0, 0] and [row["shots"] for row in rows] == [0, 0, 4, 4]
    assert [row["match"] for row in rows] == [100, 100, 100, 100]
    assert [row["exact_match_low"] for row in rows] == [None] * 4  # of so few groups no interval is told
    assert rows[0]["recall@1"] == 100 and rows[2]["recall@1"] == 0 and rows[2]["recall@k"] == 100
    assert rows[1]["recall@1"] is None
    gains = {(row["model"], row["tuned"], row["kind"]): row["exact_match"] for row in read_csv(differences)}
    assert gains == {("retro", 1, "fine-tuning"): 100, ("retro", 1, "retrieval"): 50}
    part = tmp_path / "parts/qa.html"
    given_ = ("--scores", scores, "--differences", differences, "--answers", paths[2])
    stage("retro.report.qa", *given_, "--output-folder", tmp_path / "figures", "--part", part)
    html = part.read_text()
    assert "&lt;b&gt;?" in html and "<i> yes" not in html and 'id="figure-qa"' in html
    assert "as trained, 4 shown" in html and "Means over" not in html
    assert (tmp_path / "figures/qa.png").stat().st_size > 5000


def test_seeds_are_a_row(tmp_path):
    answers = [lines_of("retro", "on", right, tuned=True, seed=seed) for seed, right in ((1, ALL), (2, HALF))]
    models = score.by_model([*answers, lines_of("gpt", "none", NONE)])
    first, second = (score.row_of(seeds, 200) for seeds in models.values())
    assert (first["seeds"], first["questions"], first["exact_match"]) == (2, 8, 75)
    assert (second["seeds"], second["exact_match"]) == (1, 0)
    assert first["recall@1"] == 75


def test_intervals_are_of_groups_and_paired():
    rng = np.random.default_rng(0)
    groups = [str(i // 10) for i in range(200)]
    values = np.repeat(rng.random(20) < 0.5, 10).astype(float)[:, None]
    mean, low, high = score.intervals(values, groups, 2000)[0]
    assert mean == values.mean() and high - low > 0.3  # as 20 draws, not as 200
    assert np.isnan(score.intervals(values, ["one"] * 200, 10)[0][1])


def test_answers_to_other_questions_are_not_compared():
    ours, theirs = lines_of("a", "none", [True] * 4, tuned=True), lines_of("a", "none", [True] * 6)
    with pytest.raises(UserError, match="different questions"):
        score.differences(score.by_model([ours, theirs]), 10)
    with pytest.raises(UserError, match="different questions"):
        score.by_model([ours, lines_of("a", "none", [True] * 6, tuned=True, seed=2)])


def test_models_as_trained_are_shown_examples_of_the_training_split(dataset, questions):
    shown = shown_first(questions, dataset, 3)
    assert shown == shown_first(questions, dataset, 3) and shown.count("Question: ") == 3
    asked = {each.prompt: each for each in read(questions, dataset)}
    for part in shown.strip().split("\n\n"):
        prompt, _, answer = part.rpartition(" sq km")[0].partition("\nAnswer: ")
        example = asked[f"{prompt}\nAnswer:"]
        assert example.split == "train" and example.answers == (f"{answer} sq km",)
    assert shown_first(questions, dataset, 0) == ""


def test_few_shot_answers_are_a_line(dataset, questions, tmp_path):
    settings = json.dumps({**SETTINGS, "shots": 2})
    given_ = ("--config", dataset.path, "--model", dataset.folder / "runs/retro-s1/model.json", "--settings", settings)
    stage("retro.qa.answer", *given_, "--questions", questions, "--retrieval", "on", "--output", tmp_path / "a.jsonl")
    lines = score.read(tmp_path / "a.jsonl")
    assert {line["shots"] for line in lines} == {2} and not any("\n" in line["prediction"] for line in lines)
    assert all(line["prompt"].count("Question: ") == 1 for line in lines)


def test_without_a_page_the_groups_trained_pages_are_barred(dataset, questions):
    lookup = QuestionLookup(dataset, 4, 24, 1.0)
    example = next(each for each in read(questions, dataset) if each.split == "train")
    unknown = replace(example, document=None)
    question = question_of(example.prompt)

    def found(own):
        documents = [dataset.store.document(int(row)) for row in lookup([question], own)[0] if row >= 0]
        return {(each["source"], each["id"]) for each in documents if each["group"] == example.group}

    assert ("atlas", example.document) in found(None)
    assert ("atlas", example.document) not in found([example])
    assert {source for source, _ in found([unknown])} == {"atlas-old"}


@pytest.fixture(scope="module")
def two_editions(tmp_path_factory):
    """A dataset whose open book has the pages' own ids, with an untrained run."""
    given_ = corpus()
    for record in given_["atlas-old"]:
        record["id"] = record["id"].removeprefix("old-")
    found = build_dataset(tmp_path_factory.mktemp("editions") / "words", given_)
    write_run(found, "retro-s1")
    return found


def sources_of_own(dataset, examples, neighbours):
    """The sources from which each example is shown a chunk of a page with the id of its own."""
    known = {}
    for row in dataset.database:
        tokens, mask = dataset.store.tokens(np.array(int(row)))
        document = dataset.store.document(int(row))
        known.setdefault(tokens[mask].tobytes(), set()).add((document["source"], document["id"]))
    shown = []
    for example, each in zip(examples, neighbours, strict=True):
        first = [tokens[:16][mask[:16]].tobytes() for tokens, mask in zip(each.tokens, each.mask, strict=True)]
        shown.append({source for key in first if key for source, page in known[key] if page == example.document})
    return shown


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_open_book_is_open_at_the_page_that_is_asked_about(two_editions, questions, split, capsys):
    """In fine-tuning and in answering: what models are trained on is left out, an open book of the same ids is not."""
    examples = [each for each in read(questions, two_editions) if each.split == split]
    lookup = QuestionLookup(two_editions, 2, 24, 1.0)
    seen = neighbours_of(examples, two_editions, lookup, 2, without_own=True)
    shown = sources_of_own(two_editions, examples, seen)
    assert not any("atlas" in each for each in shown)
    assert np.mean(["atlas-old" in each for each in shown]) > 0.9
    lost = len(examples) if split == "train" else 0
    assert lookup.lost == pytest.approx(lost, abs=2)
    said = f"{lookup.lost} of {len(examples)} questions are not shown their own page"
    assert (said in capsys.readouterr().err) == (split == "train")


def test_a_page_of_the_open_book_is_shown_to_the_question_made_from_it(dataset, tmp_path):
    old = [record["id"] for record in corpus()["atlas-old"]]
    path = tmp_path / "old.jsonl"
    lines = [{"question": f"What is the whole area in {id_}?", "answers": ["x"], "doc_id": id_} for id_ in old]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    examples = read(path, dataset)
    lookup = QuestionLookup(dataset, 3, len(dataset.database), 0.0)
    asked = [question_of(each.prompt) for each in examples]
    assert lookup(asked, examples).tolist() == lookup(asked).tolist() and lookup.lost == 0

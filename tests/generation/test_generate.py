"""The command line of generation: batches, given passages, another book, what it refuses."""

import dataclasses
import json

import pytest

from retro.base.stage import UserError
from retro.generation.live import open_book, read_lines
from tests.evaluation.built import M, stage


def generate(dataset, *arguments, run="retro-s1"):
    stage("retro.generation.generate", "--run", dataset.folder / "runs" / run, "--tokens", 2 * M, *arguments)


def test_a_file_of_prompts_gives_json_lines_the_same_each_time(dataset, tmp_path, capsys):
    prompts = tmp_path / "prompts"
    prompts.write_text('Alba: Economy\n\n{"prompt": "Borea: Energy"}\n')
    made = []
    for name in ("a", "b"):
        chosen = ("--temperature", 1, "--top-k", 50, "--seed", 4)
        generate(dataset, "--prompts", prompts, "--output", tmp_path / name, *chosen)
        made.append((tmp_path / name).read_text())
    assert made[0] == made[1]
    lines = [json.loads(line) for line in made[0].splitlines()]
    assert [line["prompt"] for line in lines] == ["Alba: Economy", "Borea: Energy"]
    assert all(line["text"] in capsys.readouterr().out for line in lines[:1])
    found = lines[0]["lookups"][0]
    assert found["query"] == "Alba: Economy" and all(each["row"] >= 0 for each in found["neighbours"])


def test_given_passages_are_read_in_place_of_what_is_found(dataset, tmp_path, capsys):
    passages = tmp_path / "passages"
    passages.write_text('A line of text about iron.\n{"text": "%s", "title": "Long"}\n' % ("coast river " * 3 * M))
    generate(dataset, "--prompt", "Alba: Economy", "--neighbours-from", passages, "--show")
    shown = capsys.readouterr().err
    assert "1. passage 1 (given)" in shown and "2. Long (given)" in shown and "about iron" in shown


def test_the_same_dataset_is_another_book_and_gives_the_same_text(dataset, capsys):
    texts = []
    for more in ((), ("--database", dataset.path), ("--retrieval-step", M)):
        generate(dataset, "--prompt", "Alba: Economy", *more)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]


def test_repetition_is_held_back_where_that_is_wanted(dataset, tmp_path):
    texts = set()
    for name, more in (("plain", ()), ("barred", ("--no-repeat-ngram", 1)), ("less", ("--repetition-penalty", 9))):
        generate(dataset, "--prompt", "Alba: Economy", "--output", tmp_path / name, *more)
        texts.add(json.loads((tmp_path / name).read_text())["text"])
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("arguments", "run", "message"),
    [
        (("--top-k", -1), "retro-s1", "--top-k -1: wanted at least 0"),
        (("--repetition-penalty", 0.5), "retro-s1", "--repetition-penalty 0.5: wanted at least 1"),
        (("--no-repeat-ngram", -1), "retro-s1", "--no-repeat-ngram -1: wanted at least 0"),
        (("--retrieval-step", M + 1), "retro-s1", "wanted 1 to"),
        (("--retrieval-step", 1), "gpt-s1", "retrieves nothing"),
        (("--prompts", "/nowhere/prompts"), "retro-s1", "cannot be read"),
    ],
)
def test_refusals(dataset, arguments, run, message):
    prompt = () if "--prompts" in arguments else ("--prompt", "Alba")
    with pytest.raises(UserError, match=message):
        generate(dataset, *prompt, *arguments, run=run)


def test_a_line_that_is_no_prompt_is_named(tmp_path):
    path = tmp_path / "prompts"
    path.write_text('fine\n{"text": "no prompt"}\n')
    with pytest.raises(UserError, match="line 2"):
        read_lines(path, "prompt")


def test_a_book_of_another_chunk_length_is_refused(dataset):
    other = dataclasses.replace(dataset, facts={**dataset.facts, "chunk_length": M + 1})
    with pytest.raises(UserError, match="chunk_length is"):
        open_book(dataset.path, other)

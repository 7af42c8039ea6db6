"""Names that a config gives never meet the words that tables, folders and conditions have for themselves."""

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retro.base.names import WORD, seeded, tuned, unseeded, untuned
from retro.base.stage import UserError
from retro.config.checks import LONGEST, TAKEN, TUNINGS, wrong_names
from retro.config.layers import merged
from retro.config.schema import parse
from retro.evaluation.conditions import Condition
from retro.report.report_page import PARTS

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("dataset.name", "dataset.sources", "runs", "retrievals")
EXAMPLES = {
    "dataset.sources": ["all", "All", "tiny.0-of-2", "a.10-of-12"],
    "runs": ["retro-s1", "gpt-s0", "a-S12", "retro-s1-qa", "a-s12-instruct"],
    "retrievals": ["none", "on", "off", "On", "random", "shuffled", "stored", "database-0.05-s1", "Database-x"],
}  # fmt: skip
FREE = {
    "dataset.name": ["all", "on", "database-0.05-s1", "retro-s1"],
    "dataset.sources": ["on", "none", "book", "train", "test", "retro-s1", "database-0.05-s1", "allspice"],
    "runs": ["all", "on", "database-0.5", "retro-s", "retro-s1b", "qa", "retro-qa", "retro-s-instruct"],
    "retrievals": ["all", "retro-s1", "database", "once", "d", "bm25-qa"],
}


def config_with(key: str, *names: str):
    """A config that gives these names at a key."""
    thing = {"dataset.sources": {"path": "a.jsonl"}, "runs": {"architecture": "gpt"}, "retrievals": {}}
    value = names[0] if key == "dataset.name" else dict.fromkeys(names, thing[key])
    for part in reversed(key.split(".")):
        value = {part: value}
    return merged({"dataset": {"name": "d"} | ({} if "sources" in key else {"sources": {"a": {"path": "a"}}})}, value)


def refused(key: str, *names: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(config_with(key, *names))
    return str(caught.value)


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in EXAMPLES.items() for name in names])
def test_a_taken_word_is_refused_with_its_key_and_its_reason(key, name):
    reasons = [taken.why for taken in TAKEN if taken.key == key]
    message = refused(key, name)
    assert f"config: {key}: found {name!r}, which is " in message
    assert any(why in message for why in reasons) and "choose another name" in message


def test_every_taken_word_has_an_example():
    for taken in TAKEN:
        assert any(re.fullmatch(taken.pattern, name) for name in EXAMPLES[taken.key]), taken


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in FREE.items() for name in names])
def test_a_word_that_is_taken_elsewhere_is_free_here(key, name):
    parse(config_with(key, name))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["..", ".", "a b", "a/b", "on+k5", "off+copy", "a\n", "ä", "-a", "_a"])
def test_what_is_no_name_is_refused(key, name):
    assert f"{key}: " in refused(key, name) and "letters, digits and . _ - only" in refused(key, name)


@pytest.mark.parametrize("key", KEYS)
def test_a_name_longer_than_file_names_allow_is_refused(key):
    parse(config_with(key, "a" * LONGEST))
    message = refused(key, "a" * 300)
    assert f"{key}: found '{'a' * 20}'… of 300 characters" in message and "at most 64" in message and len(message) < 200


@pytest.mark.parametrize("key", KEYS[1:])
def test_names_that_differ_in_capitals_only_are_refused(key):
    message = refused(key, "book", "Book")
    assert f"{key}: found 'book' and 'Book'" in message and "capitals" in message


def test_every_wrong_name_is_told_at_once():
    raw = merged(config_with("dataset.sources", "all"), config_with("runs", "gpt-s1"))
    raw["dataset"]["sources"].pop("a")
    with pytest.raises(UserError) as caught:
        parse(raw)
    assert "'all'" in str(caught.value) and "'gpt-s1'" in str(caught.value)


NAMES = st.from_regex(WORD, fullmatch=True).map(lambda name: name[:20])


CONFIG = parse(config_with("dataset.name", "d"))


def allowed(key: str, *names: str) -> bool:
    return not list(wrong_names(CONFIG.model_copy(update={key: dict.fromkeys(names)})))


@given(NAMES | st.builds(seeded, NAMES, st.integers(0, 3)), NAMES, st.integers(0, 99), st.integers(0, 99))
def test_no_two_folders_of_runs_are_the_same(one, other, first, second):
    """Whatever a config may call its runs: trained, fine-tuned, or meant with all their seeds."""
    assume(one != other and allowed("runs", one, other))
    bases = [one, other]
    trained = {seeded(base, seed) for base in bases for seed in (first, second)}
    answering = {tuned(name, tuning) for name in trained for tuning in TUNINGS}
    assert len(trained) == 2 * len({first, second}) and len(answering) == len(trained) * len(TUNINGS)
    assert not trained & answering and not {*bases} & (trained | answering)


@given(NAMES, st.integers(0, 10**6), st.sampled_from(TUNINGS))
def test_seeds_and_tunings_are_read_back(name, seed, tuning):
    assume(allowed("runs", name))
    assert unseeded(seeded(name, seed)) == name == unseeded(name)
    assert untuned(tuned(name, tuning), tuning) == name


@given(NAMES)
def test_a_retrieval_is_never_another_condition(name):
    assume(allowed("retrievals", name))
    condition = Condition.parse(name)
    assert condition.name == name and condition.named and condition.fraction is None
    assert condition.manifest("test", [name]) == f"retrievals/{name}/neighbours/test/manifest.json"


def test_what_fine_tuning_is_called_is_no_other_folder_or_table_of_the_dataset():
    rules = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk")))
    others = set(re.findall(r"\{D\}/(?:figures/|parts/)?([a-z_]+)\b", rules))
    assert {"runs", "neighbours", "summary", "leakage"} <= others
    for name in TUNINGS:
        assert name in PARTS and name not in others

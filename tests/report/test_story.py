"""The headline says what the numbers say, and no more."""

from dataclasses import replace

from retro.report import story, style


def row(mode="on", percent=-12.0, low=-15.1, high=-9.0, seeds=1, **more):
    found = {"run": "retro", "twin": "gpt", "seed": "all", "retrieval": mode, "split": "test", "source": "all"}
    numbers = {"difference_percent": percent, "low": low, "high": high, "seeds": seeds}
    return {**found, **numbers, "seeds_min": percent - 1, "seeds_max": percent + 1, **more}


def test_a_clear_gain():
    first, second = story.headline([row(), row("random", 2.0, 1.0, 3.0), row("off", 4.0, 3.0, 5.0)], 85, 15)
    assert first == (
        "On held-out text (85 documents of 15 groups) RETRO needs 12.0 % fewer bits per byte than its GPT twin "
        "(95 % interval −15.1 … −9.0 %)."
    )
    assert "needs 2.0 % more, so it is what it looked up that helps" in second
    assert "switched off it needs 4.0 % more" in second


def test_an_interval_around_zero_is_no_gain():
    first, _ = story.headline([row(percent=-0.2, low=-0.6, high=0.3)], 85, 15)
    assert "no difference" in first and "can be told from chance" in first


def test_a_loss_is_called_one():
    first, _ = story.headline([row(percent=0.6, low=0.3, high=0.9)], 85, 85)
    assert "(85 documents) RETRO needs 0.6 % more bits per byte" in first


def test_random_neighbours_that_do_as_well_are_said_to():
    _, second = story.headline([row(percent=-0.7, low=-0.8, high=-0.6), row("random", -0.8, -0.9, -0.7)], 85, 15)
    assert "what it looked up does not help" in second


def test_few_documents_are_warned_of():
    _, second = story.headline([row()], 4, 4)
    assert "4 documents are too few" in second


def test_one_document_has_no_interval():
    first, _ = story.headline([row(low=None, high=None)], 1, 1)
    assert "interval" not in first and "12.0 % fewer" in first


ENOUGH = story.Reach("test", 18, "group", 358_000, 3.6)


def test_what_reaches_far_enough_has_a_figure_for_a_headline():
    assert story.advice(ENOUGH) is None


def test_few_documents_are_advised_on():
    first, then = story.advice(replace(ENOUGH, units=1, unit="document"))
    assert first == "Too few documents are held out to tell what retrieval buys."
    assert "test split has 1 document, and from fewer than 10 no interval" in then and "dataset.split.test" in then
    assert "preset" not in then


def test_little_text_is_advised_on():
    first, then = story.advice(replace(ENOUGH, read=12_345))
    assert first == "This is too little text to tell what retrieval buys."
    assert "12,345 different tokens" in then and "about 180 kB of text like this" in then
    assert "swap-book" in then and "`retro show`" in then


def test_a_short_training_on_much_text_is_advised_on():
    first, then = story.advice(replace(ENOUGH, read=12_345, whole=134_000))
    assert first == "Too little was trained on to tell what retrieval buys."
    assert "12,345 of 134,000 tokens" in then and "dataset.samples.epochs" in then and "book" not in then


def test_an_interval_that_is_none_says_why():
    few = row(low=None, high=None, units=6, unit="group")
    assert style.interval(few) == "too few (6)" and style.interval(row(low=None, high=None)) == ""
    assert "too few groups for an interval (6)" in story.drawn([few])
    assert story.drawn([row(units=18, unit="group")]) == "Intervals are a bootstrap over groups."


def test_no_twin_no_claim():
    assert "No RETRO run" in story.headline([], 3, 3)[0]


def test_seeds():
    assert "trained once" in story.seeds_sentence([row()])
    assert "3 times" in story.seeds_sentence([row(seeds=3)]) and "−13.0" in story.seeds_sentence([row(seeds=3)])


def test_open_and_closed_books():
    trained, book = {"train": True, "database": True}, {"train": False, "database": True}
    assert story.book({"a": trained})[0] == "closed"
    assert story.book({"a": trained, "b": book})[0] == "open" and "holds b," in story.book({"a": trained, "b": book})[1]


def recorded(tokens=None, database=None):
    source = {"fields": {"group": "country"}}
    counts = {"tokens/a/manifest.json": {"documents": 9, **(tokens or {})}, "database/manifest.json": database or {}}
    return {"source_order": ["a"], "sources": {"a": source}, "counts": counts}


def test_nothing_to_warn_of():
    none = {"evaluated_in_database": {"ids": {}, "texts": {}}}
    assert story.warnings(recorded()) == []
    assert story.warnings(recorded({"changed": 0, "unknown": 0, "absent": {"country": 0}}, none)) == []


def test_a_lossy_tokenizer_is_warned_of():
    (found,) = story.warnings(recorded({"changed": 3, "unknown": 7}))
    assert "changed 3 of 9 documents of a (7 tokens are unknown)" in found
    assert "cannot be compared" in found


def test_groups_that_are_absent_are_warned_of_and_other_fields_are_not():
    (found,) = story.warnings(recorded({"absent": {"country": 2, "section": 5}}))
    assert "2 records of a lack the field country" in found


def test_evaluated_documents_in_the_database_are_warned_of():
    shared = {"ids": {"book": 4}, "texts": {"book": 3, "a": 1}}
    (found,) = story.warnings(recorded(database={"evaluated_in_database": shared}))
    assert "4 of equal id in book, 3 of equal text in book, 1 of equal text in a" in found

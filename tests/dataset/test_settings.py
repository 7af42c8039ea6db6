"""How long a training is: as long as the corpus makes it, as the config says, and never longer than the preset's."""

import pytest

from retro.base.stage import UserError
from retro.config import layers, schema
from retro.dataset.settings import SampleSettings

SOURCES = {"name": "d", "sources": {"a": {"path": "a"}}}


def config(preset="tiny", **samples):
    return schema.parse({"preset": preset, "dataset": {**SOURCES, "samples": samples}})


def resolved(chunks, **samples):
    return config(**samples).dataset.samples.resolved(chunks, 64)


def test_a_config_that_says_nothing_follows_the_corpus():
    few = resolved(120)  # 15 samples of 8 chunks
    assert (few.train_samples, few.epochs) == (60, 4.0)
    assert few.train_samples * 8 <= 4 * 120  # never more often than it is read without a warning


def test_but_trains_on_no_more_than_the_preset_says():
    many = resolved(12_000)
    assert (many.train_samples, many.epochs) == (700, None)
    assert resolved(1400).train_samples == 700 and resolved(1398).train_samples == 699


@pytest.mark.parametrize(
    ("path", "samples"),
    [
        ("config/config.yaml", 700),
        ("config/closed-book.yaml", 700),
        ("config/factbook.yaml", 2400),
        ("config/factbook-sotu.yaml", 4800),
        ("config/emergence.yaml", 30000),
        ("config/tiny.yaml", 48),
    ],
)
def test_shipped_configs_train_on_what_they_always_did(path, samples):
    found = schema.load(path).dataset.samples
    fixed = found.resolved(7_000, 64)  # the default corpus has more chunks than that
    assert (fixed.train_samples, fixed.epochs) == (samples, None)
    kept = {"seq_length", "global_batch_size", "eval_interval", "eval_iterations"}
    assert fixed.facts() == {**found.model_dump(include=kept), "train_samples": samples}


def test_epochs_and_samples_are_what_is_asked_for():
    assert resolved(120, epochs=10).train_samples == 150
    assert resolved(12_000, epochs=1).train_samples == 1500  # of the user, so no preset bounds it
    assert resolved(120, train_samples=900).train_samples == 900


def test_a_short_training_is_validated_and_warmed_up_accordingly():
    few, tiny = resolved(120), config().dataset.samples
    assert (few.eval_interval, few.eval_iterations) == (20, 6)  # of 60 steps of one sample
    assert few.part(60) == 6 and few.interval(100) == 20
    many = resolved(12_000)
    assert (many.eval_interval, many.eval_iterations) == (tiny.eval_interval, tiny.eval_iterations)
    assert many.part(60) == 60 and many.interval(100) == 100
    shortest = resolved(1)
    assert min(shortest.train_samples, shortest.eval_interval, shortest.eval_iterations, shortest.interval(9)) == 1


def test_numbers_that_were_given_are_left_alone():
    given = resolved(120, train_samples=30)
    assert (given.eval_interval, given.part(60), given.interval(100)) == (200, 60, 100)


def test_two_numbers_at_one_place_are_refused():
    with pytest.raises(UserError, match=r"dataset.samples: epochs 2 and train_samples 9 .* leave one out"):
        config(epochs=2, train_samples=9)


@pytest.mark.parametrize(("under", "over"), [("epochs", "train_samples"), ("train_samples", "epochs")])
def test_of_two_layers_the_upper_one_counts(tmp_path, under, over):
    lower = tmp_path / "lower.yaml"
    lower.write_text(f"preset: tiny\ndataset:\n  sources: {{a: {{path: a}}}}\n  samples: {{{under}: 7}}\n")
    assert getattr(schema.load(lower).dataset.samples, under) == 7
    found = schema.parse({"preset": str(lower), "dataset": {"samples": {over: 3}}}).dataset.samples
    assert (getattr(found, over), getattr(found, under)) == (3, None)
    both = layers.laid({"dataset": {"samples": {under: 7}}}, {"dataset": {"samples": {"seq_length": 64}}})
    assert both["dataset"]["samples"] == {under: 7, "seq_length": 64}


def test_the_log_says_what_the_corpus_decided():
    settings = SampleSettings(max_samples=700, global_batch_size=1, eval_iterations=36)
    lines = list(settings.told(settings.resolved(120, 64), 120))
    assert lines[0] == "60 samples of 512 tokens: 4 epochs of 120 chunks, of at most 700"
    assert lines[1:] == [
        "eval_interval 200 becomes 20, for so short a training",
        "eval_iterations 36 becomes 6, for so short a training",
    ]
    assert not list(settings.told(settings.resolved(1400, 64), 1400))

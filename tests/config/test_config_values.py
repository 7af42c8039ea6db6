"""Every key of the config, given values of every wrong kind: taken, or refused by a message that names the key."""

import copy

import pytest

from retro.base import stage
from retro.base.artifacts import canonical
from retro.base.stage import UserError
from retro.config import schema
from retro.config.layers import with_presets

VALUES = [None, "", "x", "a{b}", "../up; touch x", "\0", -1, 0, 2**70, 10**9, -0.5, float("inf"), float("nan"), True]
VALUES += [[], ["x"], [None], [-1], [1, 1], {}, {"x": 1}, {1: 2}, [[]], {"a": {"path": "x"}, "b": None}]
GOOD = {
    "preset": "tiny",
    "dataset": {"name": "d", "sources": {"a": {"path": "a.jsonl"}}},
    "retrievals": {"r": {"retriever": "bm25"}},
    "runs": {"gpt": {"architecture": "gpt"}, "retro": {"architecture": "retro", "twin": "gpt"}},
}
GOOD = with_presets(GOOD, "config") | {"preset": None}  # its preset is read once
NAMED = {"sources": "a", "retrievals": "r", "runs": "retro"}


def keys(section=schema.Config, above=()):
    for attribute, field in section.model_fields.items():
        key = (*above, field.alias or attribute)
        yield key
        inside = stage.settings_in(field.annotation)
        if inside is not None:
            yield from keys(inside, (*key, NAMED[key[-1]]) if "dict" in str(field.annotation) else key)


def changed(key, value):
    raw = copy.deepcopy(GOOD)
    at = raw
    for part in key[:-1]:
        at = at.setdefault(part, {})
    at[key[-1]] = value
    return raw


@pytest.mark.parametrize("key", keys(), ids=".".join)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(key):
    refused = 0
    for value in VALUES:
        try:
            taken = schema.parse(changed(key, value))
        except UserError as error:
            assert key[-1] in str(error), f"{value!r}: {error}"
            refused += 1
        else:  # what stages are given
            canonical(
                [
                    taken.model_dump(mode="json"),
                    taken.dataset.facts(),
                    {name: run.facts() for name, run in taken.models().items()},
                ]
            )
    assert refused >= 5

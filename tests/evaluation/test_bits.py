"""Nats to bits per byte, by document."""

import math

import numpy as np
import pytest

from retro.base.names import CHUNK
from retro.evaluation.bits_per_byte import bits_per_byte, group_documents, perplexity, section


def chunk_table(documents, lengths, sizes):
    table = np.zeros(len(documents), CHUNK)
    table["document"], table["length"], table["bytes"] = documents, lengths, sizes
    return table


def test_a_uniform_model_over_bytes_has_eight_bits_per_byte():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8)
    assert perplexity(1000 * math.log(256), 1000) == pytest.approx(256)


def test_documents_of_different_sources_with_one_number_stay_apart():
    table = chunk_table([0, 0, 1, 1, 1], [4, 2, 4, 4, 1], [9, 5, 8, 8, 2])
    documents = group_documents(np.arange(10, 15), np.array([0, 0, 0, 1, 1]), table)
    assert documents.first.tolist() == [0, 2, 3]
    assert documents.row.tolist() == [10, 12, 13]
    assert documents.source.tolist() == [0, 0, 1]
    assert documents.tokens.tolist() == [6, 4, 5]
    assert documents.bytes.tolist() == [14, 8, 10]


def test_sums_by_document_leave_out_padding():
    table = chunk_table([0, 0, 1], [2, 1, 2], [1, 1, 1])
    documents = group_documents(np.arange(3), np.zeros(3, int), table)
    losses = np.array([[1, 2], [4, np.nan], [8, 16]], np.float32)
    assert documents.nats(losses).tolist() == [7, 24]


def test_an_empty_split_has_no_documents():
    documents = group_documents(np.zeros(0, int), np.zeros(0, int), np.zeros(0, CHUNK))
    assert len(documents) == 0 and documents.nats(np.zeros((0, 4), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("Algeria: Geography", "Geography"),
        ("A: B: Energy ", "Energy"),
        ("George Washington, 1790", None),
        (": x", None),
        ("x: ", None),
        ("12:30", None),
    ],
)
def test_section_is_what_follows_the_last_colon(title, wanted):
    assert section(title) == wanted

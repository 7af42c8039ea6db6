"""Scores as SQuAD's own script takes them, on a table of cases."""

import pytest

from retro.qa.score import exact_match, f1, match, normalise, rank


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Nile", "nile"),
        ("the  theatre of an era", "theatre of era"),  # articles are whole words
        ("A.", ""),
        ("U.S.A.", "usa"),
        ("An-Nur", "annur"),  # punctuation goes first, so no article is left
        ("2,381,740 sq km", "2381740 sq km"),
        ("3.5", "35"),
        (" \tLac\n Assal ", "lac assal"),
        ("Côte d'Ivoire", "côte divoire"),
        ("“Tahat”", "“tahat”"),  # only ASCII punctuation
        ("ÅLAND", "åland"),
        ("İ", "i̇"),
        ("", ""),
    ],
)
def test_normalisation(text, wanted):
    assert normalise(text) == wanted


@pytest.mark.parametrize(
    ("found", "answers", "exact", "overlap"),
    [
        ("the Nile.", ["Nile"], 1, 1),
        ("Nile River", ["Nile"], 0, 2 / 3),
        ("Nile", ["Amazon", "River Nile"], 0, 2 / 3),
        ("red red blue", ["red blue blue"], 0, 2 / 3),  # words count as often as they occur
        ("", ["Nile"], 0, 0),
        ("the", ["a"], 1, 1),  # nothing is left of either
        ("11 km", ["1 km"], 0, 1 / 2),
        ("Tahat", ["Chad"], 0, 0),
    ],
)
def test_scores(found, answers, exact, overlap):
    assert exact_match(found, answers) == exact
    assert f1(found, answers) == pytest.approx(overlap)


def test_rank_is_of_whole_words():
    texts = ["coastline: 11 km", "Coastline: 1 km (2015)", "1 km"]
    assert rank(texts, ["1 km"]) == 1
    assert rank(texts, ["2 km"]) == -1
    assert rank(texts, ["the"]) == -1


def test_match_is_of_an_answer_within_a_text():
    assert match("The answer is Nile.", ["Amazon", "the Nile"]) == 1
    assert match("11 km", ["1 km"]) == 0 and match("", ["Nile"]) == 0

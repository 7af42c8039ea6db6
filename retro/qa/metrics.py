"""Exact match and F1 of short answers, normalised as SQuAD does (Rajpurkar et al. 2016), and retrieval's recall."""

import re
import string
from collections import Counter

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, white space made single. In that order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(found: str, answers: list[str]) -> float:
    """1 if the normalised text equals one of the answers, else 0."""
    return float(any(normalise(found) == normalise(answer) for answer in answers))


def match(found: str, answers: list[str]) -> float:
    """1 if one of the answers stands in the text as words, whatever is around it (Mallen et al. 2023), else 0."""
    return float(rank([found], answers) == 0)


def f1(found: str, answers: list[str]) -> float:
    """The best over the answers of the harmonic mean of precision and recall of words."""
    return max((_f1(normalise(found).split(), normalise(answer).split()) for answer in answers), default=0.0)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def rank(texts: list[str], answers: list[str]) -> int:
    """Place, from 0, of the first text that holds one of the answers as words; −1 if none does."""
    wanted = [f" {normalise(answer)} " for answer in answers if normalise(answer)]
    for place, text in enumerate(texts):
        padded = f" {normalise(text)} "
        if any(answer in padded for answer in wanted):
            return place
    return -1

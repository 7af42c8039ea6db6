"""Questions and instructions: read, looked up, and laid out for a model.

Files are JSON lines, read and refused as a corpus is; each question belongs to a split.

Neighbours are chunks that resemble the question, of pages whose title does. A chunk from the middle of a page often
does not say what the page is about; its title does. So the candidates that the index finds are put in the order of
their own similarity plus `title_weight` times their title's.

A prompt is padded on its left to whole chunks, as in Wang et al. 2023 and InstructRetro: the question ends with a
chunk, whose neighbours are read from its last token on, where the answer begins. All chunks of a long prompt see the
same neighbours.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro.base.log import say
from retro.base.names import BOOK, SPLITS
from retro.base.stage import UserError
from retro.corpus.documents import split_of
from retro.corpus.files import Damaged
from retro.corpus.readers import Malformed, lines_of
from retro.corpus.records import check_characters, is_nothing, kind, name_of, names, text_of, texts_of
from retro.corpus.settings import SplitSettings
from retro.dataset.dataset import Dataset
from retro.dataset.store import pages, splits_of
from retro.retrieval.search import Searcher


@dataclass(frozen=True)
class Example:
    """A question or an instruction. `document`: the page it was made from; `contexts`: passages given with it."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    split: str
    group: str
    document: str | None
    contexts: tuple[str, ...]


READ = {
    "question": ("question", "answers", "contexts", "id", "group", "doc_id"),
    "instruction": ("instruction", "output", "input", "contexts", "id", "group", "doc_id"),
}  # the fields that are read, by the first of them


def example_of(record: Any, where: str) -> Example:
    """The example that a record is, its split not known yet. Raises `Damaged` for one that cannot be used."""
    if not isinstance(record, dict):
        raise Damaged(f"wanted a JSON object, found {kind(record)}; one a line is wanted")
    is_a = [name for name in READ if not is_nothing(record.get(name))]
    if len(is_a) != 1:
        found = "both question and instruction" if is_a else "neither question nor instruction"
        raise Damaged(f"has {found}, wanted one of them; its fields: {names(record)}")
    text, contexts = text_of(record, is_a[0]).strip(), texts_of(record, "contexts")
    if is_a == ["question"]:
        prompt, answers = f"Question: {text}\nAnswer:", texts_of(record, "answers")
        if not answers:
            raise Damaged("field 'answers' is empty or absent, wanted a list of texts")
    else:
        prompt, answers = f"{text}\nAnswer:", (text_of(record, "output"),)
        given = record.get("input")
        if not (is_nothing(given) or (isinstance(given, str) and not given.strip())):
            contexts = (text_of(record, "input"), *contexts)
    id_, group, document = (name_of(record, field) for field in ("id", "group", "doc_id"))
    check_characters("".join([prompt, id_, group, document, *answers, *contexts]))
    return Example(id_ or where, prompt, answers, "", group, document or None, contexts)


class Told:
    """Counts what is to be said of the lines of a file, with the names that it is said of."""

    def __init__(self) -> None:
        self.total, self.counts, self.names = 0, Counter[str](), dict[str, set[str]]()

    def add(self, what: str, *said_of: str) -> None:
        self.counts[what] += 1
        self.names.setdefault(what, set()).update(said_of)

    def lines(self) -> list[str]:
        """A line for each thing to be said."""
        return [f"{count} of {self.total} {what}: {names(self.names[what])}" for what, count in self.counts.items()]


def read(path: str | Path, dataset: Dataset, tell: bool = True) -> list[Example]:
    """The examples of a file, each in its page's split; without `doc_id`, in its group's.

    A question has `question` and `answers`; an instruction has `instruction`, `output` and, it may be, `input`. Those
    of pages that the dataset lacks, or has in several splits, are left aside; so are lines that cannot be used, if the
    dataset's on_error is skip. `tell`: say so. Raises UserError, naming the line, for one that cannot be used.
    """
    told, examples, ids = Told(), list[Example](), set[str]()
    for line, record in lines_of(Path(path)):
        where = f"{path}, line {line}"
        told.total += 1
        try:
            if isinstance(record, Malformed):
                raise Damaged(record.facts["reason"])
            example = example_of(record, where)
        except Damaged as error:
            if dataset.facts.get("on_error") != "skip":
                raise UserError(
                    f"{where}: {error}. Correct or remove the line, or set dataset.on_error to skip: such lines are "
                    f"then left out and counted."
                ) from None
            told.add("lines cannot be used, and are left out", f"line {line}: {error}")
            continue
        if example.id in ids:
            told.add("lines have the id of one before", example.id)
        used = next(fields for name, fields in READ.items() if not is_nothing(record.get(name)))
        if unread := record.keys() - set(used):
            told.add("lines have fields that are not read", *unread)
        ids.add(example.id)
        examples.append(example)
    placed = place(examples, dataset, told)
    for remark in told.lines() if tell else []:
        say(f"{path}: {remark}")
    return placed


def place(examples: list[Example], dataset: Dataset, told: Told) -> list[Example]:
    """The examples that can be used, their splits and groups filled in; `told`: of what they name.

    A page that is trained on or evaluated has the split that the dataset gave it; one of an open book has that of its
    group (or, where the dataset is split by document, of its id), as any other source would.
    """
    split, seed, found = SplitSettings(**dataset.facts["split"]), dataset.facts["seed"], []
    known = pages(dataset.store, {each.document for each in examples if each.document is not None})
    groups = splits_of(dataset.store, {each.group for each in examples if each.document is None and each.group})
    for each in examples:
        page = known.get(each.document) if each.document is not None else None
        if each.document is not None and (page is None or len(page.splits) > 1):
            what = "is in several splits" if page else "the dataset lacks"
            told.add(f"lines name a page (doc_id) that {what}, and are left aside", each.document)
            continue
        group = each.group or (page.group if page else each.id)
        named = page.group if page else each.group or each.prompt  # the same question in two files is in one split
        number = split_of(named, each.document or each.prompt, True, split, seed)
        number = next(iter(page.splits), number) if page else number
        if page is None and not each.group:
            told.add(
                "lines name neither page nor group: their split is drawn, and may be that of pages trained on", each.id
            )
        elif page is None and not groups[group]:
            told.add("lines name no page, and a group that the dataset lacks", group)
        elif page is None and len(groups[group] - {BOOK}) > 1:
            told.add("lines name no page, and a group that is in several splits: their split is drawn", group)
        found.append(replace(each, split=SPLITS[number], group=group))
    return found


class QuestionLookup:
    """Finds `k` database chunks a text; opened on first use."""

    def __init__(self, dataset: Dataset, k: int, candidates: int, title_weight: float, threads: int = 1):
        self.dataset, self.k, self.weight = dataset, k, title_weight
        self.candidates = min(max(candidates, k), len(dataset.database))
        self.searcher = Searcher(dataset, threads)
        self.lost = 0  # texts whose own page was found and not shown
        # (source, document) → title, and id and group, in an open book None
        self._titles: dict[tuple[int, int], tuple[str, str | None, str | None]] = {}
        self._trained = [dataset.facts["sources"][name]["train"] for name in dataset.sources]
        self._vectors: dict[str, np.ndarray] = {"": np.zeros(0)}

    def __call__(self, texts: list[str], own: Sequence[Example | None] | None = None) -> np.ndarray:
        """Global rows int64 [n, k], best first, ties by id, −1 for holes.

        `own`, the examples that ask: of sources that are trained on, never a chunk of the page that one was made from,
        or, where that is not known, of its group's pages. For held-out ones these are in no database. An open book is
        there to be found: nothing of it is left out.
        """
        vectors = self.searcher.encoder.encode_queries(list(texts))
        ids, scores = self.searcher.search_vectors(vectors, self.candidates)
        rows = self.dataset.neighbour_rows(ids)
        pages = self._pages(rows)
        found = np.full((len(texts), self.k), -1, np.int64)
        for i, vector in enumerate(vectors):
            mine, asking = pages[i], own[i] if own is not None else None
            bonus = np.array([self._similarity(vector, title) for title, _, _ in mine])
            total = np.where(rows[i] < 0, -np.inf, scores[i] + self.weight * bonus)
            barred = np.array([asking is not None and self._owns(asking, name, group) for _, name, group in mine])
            best = np.lexsort((ids[i], -total))[: self.k]
            self.lost += bool((barred & (rows[i] >= 0))[best].any())
            total[barred] = -np.inf
            order = np.lexsort((ids[i], -total))[: self.k]
            order = order[np.isfinite(total[order])]
            found[i, : len(order)] = rows[i, order]
        return found

    @staticmethod
    def _owns(example: Example, page: str | None, group: str | None) -> bool:
        return page == example.document if example.document is not None else group == example.group

    def _similarity(self, vector: np.ndarray, title: str) -> float:
        return float(vector.astype(np.float64) @ self._vectors[title]) if title else 0.0

    def _pages(self, rows: np.ndarray) -> list[list[tuple[str, str | None, str | None]]]:
        """Title and, in a source trained on, id and group of each row's document; the titles embedded, each once."""
        store, flat = self.dataset.store, np.maximum(rows, 0)
        source, number = store.source(flat), store.chunks(flat)["document"]
        for row, key in zip(
            flat.ravel(), zip(source.ravel().tolist(), number.ravel().tolist(), strict=True), strict=True
        ):
            if key not in self._titles:
                document = store.document(int(row))
                own = (document["id"], document.get("group")) if self._trained[key[0]] else (None, None)
                self._titles[key] = document.get("title") or "", *own
        new = sorted({title for title, _, _ in self._titles.values()} - self._vectors.keys())
        if new and self.weight:
            found = self.searcher.encoder.encode(new).astype(np.float64)
            self._vectors |= dict(zip(new, found, strict=True))
        elif new:
            self._vectors |= dict.fromkeys(new, np.zeros(self.searcher.encoder.width))
        keys = zip(source.tolist(), number.tolist(), strict=True)
        return [[self._titles[key] for key in zip(*pair, strict=True)] for pair in keys]


@dataclass(frozen=True)
class Neighbours:
    """Retrieved or given passages of one example: tokens int64 [k, r] and mask bool [k, r] of real ones.

    `left`: chunks of given ones for which there was no room.
    """

    tokens: np.ndarray
    mask: np.ndarray
    left: int = 0

    def texts(self, dataset: Dataset) -> list[str]:
        """What each says, best first; holes left out."""
        pairs = zip(self.tokens, self.mask, strict=True)
        return [dataset.tokenizer.decode(tokens[mask]) for tokens, mask in pairs if mask.any()]


def neighbours_of(
    examples: list[Example], dataset: Dataset, lookup: QuestionLookup, retrieved: int, without_own: bool
) -> list[Neighbours]:
    """Each example's neighbours: its contexts where some are given, else what a search for its prompt finds.

    `retrieved`: chunks a neighbour brings. `without_own`: never of the page that a question was made from, if that is
    trained on, so that in training it is as for held-out questions, whose pages are in no database.
    """
    searched = [i for i, example in enumerate(examples) if not example.contexts]
    found: dict[int, Neighbours] = {}
    if searched:
        asking = [examples[i] for i in searched]
        lost, rows = lookup.lost, lookup([question_of(each.prompt) for each in asking], asking if without_own else None)
        if lookup.lost > lost:
            say(f"{lookup.lost - lost} of {len(asking)} questions are not shown their own page, or group, trained on")
        for i, tokens, mask in zip(searched, *dataset.store.retrieved(rows, retrieved), strict=True):
            found[i] = Neighbours(tokens, mask)
    for i, example in enumerate(examples):
        if example.contexts:
            found[i] = given(example.contexts, dataset, lookup.k, retrieved)
    if cut := sum(each.left > 0 for each in found.values()):
        say(f"{cut} of {len(examples)} examples have passages of more than {lookup.k} chunks: the rest is not shown")
    return [found[i] for i in range(len(examples))]


def question_of(prompt: str) -> str:
    """What is searched for: the prompt without its frame."""
    return prompt.removeprefix("Question: ").removesuffix("\nAnswer:")


def given(contexts: tuple[str, ...], dataset: Dataset, k: int, retrieved: int) -> Neighbours:
    """Passages as neighbours: cut into chunks, each with what follows it, the first `k`."""
    m, pieces = dataset.chunk_length, []
    for tokens in dataset.tokenizer.encode_batch(list(contexts)):
        pieces += [tokens[start : start + retrieved * m] for start in range(0, len(tokens), m)]
    tokens = np.full((k, retrieved * m), dataset.tokenizer.pad_id, np.int64)
    mask = np.zeros(tokens.shape, bool)
    for i, piece in enumerate(pieces[:k]):
        tokens[i, : len(piece)], mask[i, : len(piece)] = piece, True
    return Neighbours(tokens, mask, max(0, len(pieces) - k))


def padded(prompt: str, dataset: Dataset, room: int) -> np.ndarray:
    """A prompt's tokens int64, padded on the left to whole chunks; the end of one too long to leave `room` tokens."""
    m = dataset.chunk_length
    tokens = dataset.tokenizer.encode_batch([prompt])[0][-longest(dataset, room) :]
    return np.concatenate([np.full(-len(tokens) % m, dataset.tokenizer.pad_id, np.int64), tokens])


def longest(dataset: Dataset, room: int) -> int:
    """Tokens of the longest prompt that leaves `room` of them, in whole chunks."""
    m = dataset.chunk_length
    return max(m, (dataset.seq_length - room) // m * m)


def tell_cut(prompts: list[str], answers: list[str], dataset: Dataset, most: int) -> None:
    """Say how many prompts lose their beginning, and how many answers, learnt from, their end."""
    for texts, room, said in (
        (prompts, longest(dataset, most), "prompts are longer than {} tokens: their beginning is not read"),
        ([f" {each}" for each in answers], most - 1, "answers are longer than {} tokens: their end is not learnt"),
    ):
        cut = sum(len(tokens) > room for tokens in dataset.tokenizer.encode_batch(texts))
        if cut:
            say(f"{cut} of {len(texts)} {said.format(room)}; see qa.answer_tokens")


def stack(seen: Sequence[Neighbours | None], chunks: int) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Neighbours and mask [b, l, k, r], the same for every chunk; None: hidden from that example."""
    real = next((each for each in seen if each is not None), None)
    if real is None:
        return None, None
    tokens = np.stack([real.tokens if each is None else each.tokens for each in seen])  # (b, k, r)
    mask = np.stack([np.zeros_like(real.mask) if each is None else each.mask for each in seen])  # (b, k, r)
    shape = (len(seen), chunks, *real.tokens.shape)
    repeated = [np.broadcast_to(x[:, None], shape).copy() for x in (tokens, mask)]
    return torch.from_numpy(repeated[0]), torch.from_numpy(repeated[1])

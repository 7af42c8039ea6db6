"""Text is written token by token; what is looked up is read exactly as in training."""

import numpy as np
import pytest
import torch

from retro.base.names import UNDATED
from retro.generation.decoding import NONE_FOUND, Decoder, Found, Prompt, Query, Sampler
from retro.generation.live import LiveLookup, excluded_documents, seen_until
from retro.generation.sample import choose, document_tokens
from tests.evaluation.built import LENGTH, M, make_model

PROMPT = np.arange(20, 20 + M + 3)


class Recorder:
    """Looks up the same two chunks each time and remembers what was asked."""

    def __init__(self, dataset):
        self.rows, self.asked = dataset.database[[3, 8]], []

    def __call__(self, queries):
        self.asked += [query.tokens.tolist() for query in queries]
        return [Found(self.rows, np.array([0.5, 0.4])) for _ in queries]


def decoder(dataset, lookup=None, architecture="retro", seq_length=LENGTH):
    shape = {"seq_length": seq_length, "eod_id": dataset.tokenizer.eod_id, "retrieved_chunks": 2}
    return Decoder(make_model(dataset, architecture), dataset.store, lookup=lookup, **shape)


def written(steps):
    return [step.token for step in steps]


def test_greedy_tokens_are_those_of_one_pass_over_the_whole_text(dataset):
    lookup = Recorder(dataset)
    tokens = written(decoder(dataset, lookup).write(PROMPT, 20, Sampler()))
    whole = np.concatenate([PROMPT, tokens])[:-1]
    size = -(-len(whole) // M) * M
    padded = np.pad(whole, (0, size - len(whole)))
    rows = np.full((1, size // M, 2), -1)
    rows[0, : len(whole) // M] = lookup.rows
    neighbours, mask = map(torch.from_numpy, dataset.store.retrieved(rows, 2))
    with torch.no_grad():
        logits = make_model(dataset, "retro")(torch.from_numpy(padded)[None], neighbours, mask)[0]
    assert tokens == logits[len(PROMPT) - 1 : len(whole)].argmax(-1).tolist()


def test_each_chunk_is_looked_up_once_as_soon_as_it_is_full(dataset):
    lookup = Recorder(dataset)
    steps = list(decoder(dataset, lookup).write(PROMPT, 2 * M, Sampler()))
    whole = [*PROMPT.tolist(), *written(steps)]
    assert lookup.asked == [whole[:M], whole[M : 2 * M], whole[2 * M : 3 * M]]
    at = {number: step for step, each in enumerate(steps) for number, _ in each.looked_up}
    assert at == {0: 0, 1: 2 * M - len(PROMPT), 2: 3 * M - len(PROMPT)}


def test_padding_lets_a_short_prompt_be_looked_up_at_once(dataset):
    lookup = Recorder(dataset)
    next(decoder(dataset, lookup).write(PROMPT[:5], 1, Sampler(), padding=M - 5))
    assert lookup.asked == [PROMPT[:5].tolist()]


def test_text_longer_than_the_window_goes_on(dataset):
    lookup = Recorder(dataset)
    tokens = written(decoder(dataset, lookup, seq_length=2 * M).write(PROMPT, 3 * M, Sampler()))
    assert len(tokens) == 3 * M and len(lookup.asked) == 4


def test_without_lookup_a_retro_writes_what_its_twin_writes(dataset):
    off = written(decoder(dataset).write(PROMPT, 12, Sampler()))
    assert off == written(decoder(dataset, architecture="gpt").write(PROMPT, 12, Sampler()))


class Content:
    """Finds chunks by what is asked, for some nothing; remembers which texts asked at one time."""

    def __init__(self, dataset):
        self.database, self.asked = dataset.database, []

    def __call__(self, queries):
        self.asked.append([query.text for query in queries])
        sums = [int(query.tokens.sum()) for query in queries]
        found = [Found(self.database[[each % 7, each % 11 + 7]], np.array([0.5, 0.4])) for each in sums]
        return [NONE_FOUND if each % 5 == 0 else one for each, one in zip(sums, found, strict=True)]


class Noting(Sampler):
    """Chooses as ever, and remembers the logits."""

    def choose(self, logits, text):
        self.__dict__.setdefault("seen", []).append(logits)
        return super().choose(logits, text)


@pytest.mark.parametrize(("architecture", "step"), [("retro", None), ("retro", 5), ("gpt", None)])
def test_texts_written_side_by_side_are_those_written_alone(dataset, architecture, step):
    """Prompts of any length, windows that slide, texts that end and make room: the same tokens, the same logits."""
    model = make_model(dataset, architecture).double()
    shape = {"seq_length": 3 * M, "eod_id": 7, "retrieved_chunks": 2, "retrieval_step": step}

    def prompts():
        rng = np.random.default_rng(1)
        for number, size in enumerate((3, M, M + 5, 4 * M + 2, M, 2 * M)):
            chance = (1.0, 0.9, number) if number % 2 else ()  # else greedy
            sampler = Noting(*chance, no_repeat_ngram=99)
            yield Prompt(rng.integers(8, 40, size), 40 - 4 * number, sampler, (M - 3) * (size == 3))

    def opened():
        lookup = Content(dataset) if architecture == "retro" else None
        return Decoder(model, dataset.store, lookup=lookup, **shape)

    decoder, beside, alone = opened(), list(prompts()), list(prompts())
    together = {number: [] for number in range(len(beside))}
    for number, each in decoder.write_all(beside, 4):
        together[number].append(each)
    for steps, prompt, other in zip(together.values(), alone, beside, strict=True):
        wanted = [each for _, each in opened().write_all([prompt], 1)]
        assert written(steps) == written(wanted)
        assert [each.last for each in steps] == [False] * (len(steps) - 1) + [True]
        looked_up = [[[at for at, _ in each.looked_up] for each in one] for one in (steps, wanted)]
        assert looked_up[0] == looked_up[1]
        for one, two in zip(prompt.sampler.seen, other.sampler.seen, strict=True):
            torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10)
    if decoder.lookup:
        assert {*decoder.lookup.asked[0]} == {0, 1, 2, 3}  # all of one time at once


def test_writing_ends_with_the_document(dataset):
    sampler = Sampler()
    made = decoder(dataset)
    made.eod_id = written(made.write(PROMPT, 1, sampler))[0]
    assert len(written(made.write(PROMPT, 10, sampler))) == 1


def test_sampling_is_seeded_and_stays_in_the_nucleus():
    logits = torch.tensor([2.0, 1.9, -3.0, 1.0])
    drawn = [Sampler(1.0, 0.7, seed).choose(logits) for seed in range(200)]
    assert set(drawn) == {0, 1}
    assert drawn == [Sampler(1.0, 0.7, seed).choose(logits) for seed in range(200)]
    assert {Sampler(1.0, 1e-9, seed).choose(logits) for seed in range(20)} == {0}
    assert Sampler(0.0, 0.7, 3).choose(logits) == 0


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (0.5, 0), (0.9999, 0), (1.0, 0), (0.8, 40), (1.0, 7)])
@pytest.mark.parametrize("width", [0.1, 3.0])
def test_few_tokens_are_put_in_order_and_the_choice_is_that_among_all(top_p, top_k, width):
    """Against sorting all of them, with equals among them; the random numbers are the same."""
    logits = torch.round(torch.randn(40, 3000, generator=torch.Generator().manual_seed(0)) * width, decimals=1)
    for seed, row in enumerate(logits):
        ordered, order = torch.sort(row / 0.7, descending=True, stable=True)
        chances = ordered[: top_k or None].softmax(0)
        chances[chances.cumsum(0) - chances >= top_p] = 0
        drawn = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(seed))
        assert Sampler(0.7, top_p, seed, top_k).choose(row) == int(order[drawn])


def naive(logits: list[float], text: list[int], penalty: float, n: int) -> int:
    """The likeliest token, by the definition in docs/generation.md, token by token."""
    changed = []
    for token, logit in enumerate(logits):
        if token in text:
            logit = logit / penalty if logit > 0 else logit * penalty
        changed.append(logit)
    runs = [text[at : at + n] for at in range(len(text) - n + 1)] if n else []
    free = [token for token in range(len(logits)) if [*text[len(text) - n + 1 :], token] not in runs or not n]
    return max(free or range(len(logits)), key=lambda token: (changed[token], -token))


@pytest.mark.parametrize("penalty", [1.0, 1.3, 5.0])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_what_was_said_is_held_back_as_a_naive_implementation_does(penalty, n):
    rng = np.random.default_rng(0)
    for length in [0, 1, 2, 3, *rng.integers(4, 40, 60)]:
        logits, text = rng.normal(size=6).astype(np.float32), rng.integers(0, 6, length)
        sampler = Sampler(repetition_penalty=penalty, no_repeat_ngram=n)
        assert sampler.choose(torch.tensor(logits), text) == naive(logits.tolist(), text.tolist(), penalty, n)


def test_a_barred_token_is_not_drawn_either():
    text, logits = np.array([1, 2, 1]), torch.tensor([0.0, 0.0, 9.0, 0.0])
    drawn = [Sampler(1.0, 1.0, seed, no_repeat_ngram=2).choose(logits, text) for seed in range(50)]
    assert set(drawn) == {0, 1, 3}


def test_writing_holds_back_what_the_prompt_and_the_text_have_but_not_padding_or_ends(dataset):
    seen = []

    class Listening(Sampler):
        def choose(self, logits, text):
            seen.append(text.tolist())
            return super().choose(logits, text)

    prompt = [dataset.tokenizer.eod_id, *PROMPT[:4].tolist()]
    listening = Listening(no_repeat_ngram=99)  # which holds back nothing
    tokens = written(decoder(dataset, Recorder(dataset)).write(np.array(prompt), 12, listening, padding=M - 5))
    assert seen == [[*prompt[1:], *tokens[:count]] for count in range(12)]
    once = Sampler(no_repeat_ngram=1)
    tokens = written(decoder(dataset, Recorder(dataset)).write(PROMPT, 12, once))
    assert len({*tokens, *PROMPT.tolist()}) == 12 + len(PROMPT)


def test_live_lookup_finds_the_chunk_itself_first(dataset):
    row = int(dataset.database[5])
    tokens, mask = dataset.store.tokens(np.array(row))
    lookup = LiveLookup(dataset, 3)
    (found,) = lookup([Query(tokens[mask])])
    text = dataset.tokenizer.decode(tokens[mask])
    assert lookup.describe(found)[0]["text"] == text
    assert found.scores[0] == pytest.approx(1, abs=1e-5)


def test_each_text_has_exclusions_of_its_own_in_one_search(dataset):
    tokens, mask = dataset.store.tokens(np.array(int(dataset.database[5])))
    free = LiveLookup(dataset, 3)
    first = free.describe(*free([Query(tokens[mask])]))[0]["document"]
    own = [[], [(first["source"], first["number"])], [(first["source"], first["number"]), ("atlas", 0)]]
    lookup = LiveLookup(dataset, 3, 1, own)
    found = lookup([Query(tokens[mask], text) for text in (1, 0, 2)])
    documents = [[each["document"]["id"] for each in lookup.describe(one)] for one in found]
    assert documents[1][0] == first["id"] and first["id"] not in documents[0] + documents[2]
    for text, one in zip((1, 0, 2), found, strict=True):
        (alone,) = LiveLookup(dataset, 3, 1, own)([Query(tokens[mask], text)])
        assert one.rows.tolist() == alone.rows.tolist()


def test_nothing_is_looked_up_for_no_text(dataset):
    (found,) = LiveLookup(dataset, 3)([Query(np.array([dataset.tokenizer.eod_id]))])
    assert found.rows.tolist() == [-1, -1, -1] and LiveLookup(dataset, 3).describe(found) == []


@pytest.mark.parametrize(("rules", "barred"), [(["document"], False), (["group_of_any_source"], True)])
def test_group_rules_hold_for_live_lookups(dataset, monkeypatch, rules, barred):
    """An open book's page of the same group is barred exactly if the dataset's rules say so."""
    monkeypatch.setitem(dataset.facts["neighbours"], "exclude", rules)
    rows = choose(dataset, "test", 9, 1, seed=0)
    row = next(row for row in rows if dataset.store.document(row)["source"] == "atlas")
    group = dataset.store.document(row)["group"]
    tokens = document_tokens(dataset, row, M)
    lookup = LiveLookup(dataset, len(dataset.database), 1, [excluded_documents(dataset, row)])
    groups = {each["document"]["group"] for each in lookup.describe(*lookup([Query(tokens)]))}
    assert (group not in groups) is barred


def test_a_document_without_date_sees_nothing_where_what_is_later_is_excluded(dataset, monkeypatch):
    row = choose(dataset, "test", 1, 1, seed=0)[0]
    assert seen_until(dataset, row) is None
    monkeypatch.setitem(dataset.facts["neighbours"], "exclude", ["later"])
    assert seen_until(dataset, row) == UNDATED


def test_prompts_are_spread_over_sections(dataset):
    chosen = [dataset.store.document(row) for row in choose(dataset, "test", 4, M, seed=1)]
    assert {each["title"].rpartition(": ")[2] for each in chosen if each["source"] == "atlas"} == {
        "Geography",
        "Economy",
        "Energy",
    }
    assert len({each["id"] for each in chosen}) == 4

"""Write text with a trained model, looking things up while writing.

python -m retro.generation.generate --run results/<dataset>/runs/retro-s1 --prompt "Sri Lanka: Geography" --show

`Writer` is a trained run, opened for writing: prompts in, events out. The terminal, the page and the bench share it.
"""

import argparse
import json
import os
import sys
import textwrap
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro.base import command
from retro.base.artifacts import write_text
from retro.base.machine import best_device
from retro.base.stage import UserError, finite, text_of, whole
from retro.corpus.dates import date_argument
from retro.dataset.dataset import Dataset
from retro.dataset.named import book_of, recorded_config, run_folder
from retro.generation.decoding import Decoder, Prompt, Sampler, Step
from retro.generation.live import GivenPassages, LiveLookup, open_book, read_lines
from retro.training.weights import load_model

BROKEN = "\ufffd"


class Unfolding:
    """The text of a growing list of tokens, as it becomes certain: a character cut in two is held back."""

    def __init__(self, dataset: Dataset):
        self.decode, self.shown = dataset.tokenizer.decode, 0
        self.tokens: list[int] = []

    def add(self, tokens: list[int], last: bool = False) -> str:
        """What these tokens add to the text."""
        self.tokens += tokens
        text = self.decode(self.tokens)
        if text.endswith(BROKEN) and not last:
            return ""
        new, self.shown = text[self.shown :], len(text)
        return new


class Writer:
    """Writes with a run, D/runs/<run>, and looks things up in the dataset's database or in another.

    `neighbours` a chunk (default: as in training); `given`: a file of passages in place of retrieval; `until`: a date,
    nothing later is looked up. Without `database` it is the dataset's own, or the book that was added to it last
    (`retro add-book`), also while it writes text after text. Raises `UserError` where the run cannot do what is wanted.
    """

    def __init__(
        self,
        run: Path,
        *,
        database: Path | None = None,
        given: Path | None = None,
        neighbours: int | None = None,
        step: int | None = None,
        until: int | None = None,
        threads: int = 1,
    ):
        self.dataset = Dataset.open(Path(os.path.realpath(run)).parent.parent / "config.json")
        self.model, self.run = load_model(run / "model.json", self.dataset, best_device())
        torch.set_num_threads(threads)
        self.book = open_book(database, self.dataset) if database else self.dataset
        self._grows, self._opened = not (database or given), (self.dataset.path, 0)
        train, m = self.run.train, self.dataset.chunk_length
        k = train.neighbours_used if neighbours is None else neighbours
        if not self.run.retro and (database or given or step):
            raise UserError(f"{run}: run {self.run.name!r} is a gpt, which retrieves nothing. Take a retro run.")
        if step is not None and not 1 <= step <= m:
            raise UserError(f"--retrieval-step {step}: wanted 1 to {m}, the chunk length.")
        self.step = step
        self.lookup: GivenPassages | LiveLookup | None = None
        if given:
            self.lookup = GivenPassages.read(given, self.dataset, m * train.retrieved_chunks)
        elif self.run.retro and k:
            self.lookup = LiveLookup(self.book, k, threads, until=until)
        self.refresh()

    def refresh(self) -> None:
        """Look things up in the book that was added last, if one was added or taken away meanwhile."""
        if not self._grows or not isinstance(self.lookup, LiveLookup):
            return
        path, own = book_of(self.dataset.path), self.dataset.path
        opened = (path, 0 if path == own else path.stat().st_mtime_ns)  # one of the same name may be another book
        if opened != self._opened:
            old = self.lookup
            self.book = self.dataset if path == own else open_book(path, self.dataset)
            self.lookup = LiveLookup(self.book, old.k, old.searcher.threads, until=old.until)
            self._opened = opened

    def write(
        self, prompt: str, count: int, sampler: Sampler, *, retrieval: bool = True, pad: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Events, in order: `text` (chunk, text, prompt: whether it is the prompt's), `lookup` (chunk, query,
        neighbours) before the text written with it, and at last `end` (tokens, ended: by an end of document).

        `pad`: pad a prompt shorter than a chunk on its left, so that it is looked up before anything is written.
        """
        return (event for _, event in self.write_all([prompt], count, [sampler], 1, retrieval=retrieval, pad=pad))

    def write_all(
        self,
        prompts: list[str],
        count: int,
        samplers: list[Sampler],
        together: int,
        *,
        retrieval: bool = True,
        pad: bool = True,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The events of several prompts, `together` of them written side by side, each with its prompt's number."""
        self.refresh()
        lookup = self.lookup if retrieval else None
        decoder = Decoder(
            self.model,
            self.book.store,
            seq_length=self.dataset.seq_length,
            eod_id=self.dataset.tokenizer.eod_id,
            retrieved_chunks=self.run.train.retrieved_chunks,
            lookup=lookup,
            retrieval_step=self.step,
        )
        told = [Telling(self, prompt, count, lookup, pad) for prompt in prompts]
        given = [Prompt(each.start, count, own, each.padding) for each, own in zip(told, samplers, strict=True)]
        for number, each in enumerate(told):
            yield from ((number, event) for event in each.prompt())
            if count == 0:
                yield number, each.end()
        for number, step in decoder.write_all(given, together):
            yield from ((number, event) for event in told[number].step(step))
            if step.last:
                yield number, told[number].end()


class Telling:
    """The events of one text."""

    def __init__(self, writer: Writer, prompt: str, count: int, lookup: GivenPassages | LiveLookup | None, pad: bool):
        self.writer, self.count, self.lookup = writer, count, lookup
        tokenizer, self.length = writer.dataset.tokenizer, writer.dataset.chunk_length
        tokens = tokenizer.encode_batch([prompt])[0].tolist()
        self.start = np.array(tokens or [tokenizer.eod_id], np.int64)  # after the end of a document one begins
        self.padding = max(0, self.length - len(self.start)) if pad and lookup else 0
        self.text, self.at = Unfolding(writer.dataset), self.padding  # at: tokens so far, padding included
        self.written, self.ended = 0, False

    def prompt(self) -> Iterator[dict[str, Any]]:
        """The prompt, chunk by chunk."""
        end, start = self.padding + len(self.start), self.start.tolist()
        while self.at < end:
            high = min((self.at // self.length + 1) * self.length, end)
            new = self.text.add(start[self.at - self.padding : high - self.padding], last=high == end)
            yield {"type": "text", "chunk": self.at // self.length, "text": new, "prompt": True}
            self.at = high

    def step(self, step: Step) -> Iterator[dict[str, Any]]:
        """What was looked up, and the token written."""
        decode, m = self.writer.dataset.tokenizer.decode, self.length
        for chunk, found in step.looked_up:
            end = self.at if self.writer.step and chunk == (self.at - 1) // m else (chunk + 1) * m
            asked = self.text.tokens[max(0, end - m - self.padding) : end - self.padding]
            assert self.lookup is not None
            shown = self.lookup.describe(found)
            yield {"type": "lookup", "chunk": chunk, "query": decode(asked), "neighbours": shown}
        self.written += 1
        new = self.text.add([step.token], last=self.written == self.count)
        yield {"type": "text", "chunk": self.at // m, "text": new, "prompt": False}
        self.at += 1
        self.ended = step.token == self.writer.dataset.tokenizer.eod_id

    def end(self) -> dict[str, Any]:
        """The last event."""
        return {"type": "end", "tokens": self.written, "ended": self.ended}


LEAST = {"tokens": 1, "temperature": 0, "top_k": 0, "neighbours": 0, "seed": 0}
LEAST |= {"repetition_penalty": 1, "no_repeat_ngram": 0}


def show(event: dict[str, Any]) -> None:
    """Print on stderr what was looked up."""
    print(f"\n── chunk {event['chunk'] + 1} looked up " + "─" * 40, file=sys.stderr)
    for rank, neighbour in enumerate(event["neighbours"], start=1):
        document = neighbour["document"]
        name = document.get("title") or document["id"]
        score = "" if neighbour["score"] is None else f", score {neighbour['score']:.3f}"
        print(f"{rank}. {name} ({document['source']}{score})", file=sys.stderr)
        for part, mark in ((neighbour["text"], "  "), (neighbour["continuation"], "▸ ")):
            if part:
                words = " ".join(part.split())
                print(textwrap.fill(words, 96, initial_indent=mark, subsequent_indent="  "), file=sys.stderr)
    print("─" * 60, file=sys.stderr, flush=True)


def tell(
    prompts: list[str], events: Iterator[tuple[int, dict[str, Any]]], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Print what is written, prompt by prompt, each as soon as those before it are done -> what `--output` holds."""
    waiting: list[deque[dict[str, Any]]] = [deque() for _ in prompts]
    for number, prompt in enumerate(prompts):
        if len(prompts) > 1:
            print(f"\n══ prompt {number + 1} of {len(prompts)} ══", file=sys.stderr, flush=True)
        print(prompt, end="", flush=True)
        pieces, lookups = [], []
        while True:
            while not waiting[number]:
                other, event = next(events)
                waiting[other].append(event)
            event = waiting[number].popleft()
            if event["type"] == "end":
                break
            if event["type"] == "lookup":
                lookups.append({key: value for key, value in event.items() if key != "type"})
                if options.show:
                    show(event)
            elif not event["prompt"]:
                pieces.append(event["text"])
                print(event["text"], end="", flush=True)
        print(flush=True)
        facts = {"tokens": event["tokens"], "ended": event["ended"], "lookups": lookups}
        yield {"prompt": prompt, "seed": options.seed, "text": "".join(pieces), **facts}


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="A prompt shorter than a chunk is padded on its left, so that it is looked up before anything "
        "is written; --no-padding begins the chunk grid with the prompt, as documents do in training.",
    )
    parser.add_argument("--run", required=True, type=run_folder, help="a run, by name or folder: retro-s1")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", help="text to continue; default: standard input")
    prompts.add_argument("--prompts", type=Path, help='a file of prompts, a line each: text, or JSON {"prompt": …}')
    parser.add_argument("--output", type=Path, help="also write JSON lines: prompt, seed, text, what was looked up")
    parser.add_argument("--tokens", type=int, default=192, help="tokens to write at most (192)")
    parser.add_argument("--temperature", type=finite, default=0.0, help="0: always the likeliest token (0)")
    parser.add_argument("--top-k", type=int, default=0, help="choose among so many likeliest tokens; 0: all (0)")
    parser.add_argument("--top-p", type=finite, default=0.9, help="choose among the likeliest that sum to this (0.9)")
    parser.add_argument(
        "--repetition-penalty", type=finite, default=1.0, help="make tokens that were said less likely; 1: off (1)"
    )
    parser.add_argument("--no-repeat-ngram", type=int, default=0, help="so many tokens never repeat; 0: off (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices, the same for each prompt (0)")
    parser.add_argument("--neighbours", type=int, help="neighbours a chunk sees; default: as in training")
    parser.add_argument("--together", type=whole, default=16, help="prompts that are written side by side (16)")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads (1)")
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument("--no-retrieval", action="store_true", help="write without looking anything up")
    sources.add_argument("--neighbours-from", type=Path, help="passages to read in place of what is found, a line each")
    sources.add_argument("--database", type=recorded_config, help="another dataset, to look things up there")
    parser.add_argument("--retrieval-step", type=whole, help="look up the last chunk's worth every so many tokens")
    parser.add_argument("--date", type=date_argument, help="look up nothing later than this, such as 2015-03")
    parser.add_argument("--no-padding", action="store_true", help="do not pad a short prompt")
    parser.add_argument("--show", action="store_true", help="print what is looked up, on stderr")
    options = parser.parse_args()
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and not least <= value < 2**63:
            raise UserError(f"--{name.replace('_', '-')} {value}: wanted at least {least}, and less than 2^63.")
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top-p {options.top_p}: wanted more than 0 and at most 1.")
    return options


def prompts(options: argparse.Namespace) -> list[str]:
    """The prompts that the command line gives."""
    if options.prompts:
        lines = read_lines(options.prompts, "prompt")
        return [line if isinstance(line, str) else line["prompt"] for line in lines]
    return [text_of(sys.stdin, "standard input") if options.prompt is None else options.prompt]


def main() -> None:
    options = parse()
    given = prompts(options)
    writer = Writer(
        options.run,
        database=options.database,
        given=options.neighbours_from,
        neighbours=options.neighbours,
        step=options.retrieval_step,
        until=options.date,
        threads=options.threads,
    )
    chosen = (options.temperature, options.top_p, options.seed, options.top_k)
    samplers = [Sampler(*chosen, options.repetition_penalty, options.no_repeat_ngram) for _ in given]
    pad, retrieval = not options.no_padding, not options.no_retrieval
    events = writer.write_all(given, options.tokens, samplers, options.together, pad=pad, retrieval=retrieval)
    made = list(tell(given, events, options))
    if options.output:
        write_text(options.output, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made))
        print(f"{len(made)} prompts continued → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)

"""Write text with a trained model, looking things up while writing.

python -m retro.evaluation.generate --run results/<dataset>/runs/retro-s1 --prompt "Algeria: Geography" --show
"""

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch

from retro import errors
from retro.errors import UserError
from retro.evaluation.decoding import Decoder, Sampler
from retro.evaluation.live import LiveLookup
from retro.recorded import Dataset
from retro.training.load import load_model

BROKEN = "\ufffd"


class Printer:
    """Prints the text of a growing list of tokens as it becomes certain, a character cut in two held back."""

    def __init__(self, dataset: Dataset, prompt: list[int]):
        self.decode, self.tokens = dataset.tokenizer.decode, list(prompt)
        self.shown = len(self.decode(self.tokens))

    def add(self, token: int, last: bool = False) -> None:
        """Print what a token adds."""
        self.tokens.append(token)
        text = self.decode(self.tokens)
        if last or not text.endswith(BROKEN):
            print(text[self.shown :], end="", flush=True)
            self.shown = len(text)


def show(lookup: LiveLookup, number: int, found) -> None:
    """Print on stderr what a chunk looked up."""
    print(f"\n── chunk {number + 1} looked up " + "─" * 40, file=sys.stderr)
    for rank, neighbour in enumerate(lookup.describe(found), start=1):
        document = neighbour["document"]
        name = document.get("title") or document["id"]
        print(f"{rank}. {name} ({document['source']}, score {neighbour['score']:.3f})", file=sys.stderr)
        for part, mark in ((neighbour["text"], "  "), (neighbour["continuation"], "▸ ")):
            if part:
                words = " ".join(part.split())
                print(textwrap.fill(words, 96, initial_indent=mark, subsequent_indent="  "), file=sys.stderr)
    print("─" * 60, file=sys.stderr, flush=True)


def padding(tokens: int, chunk_length: int) -> int:
    """Padding before a prompt shorter than a chunk, so that it ends with one and is looked up at once."""
    return chunk_length - tokens if tokens < chunk_length else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="A prompt shorter than a chunk is padded on its left, so that it is looked up before anything "
        "is written; --no-padding begins the chunk grid with the prompt, as documents do in training.",
    )
    parser.add_argument("--run", required=True, type=Path, help="folder of a run: D/runs/<run>")
    parser.add_argument("--prompt", help="text to continue; default: standard input")
    parser.add_argument("--tokens", type=int, default=192, help="tokens to write at most (192)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token (0)")
    parser.add_argument("--top-p", type=float, default=0.9, help="choose among the likeliest that sum to this (0.9)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices (0)")
    parser.add_argument("--neighbours", type=int, help="neighbours a chunk sees; default: as in training")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--no-retrieval", action="store_true", help="write without looking anything up")
    parser.add_argument("--no-padding", action="store_true", help="do not pad a short prompt")
    parser.add_argument("--show", action="store_true", help="print what is looked up, on stderr")
    options = parser.parse_args()
    for name, least in (("tokens", 1), ("temperature", 0), ("neighbours", 0), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: wanted at least {least}.")
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top-p {options.top_p}: wanted more than 0 and at most 1.")
    dataset = Dataset.open(options.run.resolve().parent.parent / "config.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, run = load_model(options.run / "model.json", dataset, device)
    torch.set_num_threads(options.threads)
    train, lookup = run["train"], None
    k = train["neighbours_used"] if options.neighbours is None else options.neighbours
    if run["architecture"] == "retro" and k and not options.no_retrieval:
        lookup = LiveLookup(dataset, k, options.threads)
    text = sys.stdin.read() if options.prompt is None else options.prompt
    prompt = dataset.tokenizer.encode_batch([text])[0]
    if not len(prompt):
        prompt = np.array([dataset.tokenizer.eod_id], np.int64)  # after the end of a document one begins
    decoder = Decoder(
        model,
        dataset.store,
        seq_length=dataset.seq_length,
        eod_id=dataset.tokenizer.eod_id,
        retrieved_chunks=train["retrieved_chunks"],
        lookup=lookup,
    )
    sampler = Sampler(options.temperature, options.top_p, options.seed)
    pads = 0 if options.no_padding or lookup is None else padding(len(prompt), dataset.chunk_length)
    print(text, end="", flush=True)
    printer = Printer(dataset, prompt.tolist())
    for step in decoder.write(prompt, options.tokens, sampler, pads):
        if options.show:
            for number, found in step.looked_up:
                show(lookup, number, found)
        printer.add(step.token)
    print()


if __name__ == "__main__":
    errors.run(main)

"""Write text with a trained model, looking things up while writing.

python -m retro.evaluation.generate --run results/<dataset>/runs/retro-s1 --prompt "Algeria: Geography" --show
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from retro import errors
from retro.artifacts import write_text
from retro.errors import UserError
from retro.evaluation.decoding import Sampler
from retro.evaluation.live import read_lines
from retro.evaluation.writer import Writer

LEAST = {"tokens": 1, "temperature": 0, "top_k": 0, "neighbours": 0, "threads": 1, "seed": 0}


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


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="A prompt shorter than a chunk is padded on its left, so that it is looked up before anything "
        "is written; --no-padding begins the chunk grid with the prompt, as documents do in training.",
    )
    parser.add_argument("--run", required=True, type=Path, help="folder of a run: results/<dataset>/runs/<run>")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", help="text to continue; default: standard input")
    prompts.add_argument("--prompts", type=Path, help='a file of prompts, a line each: text, or JSON {"prompt": …}')
    parser.add_argument("--output", type=Path, help="also write JSON lines: prompt, seed, text, what was looked up")
    parser.add_argument("--tokens", type=int, default=192, help="tokens to write at most (192)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token (0)")
    parser.add_argument("--top-k", type=int, default=0, help="choose among so many likeliest tokens; 0: all (0)")
    parser.add_argument("--top-p", type=float, default=0.9, help="choose among the likeliest that sum to this (0.9)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices, the same for each prompt (0)")
    parser.add_argument("--neighbours", type=int, help="neighbours a chunk sees; default: as in training")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument("--no-retrieval", action="store_true", help="write without looking anything up")
    sources.add_argument("--neighbours-from", type=Path, help="passages to read in place of what is found, a line each")
    sources.add_argument("--database", type=Path, help="config.json of another dataset, to look things up there")
    parser.add_argument("--retrieval-step", type=int, help="look up the last chunk's worth every so many tokens")
    parser.add_argument("--no-padding", action="store_true", help="do not pad a short prompt")
    parser.add_argument("--show", action="store_true", help="print what is looked up, on stderr")
    options = parser.parse_args()
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: wanted at least {least}.")
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top-p {options.top_p}: wanted more than 0 and at most 1.")
    return options


def prompts(options: argparse.Namespace) -> list[str]:
    """The prompts that the command line gives."""
    if options.prompts:
        lines = read_lines(options.prompts, "prompt")
        return [line if isinstance(line, str) else line["prompt"] for line in lines]
    return [sys.stdin.read() if options.prompt is None else options.prompt]


def main() -> None:
    options = parse()
    given = prompts(options)
    writer = Writer(
        options.run,
        database=options.database,
        given=options.neighbours_from,
        neighbours=options.neighbours,
        step=options.retrieval_step,
        threads=options.threads,
    )
    made = []
    for number, prompt in enumerate(given):
        if len(given) > 1:
            print(f"\n══ prompt {number + 1} of {len(given)} ══", file=sys.stderr, flush=True)
        print(prompt, end="", flush=True)
        sampler = Sampler(options.temperature, options.top_p, options.seed, options.top_k)
        pieces, lookups = [], []
        pad, retrieval = not options.no_padding, not options.no_retrieval
        for event in writer.write(prompt, options.tokens, sampler, pad=pad, retrieval=retrieval):
            if event["type"] == "lookup":
                lookups.append({key: value for key, value in event.items() if key != "type"})
                if options.show:
                    show(event)
            elif event["type"] == "text" and not event["prompt"]:
                pieces.append(event["text"])
                print(event["text"], end="", flush=True)
        print(flush=True)
        facts = {"tokens": event["tokens"], "ended": event["ended"], "lookups": lookups}
        made.append({"prompt": prompt, "seed": options.seed, "text": "".join(pieces), **facts})
    if options.output:
        write_text(options.output, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made))
        print(f"{len(made)} prompts continued → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)

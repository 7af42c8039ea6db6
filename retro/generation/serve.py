"""A local page that shows a model writing with retrieval and without, and beside each chunk what it looked up.

python -m retro.generation.serve --run results/<dataset>/runs/retro-s1
"""

import argparse
import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from retro.base import command
from retro.base.names import HELD_OUT
from retro.base.stage import Settings, UserError, natural, reasons, whole
from retro.corpus.dates import date_argument
from retro.dataset.dataset import Dataset
from retro.dataset.named import recorded_config, run_folder
from retro.generation.decoding import Sampler
from retro.generation.generate import Writer
from retro.generation.sample import choose, document_tokens

PAGE = (Path(__file__).parent / "templates" / "serve.html").read_text(encoding="utf-8")
EMPTY = "The prompt is empty. Write a few words to go on from, or click an example."
EXAMPLES = 3
LOCAL = ["127.0.0.1", "localhost", "[::1]"]


class Wish(Settings):
    """What the page asks for."""

    prompt: str = Field(max_length=100_000)
    tokens: int = Field(192, ge=1, le=4096)
    temperature: float = Field(0.0, ge=0, le=10)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)
    repetition_penalty: float = Field(1.0, ge=1, le=100)
    no_repeat_ngram: int = Field(0, ge=0, le=4096)
    retrieval: bool = True


def inline(tag: str) -> str:
    """The hash by which the page's own <script> or <style> is allowed, and nothing else."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    assert found is not None, tag
    return "'sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode() + "'"


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src {inline('script')}; style-src {inline('style')}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def application(writer: Writer, hosts: list[str] = LOCAL) -> Starlette:
    """The page `/`, facts about the run `/run`, and `/write`: a wish in, server-sent events out.

    Tabs that write at the same time take turns, a token each. Requests must name one of `hosts` and write asks for
    JSON, so that no other site in the same browser can use the server.
    """
    turn = threading.Lock()

    def events(wish: Wish) -> Iterator[str]:
        chosen = (wish.temperature, wish.top_p, wish.seed, wish.top_k)
        sampler = Sampler(*chosen, wish.repetition_penalty, wish.no_repeat_ngram)
        stream = writer.write(wish.prompt, wish.tokens, sampler, retrieval=wish.retrieval)
        while True:
            with turn:
                event = next(stream, None)
            if event is None:
                return
            yield f"data: {json.dumps(event)}\n\n"

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE, headers=HEADERS)

    async def run(request: Request) -> Response:
        return JSONResponse(about(writer), headers=HEADERS)

    async def write(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return JSONResponse({"error": "wanted application/json"}, 415, headers=HEADERS)
        try:
            wish = Wish.model_validate_json(await request.body())
        except ValidationError as error:
            lines = reasons(error, Wish, listed=f"wanted {', '.join(Wish.model_fields)}")
            return JSONResponse({"error": "; ".join(lines)}, 422, headers=HEADERS)
        if not wish.prompt.strip():
            return JSONResponse({"error": EMPTY}, 422, headers=HEADERS)
        return StreamingResponse(events(wish), media_type="text/event-stream", headers=HEADERS)

    routes = [Route("/", page), Route("/run", run), Route("/write", write, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])


def examples(dataset: Dataset) -> list[dict[str, str]]:
    """Beginnings of held-out documents, a chunk of each: title and prompt; seeded, sections in turn."""
    m = dataset.chunk_length
    split = next((name for name in reversed(HELD_OUT) if len(dataset.rows(name))), None)
    found = []
    for row in choose(dataset, split, EXAMPLES, 2 * m, dataset.facts["seed"]) if split else []:
        document = dataset.store.document(row)
        prompt = dataset.tokenizer.decode(document_tokens(dataset, row, m))
        found.append({"title": str(document.get("title") or document["id"]), "prompt": prompt})
    return found


def about(writer: Writer) -> dict[str, Any]:
    """What the page says of the run."""
    writer.refresh()
    return {
        "examples": examples(writer.dataset),
        "empty": EMPTY,
        "run": writer.run.name,
        "dataset": writer.dataset.facts["name"],
        "book": writer.book.facts["name"],
        "retrieves": writer.lookup is not None,
        "chunk_length": writer.dataset.chunk_length,
        "parameters": sum(each.numel() for each in writer.model.parameters()),
        "database_chunks": len(writer.book.database),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=run_folder, help="a run, by name or folder: retro-s1")
    parser.add_argument("--database", type=recorded_config, help="another dataset, to look things up there")
    parser.add_argument("--neighbours", type=natural, help="neighbours a chunk sees; default: as in training")
    parser.add_argument("--retrieval-step", type=whole, help="look up the last chunk's worth every so many tokens")
    parser.add_argument("--date", type=date_argument, help="look up nothing later than this, such as 2015-03")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads (1)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=whole, default=8000, help="port (8000)")
    options = parser.parse_args()
    if not 1 <= options.port <= 65535:
        raise UserError(f"--port {options.port}: wanted 1 to 65535.")
    writer = Writer(
        options.run,
        database=options.database,
        neighbours=options.neighbours,
        step=options.retrieval_step,
        until=options.date,
        threads=options.threads,
    )
    hosts = LOCAL if options.host in LOCAL else ["*"]
    print(f"{writer.run.name}: http://{options.host}:{options.port} (stop with Ctrl-C)", file=sys.stderr, flush=True)
    uvicorn.run(application(writer, hosts), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    command.run(main)

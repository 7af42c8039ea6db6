"""Compare our forward and backward with a reference dump of Megatron-core: parameters, inputs, outputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from retro.artifacts import read_json
from retro.errors import UserError
from retro.interop.infer import flatten, infer
from retro.interop.names import entries, from_megatron, to_ours
from retro.interop.states import read_state
from retro.model.build import build_model

TOLERANCE = 1e-5


class Difference(NamedTuple):
    """The largest absolute difference in one kind of tensor, and where it is."""

    what: str
    value: float
    where: str


def compare(dump: Path) -> list[Difference]:
    """Largest differences of logits, losses and gradients, as far as the dump has them.

    `dump` is a safetensors file with `param/`, `in/`, `out/` and optionally `grad/` keys; the .json beside it holds
    the arguments it was made with.
    """
    tensors = read_state(dump)
    facts = flatten(read_json(dump.with_suffix(".json")))

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    parameters, inputs, outputs, gradients = (part(f"{p}/") for p in ("param", "in", "out", "grad"))
    tokens, context = inputs.get("input_ids"), inputs.get("context_input_ids")  # (b, n), (b * l * k, r)
    if tokens is None or not parameters:
        raise UserError(f"{dump}: holds no param/ or no in/input_ids; wanted a reference dump")
    if context is not None:
        facts["retrieved_length"] = context.shape[1]
    shapes = {name: tuple(t.shape) for name, t in parameters.items()}
    inferred = infer(shapes, {"seq": tokens.shape[1]} | facts, str(dump))
    settings, architecture = inferred.settings, inferred.architecture
    settings = settings.model_copy(update={"encoder_dropout": 0.0})
    lengths = inferred.lengths | {"seq_length": max(inferred.lengths["seq_length"], tokens.shape[1])}
    for name in ("position_ids", "context_position_ids"):
        ids = inputs.get(name)
        if ids is not None and not torch.equal(ids, torch.arange(ids.shape[1]).expand_as(ids)):
            raise UserError(f"{dump}: in/{name} does not count from 0; only such positions are supported")
    neighbours = None
    if architecture == "retro":
        chunks = -(-tokens.shape[1] // lengths["chunk_length"])
        if context is None or context.shape[0] % (tokens.shape[0] * chunks):
            rows = 0 if context is None else context.shape[0]
            raise UserError(f"{dump}: {rows} context rows for {tokens.shape[0]} x {chunks} chunks, wanted a multiple")
        neighbours = context.view(tokens.shape[0], chunks, -1, context.shape[1])  # (b, l, k, r)

    with torch.device("meta"):
        model = build_model(settings, architecture=architecture, seed=None, **lengths)
    model.to_empty(device="cpu")
    model.load_state_dict(from_megatron(parameters, settings, architecture), strict=True)
    found = []
    if "logits" in outputs:
        found.append(_largest("logits", {"": model(tokens, neighbours).detach()}, {"": outputs["logits"]}))
    if "labels" in inputs:
        losses = model(tokens, neighbours, targets=inputs["labels"])  # (b, n)
        loss = losses.mean()
        loss.backward()
        for name, ours in (("token_loss", losses), ("loss", loss)):
            if name in outputs:
                found.append(_largest(name, {"": ours.detach()}, {"": outputs[name]}))
        wanted = {}
        for entry in entries(settings, architecture):
            theirs = gradients.get(entry.local, gradients.get(entry.te))
            if theirs is not None:
                wanted[entry.ours] = to_ours(theirs, entry)
        grads = {name: p.grad for name, p in model.named_parameters()}
        if wanted:
            found.append(_largest(f"gradients ({len(wanted)})", grads, wanted))
    return found


def _largest(what: str, ours: Mapping[str, Tensor | None], theirs: dict[str, Tensor]) -> Difference:
    differences = {}
    for name, expected in theirs.items():
        mine = ours[name]
        got = torch.zeros_like(expected) if mine is None else mine
        if got.shape != expected.shape:
            raise UserError(f"{what} {name}: shape {list(got.shape)}, the dump has {list(expected.shape)}")
        differences[name] = (got.double() - expected.double()).abs().max().item()
    where = max(differences, key=lambda name: differences[name] if differences[name] == differences[name] else 1e9)
    return Difference(what, differences[where], where)

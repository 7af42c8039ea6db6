"""Exported folders: transformers loads them, and they compute what ours do."""

import json
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file

from retro.base.artifacts import read_manifest, write_manifest
from retro.base.stage import UserError
from retro.corpus.tokenizers import Tokenizer
from retro.interop.huggingface import export
from retro.interop.megatron import load
from retro.interop.names import to_megatron
from retro.model.build import build_model
from retro.model.cache import DecodingCache
from retro.model.exchange import from_theirs
from retro.model.families import decoder
from retro.model.settings import ModelSettings
from retro.training.weights import retrieves
from tests.model.families import saved
from tests.model.shapes import shake
from tests.training.toy import EOD, VOCAB, write_tokenizer

LENGTHS = {"vocab_size": VOCAB, "seq_length": 24, "chunk_length": 4, "retrieved_length": 8}
SHAPE = {"layers": 3, "width": 16, "heads": 2, "cca_layers": (1, 3), "encoder_width": 8}
LAYERNORM = {"norm": "layernorm", "bias": True, "positions": "learned", "encoder_positions": "rope"}
STOCK = {
    "ArceeForCausalLM": {"activation": "squared_relu"},
    "LlamaForCausalLM": {"activation": "swiglu", "ffn": 24, "kv_heads": 1, "tied": False, "bias": True},
    "GPT2LMHeadModel": LAYERNORM | {"activation": "gelu_tanh"},
    "GPTNeoXForCausalLM": {"norm": "layernorm", "bias": True, "rope_fraction": 0.5, "tied": False},
    "Qwen2ForCausalLM": {"activation": "swiglu", "qkv_bias": True},
    "Olmo2ForCausalLM": {"activation": "swiglu", "qk_norm": "whole", "norm_position": "after", "tied": False},
}


def make(folder, architecture, vocab=VOCAB, **fields):
    """A run's folder with a shaken model, and that model."""
    settings, lengths = ModelSettings(**{**SHAPE, **fields}), LENGTHS | {"vocab_size": vocab}
    model = build_model(settings, architecture=architecture, seed=1, **lengths)
    shake(model, 1)
    run = folder / "runs" / "run"
    run.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, run / "model.safetensors")
    facts = {"name": "run", "architecture": architecture, "model": settings.model_dump(mode="json")}
    write_manifest(
        run / "model.json",
        kind="model",
        stage="retro.training.train",
        files=[run / "model.safetensors"],
        settings={**facts, "recorded": {**lengths, "eod_id": EOD, "pad_id": EOD}},
    )
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder / "tokenizer")
    return run, model.eval()


def tokens(batch=2, count=22):
    return torch.randint(VOCAB, (batch, count), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", STOCK)
def test_a_gpt_is_a_stock_architecture_where_one_matches(name, tmp_path):
    run, ours = make(tmp_path, "gpt", **STOCK[name])
    export(run, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == name
    wanted, found = ours(tokens()), theirs(input_ids=tokens()).logits
    exact, doubled = ours.double()(tokens()), theirs.double()(input_ids=tokens()).logits
    rounding = (wanted - exact).abs().max().item()  # theirs round in another order than ours, and as much
    torch.testing.assert_close(found, wanted, atol=3 * rounding, rtol=0)
    norms = 1e-12 if name.startswith("GPT") else 2e-6  # those of the others stay in fp32
    torch.testing.assert_close(doubled, exact, atol=norms * exact.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("architecture", "fields"), [("retro", {}), ("gpt", STOCK["LlamaForCausalLM"])])
def test_weights_above_a_size_are_in_several_files(architecture, fields, tmp_path):
    run, _ = make(tmp_path, architecture, **fields)
    export(run, tmp_path / "one")
    export(run, tmp_path / "several", shard_size=20_000)
    files = sorted((tmp_path / "several").glob("model-*.safetensors"))
    assert len(files) > 1 and not (tmp_path / "several" / "model.safetensors").exists()
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    assert all(sum(t.nbytes for t in load_file(path).values()) <= 20_000 for path in files)
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: path.name for path in files for name in load_file(path)}
    states = []
    for folder in ("one", "several"):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder, trust_remote_code=True)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("retro", {}),
        ("retro", {"flavour": "copy-ready"}),
        ("retro", {"flavour": "megatron"}),
        ("gpt", {"norm": "layernorm", "bias": False}),
    ],
)
def test_every_other_model_brings_its_modules(architecture, fields, tmp_path):
    run, ours = make(tmp_path, architecture, **fields)
    export(run, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    x = tokens()
    torch.testing.assert_close(theirs(input_ids=x).logits, ours(x), atol=1e-6, rtol=0)
    loss = theirs(input_ids=x, labels=x).loss
    wanted = torch.nn.functional.cross_entropy(ours(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(loss, wanted)
    if architecture == "retro":
        neighbours = torch.randint(VOCAB, (2, 6, 2, 8), generator=torch.Generator().manual_seed(4))
        mask = torch.arange(8) < torch.tensor([8, 5])[:, None]  # (k, r)
        mask = mask.expand(2, 6, 2, 8)
        got = theirs(input_ids=x, neighbours=neighbours, neighbour_mask=mask).logits
        torch.testing.assert_close(got, ours(x, neighbours, mask), atol=1e-6, rtol=0)
        none = torch.zeros(2, 6, 2, 8, dtype=torch.bool)
        none[:, :2] = True
        got = theirs(input_ids=x, neighbours=neighbours[:, :2]).logits  # the other chunks have none
        torch.testing.assert_close(got, ours(x, neighbours, none), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.*book closed")
def test_it_writes_as_ours_does(tmp_path):
    run, ours = make(tmp_path, "retro")
    export(run, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    written = theirs.generate(tokens(1, 5), max_new_tokens=8, do_sample=False, eos_token_id=None)
    expected = tokens(1, 5)
    for _ in range(8):
        expected = torch.cat([expected, ours(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, expected)
    with pytest.raises(ValueError, match="padding at the beginning"):
        theirs(input_ids=tokens(), attention_mask=torch.arange(22).expand(2, 22) > 2)


@pytest.mark.parametrize("fields", [{}, {"flavour": "copy-ready"}, LAYERNORM])
def test_it_looks_things_up_while_it_writes_and_keeps_what_it_computed(fields, tmp_path):
    run, _ = make(tmp_path, "retro", **fields)
    export(run, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    asked = []

    def lookup(chunk):
        """Two neighbours that depend on the chunk alone; the second is short."""
        asked.append(chunk)
        neighbours = (chunk.repeat(1, 2)[:, None] * torch.tensor([3, 5])[:, None] + 1) % VOCAB  # (b, 2, 8)
        return neighbours, (torch.arange(8) < torch.tensor([[8], [5]])).expand_as(neighbours)

    start = tokens(2, 9)
    written = theirs.generate(start, max_new_tokens=10, do_sample=False, eos_token_id=None, lookup=lookup)
    assert torch.equal(torch.stack(asked, 1), written[:, :16].unflatten(1, (4, 4))), "each chunk once, when it is full"
    expected = start
    for _ in range(10):
        found = [lookup(chunk) for chunk in expected[:, : expected.shape[1] // 4 * 4].split(4, dim=1)]
        neighbours, mask = (torch.stack(each, 1) for each in zip(*found, strict=True))
        logits = theirs(input_ids=expected, neighbours=neighbours, neighbour_mask=mask).logits
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, expected)
    assert not torch.equal(written, theirs.generate(start, max_new_tokens=10, do_sample=False, eos_token_id=None))
    beams = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    assert theirs.generate(start, lookup=lookup, **beams).shape == (2, 15)


def test_the_tokenizer_is_ours(tmp_path):
    run, _ = make(tmp_path, "retro")
    export(run, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ours = Tokenizer.load(tmp_path / "tokenizer/manifest.json")
    text = "Zürich lies at 408 m,\n\n  by a lake."
    assert theirs(text)["input_ids"] == ours.encode_batch([text])[0].tolist()
    assert theirs.eos_token_id == EOD and theirs.decode(theirs(text)["input_ids"]) == text


ALONE = """
import importlib.util, sys

sys.path.insert(0, "packages")
for name in ("retro", "pydantic", "snakemake", "pandas", "pyarrow", "onnxruntime"):
    assert importlib.util.find_spec(name) is None, name
import faiss
import numpy as np
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)
index, neighbours = faiss.read_index("index.faiss"), torch.from_numpy(np.load("neighbours.npy"))


def lookup(chunk):
    \"\"\"Two neighbours of each chunk: those whose tokens are the likest.\"\"\"
    return neighbours[torch.from_numpy(index.search(np.eye(257, dtype="f4")[chunk.numpy()].mean(1), 2)[1])], None


start, asked = torch.arange(9)[None], {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
text = model.generate(start, lookup=lookup, **asked)
given = torch.stack([lookup(chunk)[0] for chunk in text[:, :-1].split(4, 1)[: (text.shape[1] - 1) // 4]], 1)
logits = model(input_ids=text[:, :-1], neighbours=given).logits[:, 8:]
assert torch.equal(logits.argmax(-1), text[:, 9:]), "what was kept changes what is written"
closed = model.generate(start, **asked)
print(text.tolist(), closed.tolist(), sep="\\n")
"""


def packages_of(names, folder):
    """A folder of packages, those named and all that they need, in place of all that is installed.

    But pydantic, which some releases of a command line's package ask for and nothing here imports.
    """
    folder.mkdir()
    left, done = [*names], {"pydantic"}
    while left:
        if (name := canonicalize_name(left.pop())) in done:
            continue
        done.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        wanted = [Requirement(each) for each in found.requires or []]
        left += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
        for top in {path.parts[0] for path in found.files if path.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))
    return folder


@pytest.mark.slow
def test_the_folder_reads_an_index_in_a_process_that_has_torch_transformers_and_faiss_alone(fitted, tmp_path):
    ours, run, _ = fitted
    export(run, tmp_path / "out")
    generator = torch.Generator().manual_seed(5)
    found = torch.randint(VOCAB, (30, 8), generator=generator)
    vectors = F.one_hot(found, VOCAB).float().mean(1)
    index = faiss.IndexFlatIP(VOCAB)
    index.add(vectors.numpy())
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    np.save(tmp_path / "neighbours.npy", found.numpy())
    packages_of(["torch", "transformers", "faiss-cpu"], tmp_path / "packages")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", ALONE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, closed = (torch.tensor(json.loads(line)) for line in done.stdout.splitlines())
    assert not torch.equal(text, closed)
    near = index.search(F.one_hot(text[:, :16].unflatten(1, (4, 4))[0], VOCAB).float().mean(1).numpy(), 2)[1]
    cache = DecodingCache(ours)
    pieces = [cache.extend(text[:, :9], found[torch.from_numpy(near)][None, :2])]
    pieces += [
        cache.extend(
            text[:, n : n + 1], found[torch.from_numpy(near)][None, n // 4 : n // 4 + 1] if n % 4 == 3 else None
        )
        for n in range(9, 18)
    ]
    assert torch.equal(torch.cat(pieces, 1)[:, 8:].argmax(-1), text[:, 9:]), "our own writes another text"


def test_a_model_of_megatron_s_goes_on_to_transformers(tmp_path):
    settings = ModelSettings(flavour="megatron", final_norm=True, **SHAPE | {"encoder_width": None})
    padded = build_model(settings, architecture="gpt", seed=1, **LENGTHS | {"vocab_size": 384})
    state = {
        name: tensor.contiguous() for name, tensor in to_megatron(padded.state_dict(), settings, "gpt", "te").items()
    }
    save_file(state, tmp_path / "state.safetensors")
    given = {"heads": 2, "chunk_length": 4, "retrieved_length": 8}
    with pytest.raises(UserError, match="holds 384 tokens, --tokens wants 385"):
        load(tmp_path / "state.safetensors", tmp_path / "model", given, tokens=385)
    load(tmp_path / "state.safetensors", tmp_path / "model", given, tokens=VOCAB)
    write_tokenizer(tmp_path / "tokenizer")
    assert (
        export(tmp_path / "model", tmp_path / "out", tmp_path / "tokenizer/manifest.json") == "gpt, as GPT2LMHeadModel"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.eos_token_id == EOD
    wanted = padded.eval()(tokens())[..., :VOCAB]
    torch.testing.assert_close(theirs(input_ids=tokens()).logits, wanted, atol=1e-6, rtol=0)


@pytest.fixture
def fitted(tmp_path):
    """A RETRO with a folder of Hugging Face's as its base, the run's folder, and that folder."""
    there = tmp_path / "llama"
    _, facts, state = saved(there, "llama", vocab_size=VOCAB + 3)
    fields = decoder(facts, 24) | {"cca_layers": (1, 2), "encoder_width": 8, "encoder_heads": 2, "cca_gate": "none"}
    run, model = make(tmp_path, "retro", **{"layers": 2, **fields})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not retrieves(name):
                found = from_theirs("llama", name, state.__getitem__, model.settings)
                parameter.copy_(found[: len(parameter)])
    rewrite(run, model, {"seed": 1, "train": {}, "from": str(there / "config.json"), "freeze": "base"})
    return model, run, there


def rewrite(run, model, facts):
    """The run's folder again, with these weights and facts."""
    settings = read_manifest(run / "model.json").settings | facts
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, run / "model.safetensors")
    files = [run / "model.safetensors"]
    write_manifest(run / "model.json", kind="model", stage="retro.training.train", files=files, settings=settings)


def test_a_fitted_model_s_base_goes_back_as_it_came(fitted, tmp_path):
    ours, run, there = fitted
    export(run, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out/base" / name).read_bytes() == (there / name).read_bytes()
    assert all(retrieves(name) for name in load_file(tmp_path / "out/retrieval.safetensors"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out/base").eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    x = tokens()
    assert torch.equal(theirs(input_ids=x).logits, ours(x))
    torch.testing.assert_close(ours(x), base(input_ids=x).logits[..., :VOCAB], atol=1e-5, rtol=1e-5)
    neighbours = torch.randint(VOCAB, (2, 6, 2, 8), generator=torch.Generator().manual_seed(4))
    assert torch.equal(theirs(input_ids=x, neighbours=neighbours).logits, ours(x, neighbours))
    assert theirs.generate(x[:1, :5], max_new_tokens=2, do_sample=False).shape[1] <= 7
    theirs.save_pretrained(tmp_path / "whole")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", trust_remote_code=True).eval()
    assert torch.equal(again(input_ids=x).logits, ours(x))
    half = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=torch.bfloat16
    )
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("change", ["another base", "no folder"])
def test_a_base_that_is_no_longer_what_it_was_is_written_with_the_model(change, fitted, tmp_path):
    ours, run, there = fitted
    if change == "no folder":
        there.rename(tmp_path / "moved")
    else:
        with torch.no_grad():
            ours.decoder.layers[0].mlp.up.weight[0, 0] += 1
        rewrite(run, ours, {})
    export(run, tmp_path / "out")
    assert not (tmp_path / "out/base").exists()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    torch.testing.assert_close(theirs(input_ids=tokens()).logits, ours(tokens()), atol=1e-6, rtol=0)


def test_what_cannot_be_exported_is_refused(tmp_path):
    run, _ = make(tmp_path, "retro")
    with pytest.raises(UserError, match="no such tokenizer"):
        export(run, tmp_path / "out", tmp_path / "none.json")
    assert not (tmp_path / "out").exists()
    export(run, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["auto_map"]
    with pytest.raises(UserError, match="holds files already"):
        export(run, tmp_path / "out")
    assert not list(Path(tmp_path).rglob("*.tmp"))


@pytest.mark.parametrize(("architecture", "times"), [("retro", 1), ("gpt", 0)])
def test_a_retro_that_writes_with_its_book_closed_says_so_once(architecture, times, tmp_path):
    run, _ = make(tmp_path, architecture, norm="layernorm", bias=False)
    export(run, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            model.generate(tokens(1, 5), max_new_tokens=2, eos_token_id=None)
    assert sum("its book closed" in str(each.message) for each in said) == times


def test_neighbours_for_text_to_come_are_read_when_it_has_come(tmp_path):
    run, ours = make(tmp_path, "retro")
    export(run, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    neighbours = torch.randint(VOCAB, (1, 4, 2, 8), generator=torch.Generator().manual_seed(4))
    written = model.generate(tokens(1, 8), neighbours=neighbours, max_new_tokens=8, do_sample=False, eos_token_id=None)
    expected = tokens(1, 8)
    for _ in range(8):
        there = neighbours[:, : -(-expected.shape[1] // 4)]
        expected = torch.cat([expected, ours(expected, there)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, expected)

"""Beginning with trained weights: what is taken over, what is frozen, what is refused."""

import json

import pytest
import torch

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.model.build import build_model
from retro.model.settings import ModelSettings
from retro.training.initial import start_from
from retro.training.settings import Run
from retro.training.weights import load_model, retrieves
from tests.training.stage import Stage
from tests.training.toy import run_json

pytestmark = pytest.mark.slow

SHARE = {"samples_share": 0.5, "warmup_samples": 2}


def run(base=None, architecture="retro", **more):
    facts = json.loads(run_json(architecture, **{k: v for k, v in more.items() if k != "freeze"}))
    return json.dumps({**facts, "from": base and str(base), "freeze": more.get("freeze")})


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A GPT, a RETRO fitted to it with the GPT frozen, and one that went on with all weights."""
    folder = tmp_path_factory.mktemp("initial")
    gpt = Stage(config, run_json("gpt"), folder / "gpt")
    assert gpt.run() == 0, gpt.log
    found = {"gpt": gpt}
    for name, more in {"fitted": {"freeze": "base"}, "continued": {}}.items():
        found[name] = Stage(config, run(gpt.output, **SHARE, **more), folder / name)
        assert found[name].run() == 0, found[name].log
    return found


def test_a_retro_fitted_model_without_retrieval_is_its_base_bit_for_bit(trained, dataset):
    gpt, fitted = (load_model(trained[name].output, dataset)[0] for name in ("gpt", "fitted"))
    tokens = torch.randint(257, (3, 32), generator=torch.Generator().manual_seed(1))
    neighbours = torch.randint(257, (3, 4, 2, 16), generator=torch.Generator().manual_seed(2))
    off = gpt(tokens)
    assert torch.equal(fitted(tokens), off)
    assert torch.equal(fitted(tokens, neighbours, torch.zeros_like(neighbours, dtype=torch.bool)), off)
    assert not torch.equal(fitted(tokens, neighbours), off)


def test_only_encoder_and_cross_attention_move_when_the_base_is_frozen(trained, dataset):
    before = json.loads(run())
    base = load_model(trained["gpt"].output, dataset)[0].state_dict()
    fitted, _ = load_model(trained["fitted"].output, dataset)
    continued, _ = load_model(trained["continued"].output, dataset)
    for name, tensor in fitted.state_dict().items():
        assert retrieves(name) or torch.equal(tensor, base[name]), name
    assert any(not torch.equal(t, base[n]) for n, t in continued.state_dict().items() if not retrieves(n))
    lengths = {"vocab_size": 257, "seq_length": 32, "chunk_length": 8, "retrieved_length": 16}
    fresh = build_model(ModelSettings(**before["model"]), architecture="retro", seed=1, **lengths)
    moved = [n for n, t in fresh.state_dict().items() if retrieves(n) and not torch.equal(t, fitted.state_dict()[n])]
    assert {name.split(".")[0] for name in moved} == {"decoder", "encoder"}


def test_a_share_of_the_samples_is_trained_on_and_recorded(trained):
    manifest = read_manifest(trained["fitted"].output, "model")
    assert manifest.counts["samples"] == 20 and manifest.counts["steps"] == 5
    assert any(path.endswith("gpt/model.json") for path in manifest.facts["inputs"])
    assert manifest.settings["recorded"]["tokenizer"]["tokenizer.json"]


def test_a_stopped_retro_fit_resumes_to_the_same_bytes(trained, config, tmp_path):
    stage = Stage(config, run(trained["gpt"].output, freeze="base", **SHARE), tmp_path / "again")
    process = stage.start()
    stage.wait_for("step 4/5", process)  # step 3 left a checkpoint
    process.kill()
    process.join()
    assert stage.run() == 0, stage.log
    assert "start      step" in stage.log
    assert stage.weights == trained["fitted"].weights


def model_of(run_text, **lengths):
    given = Run.parse(run_text, "--run")
    built = {"vocab_size": 257, "seq_length": 32, "chunk_length": 8, "retrieved_length": 16, **lengths}
    return given, build_model(given.model, architecture=given.architecture, seed=1, **built)


def test_retro_goes_on_from_retro(trained, dataset):
    given, model = model_of(run(trained["fitted"].output))
    digest = start_from(model, given, dataset)
    assert digest == read_manifest(trained["fitted"].output).facts["files"]["model.safetensors"]["sha256"]
    theirs = load_model(trained["fitted"].output, dataset)[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("base", "text", "lengths", "message"),
    [
        ("gpt", {"model": {"width": 32}}, {}, "has width 16, this run wants 32"),
        ("gpt", {"model": {"norm": "layernorm"}}, {}, "has norm 'rmsnorm', this run wants 'layernorm'"),
        ("fitted", {"model": {"cca_null": True}}, {}, "has cca_null False, this run wants True"),
        ("fitted", {"architecture": "gpt"}, {}, "is a RETRO, and a gpt run has no place"),
        ("fitted", {}, {"chunk_length": 4}, "chunks of 8 tokens, the dataset has 4"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(base, text, lengths, message, trained, dataset):
    given, model = model_of(run(trained[base].output, **text), **lengths)
    with pytest.raises(UserError, match=message) as error:
        start_from(model, given, dataset)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["vocab_size", "tokenizer"])
def test_another_vocabulary_or_tokenizer_is_refused(what, trained, dataset, tmp_path):
    facts = json.loads(trained["gpt"].output.read_text(encoding="utf-8"))
    facts["settings"]["recorded"][what] = {"vocab_size": 300, "tokenizer": {"tokenizer.json": "0" * 64}}[what]
    (tmp_path / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    given, model = model_of(run(tmp_path / "model.json"))
    with pytest.raises(UserError, match="vocabulary of 300" if what == "vocab_size" else "another tokenizer"):
        start_from(model, given, dataset)

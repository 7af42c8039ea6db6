"""Embedders of other kinds: architectures, poolings, templates, fewer dimensions, an encoder of its own for queries.

What is expected is computed by transformers and a line of pooling; where Sentence-Transformers can be imported, its
own result as well.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.database.encoders import open_encoder
from retro.database.engines import TorchEngine
from retro.database.folders import identity_at, identity_of_given
from retro.database.settings import EncoderSettings
from retro.validate.database import embedding_differences
from retro.validate.sample import Sample
from tests.database.stages import stage

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *["query", "passage", ":", "the", "cat", "sat", "on", "a", "mat", "dog", "river", "Instruct", "Query", "find"],
]
TEXTS = ["the cat sat on a mat", "dog", "", "the dog sat on a river : the cat", "mat " * 40]
ROOM = 24  # word pieces that the models here have places for


def save_words(folder: Path) -> None:
    """A tokenizer of whole words between <s> and </s>, as Hugging Face saves one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=ROOM, **names).save_pretrained(folder)


def make(kind: str, folder: Path, seed: int = 0, width: int = 16) -> Path:
    """A small model with random weights, saved with its tokenizer."""
    import transformers as t

    torch.manual_seed(seed)
    size = {"vocab_size": len(WORDS), "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    bert = {**size, "max_position_embeddings": ROOM}
    if kind == "xlm-roberta":
        model = t.XLMRobertaModel(t.XLMRobertaConfig(**size, max_position_embeddings=ROOM + 1))  # one is the padding's
    elif kind == "modernbert":
        config = t.ModernBertConfig(**bert, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2)
        model = t.ModernBertModel(config)
    elif kind == "qwen3":
        model = t.Qwen3Model(t.Qwen3Config(**bert, num_key_value_heads=1, head_dim=8))
    elif kind.startswith("dpr"):
        context = kind == "dpr-context"
        model = (t.DPRContextEncoder if context else t.DPRQuestionEncoder)(t.DPRConfig(**bert))
    else:
        model = t.BertModel(t.BertConfig(**bert))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.eval().save_pretrained(folder)
    save_words(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("models"), {}

    def find(kind: str) -> Path:
        return made[kind] if kind in made else made.setdefault(kind, make(kind, folder / kind))

    return find


def opened(folder: Path, **settings):
    return open_encoder(EncoderSettings(type="transformers", path=str(folder), **settings), 1)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def pieces_of(text: str) -> list[int]:
    words = [WORDS.index(word) for word in text.split()][: ROOM - 2]
    return [1, *words, 2]


def naive(folder: Path, texts: list[str], pooling: str) -> np.ndarray:
    """One text after the other."""
    from transformers import AutoModel

    model, rows = AutoModel.from_pretrained(folder).eval(), []
    for text in texts:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([pieces_of(text)])).last_hidden_state[0].numpy()
        rows.append(unit({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]))
    return np.stack(rows)


KINDS = ["bert", "xlm-roberta", "modernbert", "qwen3"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_every_architecture_is_pooled_as_asked(models, kind, pooling):
    found = opened(models(kind), pooling=pooling).encode(TEXTS)
    np.testing.assert_allclose(found, naive(models(kind), TEXTS, pooling), atol=1e-5)


def as_sentence_transformer(folder: Path, target: Path, pooling: str) -> Path:
    """The folder as Sentence-Transformers saves it."""
    shutil.copytree(folder, target)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate(modules)
    ]
    (target / "modules.json").write_text(json.dumps(listed))
    names = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    modes = {f"pooling_mode_{name}": key == pooling for key, name in names.items()}
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": width, **modes}))
    (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": ROOM, "do_lower_case": False}))
    return target


@pytest.mark.parametrize(("kind", "pooling"), zip(KINDS, ["mean", "mean", "cls", "last"], strict=True))
def test_a_sentence_transformer_s_folder_says_its_pooling(models, tmp_path, kind, pooling):
    folder = as_sentence_transformer(models(kind), tmp_path / "model", pooling)
    np.testing.assert_allclose(opened(folder).encode(TEXTS), naive(models(kind), TEXTS, pooling), atol=1e-5)
    other = "cls" if pooling == "mean" else "mean"
    np.testing.assert_allclose(
        opened(folder, pooling=other).encode(TEXTS[:2]), naive(models(kind), TEXTS[:2], other), atol=1e-5
    )


@pytest.mark.parametrize(("kind", "pooling"), zip(KINDS, ["mean", "mean", "cls", "last"], strict=True))
def test_it_is_what_sentence_transformers_gives(models, tmp_path, kind, pooling):
    """Templates are its prompts, dimensions its truncation."""
    theirs = pytest.importorskip("sentence_transformers", reason="Sentence-Transformers is not installed")
    folder = as_sentence_transformer(models(kind), tmp_path / "model", pooling)
    ours = opened(folder, passage_template="passage : {text}", query_template="Instruct find Query : {text}")
    model = theirs.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.prompts = {"query": "Instruct find Query : ", "passage": "passage : "}
    for name, found in {"passage": ours.encode(TEXTS), "query": ours.encode_queries(TEXTS)}.items():
        wanted = model.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    wanted = model.encode(TEXTS, truncate_dim=6, normalize_embeddings=True)
    np.testing.assert_allclose(opened(folder, dimensions=6).encode(TEXTS), wanted, atol=1e-5)


def test_templates_are_put_around_the_text(models):
    folder = models("bert")
    encoder = opened(folder, passage_template="passage : {text}", query_template="query : {text} find")
    chunks, queries = [f"passage : {text}" for text in TEXTS[:3]], [f"query : {text} find" for text in TEXTS[:3]]
    assert (encoder.encode(TEXTS[:3]) == opened(folder).encode(chunks)).all()
    assert (encoder.encode_queries(TEXTS[:3]) == opened(folder).encode(queries)).all()


@pytest.mark.parametrize("template", ["query: ", "{text} {text}", "{texts}"])
def test_a_template_without_a_place_for_the_text_is_refused(template):
    with pytest.raises(ValueError, match=r"wanted \{text\} once"):
        EncoderSettings(query_template=template)


def test_fewer_dimensions_are_of_unit_length_again(models):
    whole, short = opened(models("bert")).encode(TEXTS), opened(models("bert"), dimensions=5)
    wanted = np.stack([unit(vector[:5]) for vector in whole])
    np.testing.assert_allclose(short.encode(TEXTS), wanted, atol=1e-6)
    assert short.width == 5
    with pytest.raises(UserError, match=r"dimensions: found 17, but .* has vectors of 16"):
        opened(models("bert"), dimensions=17)


def test_dpr_is_two_berts_of_which_one_asks(models):
    """The first state of each, as transformers pools them; the same by PyTorch, which a GPU takes."""
    from transformers import DPRContextEncoder, DPRQuestionEncoder

    context, question = models("dpr-context"), models("dpr-question")
    encoder = opened(context, query_path=str(question))
    for found, model in (
        (encoder.encode(TEXTS), DPRContextEncoder.from_pretrained(context)),
        (encoder.encode_queries(TEXTS), DPRQuestionEncoder.from_pretrained(question)),
    ):
        for vector, text in zip(found, TEXTS, strict=True):
            with torch.no_grad():
                pooled = model.eval()(torch.tensor([pieces_of(text)])).pooler_output[0].numpy()
            np.testing.assert_allclose(vector, unit(pooled), atol=1e-5)
    states = TorchEngine(context, "cpu", "float32")([np.array(pieces_of(TEXTS[0]))])
    np.testing.assert_allclose(unit(states[0, 0]), encoder.encode(TEXTS[:1])[0], atol=1e-5)


def test_a_query_encoder_of_another_width_is_refused(models, tmp_path):
    wide = make("bert", tmp_path / "wide", width=32)
    encoder = opened(models("bert"), query_path=str(wide))
    encoder.encode(["cat"])  # chunks do not need it
    with pytest.raises(UserError, match=r"query_path .*: gives vectors of 32 dimensions, but those of chunks have 16"):
        encoder.encode_queries(["cat"])
    assert opened(models("bert"), query_path=str(wide), dimensions=8).encode_queries(["cat"]).shape == (1, 8)


def test_weights_in_several_files_are_read(models, tmp_path):
    from transformers import AutoModel

    AutoModel.from_pretrained(models("qwen3")).save_pretrained(tmp_path, max_shard_size="4KB")
    save_words(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    found = opened(tmp_path, pooling="last").encode(TEXTS)
    assert (found == opened(models("qwen3"), pooling="last").encode(TEXTS)).all()
    before = identity_at(str(tmp_path), "last")
    part = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    part.write_bytes(part.read_bytes()[:-1] + b"\1")
    assert identity_at(str(tmp_path), "last") != before


def test_weights_that_are_not_all_there_are_refused(models, tmp_path):
    """transformers would draw them at random."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(models("qwen3"), tmp_path / "part")
    weights = load_file(tmp_path / "part/model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "part/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack layers\.1\.mlp\.up_proj\.weight"):
        opened(tmp_path / "part")


def test_the_manifest_names_the_model_for_queries(corpus, models, tmp_path):
    """And the database's vectors do not depend on it."""
    made = {}
    for name in ("bert", "dpr-question"):
        options = corpus.embed_options(
            "main", type="transformers", path=str(models("bert")), query_path=str(models(name)), pooling="cls"
        )
        options |= {"blocks": tmp_path / name / "blocks", "output": tmp_path / name / "manifest.json"}
        stage("retro.database.embed", **options)
        made[name] = read_manifest(options["output"], "embeddings")
        assert made[name].settings["encoder"]["query_identity"] == identity_at(str(models(name)), "cls")
    one, other = (manifest.file("embeddings.npy").read_bytes() for manifest in made.values())
    assert one == other


@pytest.fixture
def given(corpus, tmp_path):
    """Options that embed the source `main` of vectors in `tmp_path/given`, and those vectors."""
    count = len(read_manifest(corpus.manifest("chunks", "main")).array("chunks.npy"))
    vectors = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (tmp_path / "given").mkdir()

    def options(array: np.ndarray = vectors, **encoder) -> dict:
        np.save(tmp_path / "given/main.npy", array)
        found = corpus.embed_options("main", type="given", path=str(tmp_path / "given"), **encoder)
        return found | {"blocks": tmp_path / "blocks", "output": tmp_path / "manifest.json", "block": 64}

    return vectors, options


def test_vectors_that_are_given_are_taken_as_they_are(given):
    """validate compares them with what is given."""
    vectors, options = given
    stage("retro.database.embed", **options())
    manifest = read_manifest(options()["output"], "embeddings")
    assert (manifest.array("embeddings.npy") == vectors).all()
    recorded = manifest.settings["encoder"]
    assert recorded["engine"] == "given" and recorded["identity"] == identity_of_given(16)
    assert not any(embedding_differences(manifest, Sample(1, 1, manifest), 1))


def test_vectors_of_other_sources_beside_them_change_nothing(given, tmp_path):
    """Not even those of another width, first by name."""
    vectors, options = given
    stage("retro.database.embed", **options())
    before = (tmp_path / "manifest.json").read_bytes()
    np.save(tmp_path / "given/another.npy", vectors[:, :8])
    stage("retro.database.embed", **options())
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert not any(
        embedding_differences(
            read_manifest(tmp_path / "manifest.json"), Sample(1, 1, read_manifest(tmp_path / "manifest.json")), 1
        )
    )
    stage("retro.database.embed", **options(-vectors))
    assert (tmp_path / "manifest.json").read_bytes() != before


WRONG = {
    "too few": (lambda v: v[:-1], r"main\.npy: has \[\d+, 16\] vectors and dimensions, wanted"),
    "not of unit length": (lambda v: scaled(v, 3, 2.0), r"row 3 has length 2, wanted 1\. Divide"),
    "not finite": (lambda v: scaled(v, 70, np.nan), "row 70 has length nan"),
    "nothing": (lambda v: scaled(v, 0, 0.0), "row 0 has length 0, wanted 1"),
    "no floats": (lambda v: (v * 100).astype(np.int8), r"found int8 \[\d+, 16\], wanted floats"),
    "one number a chunk": (lambda v: v[:, 0].copy(), r"found float32 \[\d+\], wanted floats"),
}


def scaled(vectors: np.ndarray, row: int, factor: float) -> np.ndarray:
    found = vectors.copy()
    found[row] *= factor
    return found


@pytest.mark.parametrize("what", WRONG)
def test_vectors_that_do_not_fit_are_refused(given, what):
    vectors, options = given
    change, message = WRONG[what]
    with pytest.raises(UserError, match=message):
        stage("retro.database.embed", **options(change(vectors)))


def test_a_source_without_vectors_and_a_folder_without_any_are_refused(given, tmp_path):
    _, options = given
    wanted = options()
    (tmp_path / "given/main.npy").rename(tmp_path / "given/other.npy")
    with pytest.raises(UserError, match=r"main\.npy: no such file\. Give the vectors of this source"):
        stage("retro.database.embed", **wanted)
    (tmp_path / "given/other.npy").unlink()
    with pytest.raises(UserError, match=r"has no \.npy\. Put <source>\.npy there"):
        stage("retro.database.embed", **wanted)


def test_queries_of_given_vectors_need_the_model_that_is_named_for_them(given, models):
    _, options = given
    settings = EncoderSettings(**options()["settings"]["encoder"])
    with pytest.raises(UserError, match=r"were given .*Set dataset\.encoder\.query_path"):
        open_encoder(settings, 1).encode_queries(["cat"])
    named = settings.model_copy(update={"query_path": str(models("bert")), "query_template": "query : {text}"})
    wanted = opened(models("bert"), query_template="query : {text}").encode_queries(TEXTS)
    assert (open_encoder(named, 1).encode_queries(TEXTS) == wanted).all()

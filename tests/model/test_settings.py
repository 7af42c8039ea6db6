"""Settings: flavours, rules, refusals; and every field does something."""

import random

import pytest
import torch
from pydantic import ValidationError

from retro.model.settings import ModelSettings, apply_flavour, paper_cca_layers
from tests.model.shapes import inputs, small_model

BASE = {"layers": 3, "width": 16, "heads": 4}

# field: (settings to start from, the field's other value)
CHANGES = {
    "flavour": ({}, "megatron"),
    "layers": ({}, 4),
    "width": ({}, 24),
    "heads": ({}, 2),
    "kv_heads": ({}, 2),
    "head_dim": ({}, 6),
    "ffn": ({}, 20),
    "positions": ({}, "learned"),
    "rope_fraction": ({}, 0.5),
    "rope_base": ({}, 50.0),
    "rope_scaling": ({}, {"type": "linear", "factor": 2.0}),
    "norm": ({}, "layernorm"),
    "norm_eps": ({}, 0.1),
    "norm_position": ({}, "after"),
    "parallel_residual": ({}, True),
    "qk_norm": ({}, "head"),
    "activation": ({}, "gelu_tanh"),
    "bias": ({}, True),
    "qkv_bias": ({}, True),
    "tied": ({}, False),
    "final_norm": ({}, False),
    "dropout": ({}, 0.5),
    "attention_dropout": ({}, 0.5),
    "init_std": ({}, 0.03),
    "chunk_alignment": ({}, "end"),
    "mask_padding": ({}, False),
    "cca_layers": ({}, (1,)),
    "cca": ({}, "copy-ready"),
    "cca_heads": ({}, 2),
    "cca_kv_heads": ({}, 2),
    "cca_positions": ({}, "none"),
    "cca_null": ({}, True),
    "cca_gate": ({}, "token"),
    "copy_output": ({"cca": "copy-ready"}, True),
    "copy_context": ({"cca": "copy-ready"}, 1),
    "encoder_layers": ({}, 3),
    "encoder_width": ({}, 8),
    "encoder_heads": ({}, 2),
    "encoder_ffn": ({}, 20),
    "encoder_positions": ({}, "none"),
    "encoder_cross_attention": ({}, (2,)),
    "encoder_residual": ({}, "normed"),
    "encoder_final_norm": ({}, False),
    "encoder_dropout": ({}, 0.5),
    "shared_embeddings": ({}, True),
}


def observe(fields):
    model = small_model(ModelSettings(**(BASE | fields)), shaken=False)
    x, neighbours, mask, _ = inputs(random.Random(0))
    torch.manual_seed(0)
    return model(x, neighbours, mask), {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("field", ModelSettings.model_fields)
def test_every_field_changes_what_is_computed(field):
    start, value = CHANGES[field]
    before, names = observe(start)
    after, others = observe(start | {field: value})
    assert not torch.equal(before, after) or (field.endswith("bias") and names != others)  # biases start at zero


@pytest.mark.parametrize("value", ["gelu", "gelu_tanh", "squared_relu", "swiglu"])
def test_every_activation_is_its_own(value):
    others = {"gelu", "gelu_tanh", "squared_relu", "swiglu"} - {value}
    assert all(not torch.equal(observe({"activation": value})[0], observe({"activation": o})[0]) for o in others)


def test_a_layer_gate_starts_as_the_twin():
    model = small_model(ModelSettings(**BASE, cca_gate="layer"), shaken=False)
    x, neighbours, mask, _ = inputs(random.Random(0))
    assert torch.equal(model(x, neighbours, mask), model(x))


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        (6, (6,)),
        (9, (6, 9)),
        (12, (6, 9, 12)),
        (15, (6, 9, 12, 15)),
        (16, (9, 12, 15)),
        (18, (9, 12, 15, 18)),
        (24, tuple(range(9, 25, 3))),
        (32, tuple(range(9, 31, 3))),
        (48, tuple(range(9, 49, 3))),
        (1, (1,)),
        (2, (1, 2)),
        (4, (2, 4)),
        (5, (3, 5)),
    ],
)
def test_chunked_cross_attention_stands_where_the_paper_puts_it(layers, wanted):
    assert paper_cca_layers(layers) == wanted
    assert ModelSettings(layers=layers).cca_at == wanted


def test_a_flavour_fills_only_what_is_not_given():
    assert apply_flavour({"flavour": "megatron", "bias": False})["bias"] is False
    megatron = ModelSettings(flavour="megatron")
    assert (megatron.norm, megatron.final_norm, megatron.encoder_positions) == ("layernorm", False, "learned")
    assert ModelSettings(flavour="megatron", positions="rope").encoder_positions == "none"
    assert ModelSettings(flavour="copy-ready", cca_null=False).cca_null is False


def test_settings_survive_json():
    for flavour in ("paper", "megatron", "copy-ready"):
        settings = ModelSettings(flavour=flavour, layers=9, width=64)
        assert ModelSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 10, "heads": 4}, "heads is 4, which does not divide width 10"),
        ({"kv_heads": 3}, "kv_heads is 3"),
        ({"cca_layers": (7,)}, "cca_layers names layer 7; layers are counted from 1 to 6"),
        ({"cca_layers": (3, 2)}, "ascending"),
        ({"cca_layers": ()}, "architecture gpt"),
        ({"encoder_cross_attention": (0,)}, "encoder_cross_attention names layer 0"),
        ({"cca": "copy-ready", "cca_kv_heads": 2}, "leave cca_kv_heads out"),
        ({"copy_context": 2}, "copy_context is for"),
        ({"copy_output": True}, "copy_output is for"),
        ({"shared_embeddings": True, "encoder_positions": "learned"}, "no table of positions to share"),
        ({"flavour": "mistral"}, "flavour 'mistral' is unknown; choose one of"),
        ({"head": 4}, "head"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(fields, message):
    with pytest.raises(ValidationError, match=message):
        ModelSettings(**fields)


def test_every_field_is_described():
    assert all(field.description for field in ModelSettings.model_fields.values())


def test_the_flavour_s_output_copier_goes_with_its_cross_attention():
    assert ModelSettings(flavour="copy-ready").copy_output
    assert not ModelSettings(flavour="copy-ready", cca="standard").copy_output
    assert not ModelSettings(flavour="copy-ready", copy_output=False).copy_output

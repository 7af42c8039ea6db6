"""Small random models of transformers, one of each architecture that can be read, and a config.json as hubs have it."""

import json

import torch
from safetensors.torch import load_file

LLAMA = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_hidden_layers": 9,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 40,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 500.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "vocab_size": 260,
    "eos_token_id": 2,
}

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES = {  # a name: the class, and what of its config differs from SIZES
    "llama": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama, biases, heads wider": (
        "Llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 6},
    ),
    "llama, linear rope": (
        "Llama",
        {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    ),
    "llama 3": (
        "Llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 500.0, "original_max_position_embeddings": 16}},
    ),
    "llama, yarn": (
        "Llama",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 50.0,
                "original_max_position_embeddings": 48,
                "beta_fast": 4,
            },
        },
    ),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 32}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", {"num_key_value_heads": 2}),
    "arcee": ("Arcee", {"num_key_value_heads": 2}),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 100.0}}),
    "gpt_neox, in sequence": ("GPTNeoX", {"use_parallel_residual": False, "rope_parameters": {"rope_theta": 100.0,
        "partial_rotary_factor": 1.0, "rope_type": "default"}}),
    "gpt2": ("GPT2", {}),
}  # fmt: skip


def make(name: str, vocab_size: int = 260):
    """The model in float32, every parameter far from its initial value."""
    import transformers  # here, as it takes seconds

    kind, fields = FAMILIES[name]
    sizes = SIZES
    if kind == "GPT2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 256, "bos_token_id": None}
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **fields, "vocab_size": vocab_size})
    kind = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((0.3 if parameter.dim() > 1 else 0.1) * torch.randn_like(parameter))
    return model


def saved(folder, name: str, vocab_size: int = 260):
    """The model, and what it was saved as in `folder`: its config.json and its tensors."""
    model = make(name, vocab_size)
    model.save_pretrained(folder)
    return model, json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")

"""What computes a transformer's hidden states: ONNX Runtime on a CPU, PyTorch on a GPU.

An engine is called with the word pieces of texts, int64 [t] each, and returns the last hidden states float32 [t, d] of
each. The texts are equally long unless it is `packed`. Calls may come from several threads at once; each runs on one
core.

For ONNX Runtime a BERT is built node by node from its weights; no exporter, no cached file. As all texts of a call are
equally long there is no attention mask. ONNX Runtime's fused operators (attention with one matrix product for queries,
keys and values, residual + norm, bias + gelu) make it 5 to 10 % faster than the plain ones.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retro.base.artifacts import read_json
from retro.base.stage import UserError
from retro.database.bfloat16 import Bfloat16Engine, instructions
from retro.database.folders import BERTS, PREFIX, bare
from retro.database.settings import EncoderSettings

DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' Linux


def gpu_available() -> bool:
    """Whether PyTorch can use a GPU. PyTorch, slow to load, is asked only where there is a device file."""
    if not any(Path(file).exists() for file in DEVICE_FILES):
        return False
    import torch

    return torch.cuda.is_available()


def open_engine(folder: Path, config: dict, settings: EncoderSettings) -> "OnnxEngine | TorchEngine | Bfloat16Engine":
    """The engine for a model folder: PyTorch in `gpu_dtype` on a GPU. On a CPU ONNX Runtime for BERT and PyTorch for
    other architectures, both in float32, or for a BERT bfloat16: where the settings say so, or say `auto` and the
    processor can.
    """
    if gpu_available():
        return TorchEngine(folder, "cuda", settings.gpu_dtype)
    wanted, bert = settings.cpu_dtype, config.get("model_type") in BERTS
    if wanted == "bfloat16" and not bert:
        raise UserError(
            f"dataset.encoder.cpu_dtype bfloat16: {folder / 'config.json'} is of model_type "
            f"{config.get('model_type')!r}; only bert computes in bfloat16. Set cpu_dtype: float32."
        )
    if wanted == "bfloat16" or (wanted == "auto" and bert and instructions()):
        plain(config)
        return Bfloat16Engine(folder, config)
    return OnnxEngine(folder, config) if bert else TorchEngine(folder, "cpu", "float32")


def plain(config: dict) -> None:
    """Raise `UserError` for an activation or a position type other than plain BERT's."""
    for key, wanted in {"hidden_act": "gelu", "position_embedding_type": "absolute", "projection_dim": 0}.items():
        if config.get(key, wanted) != wanted:
            raise UserError(f"encoder: its config.json has {key} {config[key]!r}; supported is {wanted!r} only.")


class OnnxEngine:
    """ONNX Runtime, float32. The result for a text depends neither on the batch nor on threads, bit for
    bit.
    """

    name, gpu, packed = "onnxruntime float32", False, False
    alone = True  # a text's result is its own, as said above

    def __init__(self, folder: Path, config: dict):
        import onnxruntime
        from safetensors.numpy import load_file

        self.width = config["hidden_size"]
        weights = {
            bare(name): array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in load_file(folder / "model.safetensors").items()
        }
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            build(weights, config), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, texts: list[np.ndarray]) -> np.ndarray:
        return self._session.run(None, {"pieces": np.stack(texts)})[0]


class TorchEngine:
    """PyTorch, on a GPU in half precision, or on a CPU for architectures other than BERT."""

    alone, packed = False, False  # matrix products of other sizes may round otherwise

    def __init__(self, folder: Path, device: str, dtype: str):
        import torch
        from transformers import AutoModel, BertModel

        self._device, self.gpu, self.name = device, device != "cpu", f"torch {dtype} {device}"
        kind = read_json(folder / "config.json").get("model_type")
        model, told = (BertModel if kind == "dpr" else AutoModel).from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **({"key_mapping": {f"^{PREFIX.pattern}": ""}} if kind == "dpr" else {}),
        )
        missing = sorted(name for name in told["missing_keys"] if "pooler" not in name)
        if missing:
            raise UserError(
                f"{folder}: its weights lack {missing[0]} and {len(missing) - 1} others of a model of type {kind}. "
                f"Save the whole model with save_pretrained."
            )
        model.config.use_cache = False  # of a decoder: nothing follows
        self._model, self.width = model.to(device).eval(), model.config.hidden_size

    def __call__(self, texts: list[np.ndarray]) -> np.ndarray:
        import torch

        if not self.gpu:
            torch.set_num_threads(1)  # of this thread; a new one has all cores until it is told
        with torch.inference_mode():
            ids = torch.from_numpy(np.stack(texts)).to(self._device)
            return self._model(input_ids=ids).last_hidden_state.float().cpu().numpy()


FUSED = "com.microsoft"  # the domain of ONNX Runtime's own operators
OPSET, FUSED_OPSET, IR_VERSION = 17, 1, 8


class _Graph:
    """Collects nodes and constants; `node` returns the name of the node's output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []  # NodeProto
        self.constants: list[Any] = []  # TensorProto

    def constant(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output


def build(weights: dict[str, np.ndarray], config: dict) -> bytes:
    """The serialised graph. `weights` are named as in Hugging Face's BertModel, `config` is its config.json.

    Raises `UserError` as `plain` does.
    """
    plain(config)
    graph, width, epsilon = _Graph(), config["hidden_size"], config["layer_norm_eps"]

    def take(name: str, transposed: bool = False) -> str:
        return graph.constant(name, weights[name].T if transposed else weights[name])

    states = _embeddings(graph, weights, take, epsilon)
    for number in range(config["num_hidden_layers"]):
        states = _layer(graph, weights, take, states, number, config["num_attention_heads"], epsilon)
    from onnx import TensorProto, helper

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "bert",
            [helper.make_tensor_value_info("pieces", TensorProto.INT64, ["b", "t"])],
            [helper.make_tensor_value_info(states, TensorProto.FLOAT, ["b", "t", width])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, FUSED_OPSET)],
        ir_version=IR_VERSION,
    )
    return model.SerializeToString()


def _embeddings(graph: _Graph, weights: dict[str, np.ndarray], take: Callable[..., str], epsilon: float) -> str:
    """Word + position + token type 0, normalised: [b, t, d]."""
    words = take("embeddings.word_embeddings.weight")
    kind = weights["embeddings.token_type_embeddings.weight"][0]
    positions = graph.constant("positions", weights["embeddings.position_embeddings.weight"] + kind)
    zero = graph.constant("zero", np.zeros(1, np.int64))
    length = graph.node("Shape", ["pieces"], "length", start=1, end=2)
    here = graph.node("Slice", [positions, zero, length, zero], "here")
    summed = graph.node("Add", [graph.node("Gather", [words, "pieces"], "words"), here], "summed")
    norm = "embeddings.LayerNorm"
    scale, shift = take(f"{norm}.weight"), take(f"{norm}.bias")
    return graph.node("LayerNormalization", [summed, scale, shift], "embedded", axis=-1, epsilon=epsilon)  # (b, t, d)


def _layer(
    graph: _Graph,
    weights: dict[str, np.ndarray],
    take: Callable[..., str],
    states: str,
    number: int,
    heads: int,
    epsilon: float,
) -> str:
    """One transformer layer, post-norm: [b, t, d] to [b, t, d]."""
    layer, name = f"encoder.layer.{number}", f"layer{number}"
    parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
    joined = np.concatenate([weights[f"{part}.weight"].T for part in parts], axis=1)  # (d, 3d)
    bias = np.concatenate([weights[f"{part}.bias"] for part in parts])
    inputs = [states, graph.constant(f"{name}.qkv", joined), graph.constant(f"{name}.qkv_bias", bias)]
    attended = graph.node("Attention", inputs, f"{name}.attended", FUSED, num_heads=heads)

    def add_and_norm(value: str, residual: str, place: str, output: str) -> str:
        """norm(value · W + bias + residual) of the projection and norm of `place`."""
        product = graph.node("MatMul", [value, take(f"{place}.dense.weight", True)], f"{output}.product")
        norm = [
            take(f"{place}.LayerNorm.weight"),
            take(f"{place}.LayerNorm.bias"),
            take(f"{place}.dense.bias"),
        ]
        return graph.node("SkipLayerNormalization", [product, residual, *norm], output, FUSED, epsilon=epsilon)

    states = add_and_norm(attended, states, f"{layer}.attention.output", f"{name}.middle")
    wide = graph.node("MatMul", [states, take(f"{layer}.intermediate.dense.weight", True)], f"{name}.wide")
    active = graph.node("BiasGelu", [wide, take(f"{layer}.intermediate.dense.bias")], f"{name}.active", FUSED)
    return add_and_norm(active, states, f"{layer}.output", f"{name}.out")

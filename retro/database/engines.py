"""What computes a transformer's hidden states: ONNX Runtime on a CPU, PyTorch on a GPU.

An engine is called with word pieces int64 [b, t], texts of equal length, and returns the last hidden states
float32 [b, t, d]. Calls may come from several threads at once; each runs on one core.
"""

from pathlib import Path

import numpy as np

DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' Linux


def gpu_available() -> bool:
    """Whether PyTorch can use a GPU. PyTorch, slow to load, is asked only where there is a device file."""
    if not any(Path(file).exists() for file in DEVICE_FILES):
        return False
    import torch

    return torch.cuda.is_available()


def open_engine(folder: Path, config: dict, gpu_dtype: str) -> "OnnxEngine | TorchEngine":
    """The engine for a model folder: PyTorch in `gpu_dtype` on a GPU; on a CPU ONNX Runtime for BERT and
    PyTorch for other architectures, both in float32."""
    if gpu_available():
        return TorchEngine(folder, "cuda", gpu_dtype)
    if config.get("model_type") == "bert":
        return OnnxEngine(folder, config)
    return TorchEngine(folder, "cpu", "float32")


class OnnxEngine:
    """ONNX Runtime, float32. The result for a text depends neither on the batch nor on threads, bit for
    bit.
    """

    name, gpu = "onnxruntime float32", False

    def __init__(self, folder: Path, config: dict):
        import onnxruntime
        from safetensors.numpy import load_file

        from retro.database.bert_graph import build

        self.width = config["hidden_size"]
        weights = {
            name.removeprefix("bert."): array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in load_file(folder / "model.safetensors").items()
        }
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            build(weights, config), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, pieces: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"pieces": pieces})[0]


class TorchEngine:
    """PyTorch, on a GPU in half precision, or on a CPU for architectures other than BERT."""

    def __init__(self, folder: Path, device: str, dtype: str):
        import torch
        from transformers import AutoModel

        self._device, self.gpu, self.name = device, device != "cpu", f"torch {dtype} {device}"
        if not self.gpu:
            torch.set_num_threads(1)
        model = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype)
        )
        self._model, self.width = model.to(device).eval(), model.config.hidden_size

    def __call__(self, pieces: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(pieces).to(self._device)
            return self._model(input_ids=ids).last_hidden_state.float().cpu().numpy()

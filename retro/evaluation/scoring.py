"""Run a model over a split and keep what each token cost."""

import numpy as np
import torch

from retro.evaluation.windows import plan
from retro.progress import bar
from retro.training.batches import Batcher


def score(
    model: torch.nn.Module,
    batcher: Batcher,
    losses: np.ndarray,
    seq_length: int,
    stride: int,
    batch_size: int,
    what: str = "losses",
) -> None:
    """Fill `losses`, float32 [C, m], with the nats of every token of the batcher's split; the rest stays
    NaN.
    """
    chunks, m = losses.shape
    windows = plan(chunks, m, seq_length, stride)
    device = next(model.parameters()).device
    first_token = int(batcher.store.tokens(batcher.rows[:1])[0][0, 0])
    losses[:] = np.nan
    flat = losses.reshape(-1)
    with bar(len(windows) * seq_length, what, "tok") as shown, torch.inference_mode():
        for low in range(0, len(windows), batch_size):
            numbers = np.arange(low, min(low + batch_size, len(windows)))
            batch = batcher.batch(windows.positions(numbers))
            batch.targets[numbers > 0, : (windows.length - windows.fresh) * m] = -1  # scored before
            if low == 0:  # what precedes the stream is padding, which by itself predicts nothing
                batch.targets[0, m - 1] = first_token
            batch = batch.to(device)
            found = model(batch.tokens, batch.neighbours, batch.mask, batch.targets)
            found = torch.where(batch.targets >= 0, found, torch.nan).float().cpu().numpy()
            windows.place(numbers, found, flat)
            shown.update(len(numbers) * seq_length)

"""metrics.jsonl and TensorBoard: one line a logged step or validation, cut back to where a run resumes."""

import json
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from retro.artifacts import canonical, write_text

EVENTS = "events.out.tfevents*"


class Metrics:
    """A growing metrics.jsonl, and the same numbers as TensorBoard events.

    Training lines: step, samples, tokens, loss (nats a target, mean since the line before), lr, grad_norm,
    seconds (of training, all attempts), tokens_per_s, mfu and, with `train.log_norms`, zeros (entries of the clipped
    gradient) and parameter_norm (after the update). Validation lines: step, split, retrieval (none,
    on, off), loss, bits_per_byte.
    """

    def __init__(self, path: Path, board: Path, step: int):
        """Keep the lines up to `step`, forget later ones: they will be written again."""
        self.path, self.lines = path, []
        if step and path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    break  # the line that a kill cut short
                if line["step"] <= step:
                    self.lines.append(line)
        write_text(path, "".join(canonical(line) + "\n" for line in self.lines))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        if not step and board.is_dir():
            for old in board.glob(EVENTS):  # curves of a run that this one replaces
                old.unlink()
        self.board = SummaryWriter(board, purge_step=step + 1 if step else None)

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append lines, all or none of them."""
        self.file.write("".join(canonical(line) + "\n" for line in lines))
        self.file.flush()
        self.lines += lines
        for line in lines:
            kind = f"{line['split']}-{line['retrieval']}" if "split" in line else "train"
            for key, value in line.items():
                if isinstance(value, int | float) and key not in ("step", "samples", "tokens"):
                    self.board.add_scalar(f"{kind}/{key}", value, line["step"])

    def validated(self, step: int) -> bool:
        """Whether the validation of a step has been written."""
        return any(line["step"] == step and "split" in line for line in self.lines)

    def last(self) -> dict[str, float]:
        """The last losses: `train`, and for each validation `<split>/<retrieval>`."""
        found = {}
        for line in self.lines:
            name = f"{line['split']}/{line['retrieval']}" if "split" in line else "train"
            found[name] = line["loss"]
        return found

    def sync(self) -> None:
        """Make what was written durable: a checkpoint must not be ahead of its metrics."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.board.flush()

    def close(self) -> None:
        """Close both."""
        self.file.close()
        self.board.close()

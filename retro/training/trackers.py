"""Where metrics are shown as they are logged, beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio, MLflow.

A tracked run is one training, however often it is interrupted. tracked.json, beside its checkpoints, has the run's id
and how many lines of metrics.jsonl each tracker was sent. A training that resumes logs some steps again, to the same
numbers; what was sent stands. A tracker that fails while a model is trained is left out from there, with a warning.
"""

import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from retro.base import provenance
from retro.base.artifacts import read_json, write_json
from retro.base.log import warn
from retro.base.stage import UserError

EVENTS = "events.out.tfevents*"
NOTE = "tracked.json"


class Tracker(Protocol):
    """A tracked run that is open."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Add the numbers of a line of metrics, by name."""

    def flush(self) -> None:
        """Make what was logged durable, where that can be asked for."""

    def close(self) -> None:
        """Leave the run; a training that resumes goes on with it."""


class TensorBoard:
    """Event files in a folder; they forget what came after the step that a run resumes from."""

    def __init__(self, folder: Path, step: int):
        if not step and folder.is_dir():
            for old in folder.glob(EVENTS):  # curves of a run that this one replaces
                old.unlink()
        self.writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Opened:
    """A run of wandb or trackio, which have the same interface."""

    def __init__(self, log: Callable[..., Any], close: Callable[[], Any]):
        self._log, self.close = log, close

    def log(self, values: dict[str, float], step: int) -> None:
        self._log(values, step=step)

    def flush(self) -> None:
        """They write by themselves."""


def wandb(project: str, name: str, note: dict[str, Any], facts: dict[str, Any], folder: Path) -> Tracker:
    """A run of Weights & Biases, as WANDB_MODE, WANDB_API_KEY and `wandb login` say."""
    import wandb

    run = wandb.init(project=project, name=name, id=note["id"], resume="allow", config=facts, dir=folder)
    return Opened(run.log, run.finish)


def trackio(project: str, name: str, note: dict[str, Any], facts: dict[str, Any], folder: Path) -> Tracker:
    """A run of Trackio, which keeps it on this machine (TRACKIO_DIR)."""
    import trackio

    run = trackio.init(project=project, name=f"{name}-{note['id']}", resume="allow", config=facts, embed=False)
    return Opened(run.log, trackio.finish)


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(self, project: str, name: str, note: dict[str, Any], facts: dict[str, Any], folder: Path):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.client, self.metric = MlflowClient(), Metric
        if "mlflow" in note:
            self.client.update_run(note["mlflow"], status="RUNNING")
        else:
            known = self.client.get_experiment_by_name(project)
            experiment = known.experiment_id if known else self.client.create_experiment(project)
            note["mlflow"] = self.client.create_run(experiment, run_name=name).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in flat(facts).items()]
            self.client.log_batch(note["mlflow"], params=params[:100])  # it takes no more at once
        self.run = note["mlflow"]

    def log(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[self.metric(*each, now, step) for each in values.items()])

    def flush(self) -> None:
        """It writes at once."""

    def close(self) -> None:
        self.client.set_terminated(self.run)


OPEN: dict[str, Callable[..., Tracker]] = {"wandb": wandb, "trackio": trackio, "mlflow": MLflow}


def flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping, `train.lr`."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


class Trackers:
    """The trackers that a run names.

    board: TensorBoard's folder; wandb's lies beside it. note: tracked.json. step: the one that training goes on from.
    project, name, facts: the dataset's name, the run's, and its settings.
    """

    def __init__(
        self, names: Sequence[str], board: Path, note: Path, step: int, project: str, name: str, facts: dict[str, Any]
    ):
        self.open: dict[str, Tracker] = {"tensorboard": TensorBoard(board, step)} if "tensorboard" in names else {}
        self.path = note
        self.before = set(provenance.versions())
        fresh: dict[str, Any] = {"id": secrets.token_hex(4), "sent": {}}
        self.note = read_json(note) if step and note.exists() else fresh
        for each in [each for each in names if each in OPEN]:
            try:
                self.open[each] = OPEN[each](project, name, self.note, facts, board.parent)
            except Exception as error:  # whatever the package raises
                raise UserError(
                    f"train.trackers: {each} did not start ({type(error).__name__}: {error}). docs/training.md says "
                    f"how each is told where to write; or take it out of train.trackers, which makes nothing anew."
                ) from None
        if self.open.keys() & OPEN.keys():
            write_json(self.path, self.note)

    def send(self, number: int, kind: str, line: dict[str, Any]) -> None:
        """Log the line of metrics that is the `number`-th, from 1 on; `kind`: train, or what was validated."""
        left_out = ("step", "samples", "tokens")
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key not in left_out}
        values, sent = {f"{kind}/{key}": value for key, value in numbers.items()}, self.note["sent"]
        for each in list(self.open):
            if each in OPEN:
                if number <= sent.get(each, 0):
                    continue
                sent[each] = number
                write_json(self.path, self.note)  # first: rather a gap than a step twice, after a kill in between
            try:
                self.open[each].log(values, line["step"])
            except Exception as error:
                warn(f"{each} takes no more ({type(error).__name__}: {error}); training goes on without it")
                del self.open[each]

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """While a manifest is written: packages that trackers alone imported made nothing of it."""
        brought = set(provenance.versions()) - self.before if self.open.keys() & OPEN.keys() else set()
        hidden = {name: sys.modules.pop(name) for name in brought}
        try:
            yield
        finally:
            sys.modules.update(hidden)

    def flush(self) -> None:
        """Of all of them."""
        for tracker in self.open.values():
            tracker.flush()

    def close(self) -> None:
        """Of all of them."""
        for name, tracker in self.open.items():
            try:
                tracker.close()
            except Exception as error:
                warn(f"{name} did not close ({type(error).__name__}: {error})")

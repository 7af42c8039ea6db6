"""Loading what training wrote."""

import json
import shutil

import pytest
import torch

from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.training.batches import Batcher
from retro.training.metrics import Validation
from retro.training.weights import load_model
from tests.training.stage import Stage
from tests.training.toy import make_dataset, run_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    stage = Stage(config, run_json(), tmp_path_factory.mktemp("trained"))
    assert stage.run() == 0, stage.log
    return stage


def test_a_loaded_model_has_the_losses_that_training_ended_with(trained, dataset):
    model, run = load_model(trained.output, dataset)
    assert run.name == "retro-s1" and not model.training
    batcher = Batcher(dataset, "valid", neighbours_used=2, retrieved_chunks=2)
    torch.set_num_threads(1)
    nats = counted = 0
    validation = Validation.of(dataset, {}, 8, 4)
    with torch.no_grad():
        for start in (0, 4):
            batch = batcher.batch(validation.positions[start : start + 4])
            losses = model(batch.tokens, batch.neighbours, batch.mask, batch.targets)
            nats += float(losses.double().sum())
            counted += batch.counted
    ended = json.loads(trained.output.read_text())["counts"]["losses"]["valid/on"]
    assert nats / counted == pytest.approx(ended, abs=1e-9)


def test_changed_weights_are_refused(trained, dataset, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    path = tmp_path / "run/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model.safetensors: content changed since it was made"):
        load_model(tmp_path / "run/model.json", dataset)


def test_weights_of_another_shape_are_refused(trained, dataset, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    path = tmp_path / "run/model.json"
    facts = json.loads(path.read_text())
    facts["settings"]["model"]["layers"] = 3
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="lacks decoder"):
        load_model(path, dataset)


def test_a_model_of_another_grid_is_refused_with_both_values(trained, tmp_path):
    other = Dataset.open(make_dataset(tmp_path / "other", seq_length=64))
    with pytest.raises(UserError, match=r"was trained with seq_length 32, .*config.json has 64"):
        load_model(trained.output, other)


def test_imported_weights_are_not_loaded_as_a_run(trained, dataset, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    path = tmp_path / "run/model.json"
    facts = json.loads(path.read_text())
    facts["settings"] = {key: facts["settings"][key] for key in ("name", "architecture", "model", "recorded")}
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"model.json: holds imported weights, wanted a run that was trained here"):
        load_model(path, dataset)

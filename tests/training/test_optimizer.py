"""The optimizer and its schedule."""

import pytest
from torch import nn

from retro.training.session import build_optimizer, learning_rate
from retro.training.settings import TrainSettings


@pytest.mark.parametrize(
    "schedule, wanted",
    [
        ("cosine", [0.1, 0.5, 1.0, 0.775, 0.55, 0.1]),
        ("linear", [0.1, 0.5, 1.0, 0.7, 0.55, 0.1]),
        ("constant", [0.1, 0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_schedule_warms_up_linearly_and_ends_at_min_lr(schedule, wanted):
    settings = TrainSettings(lr=1.0, min_lr=0.1, warmup_samples=10, schedule=schedule)
    rates = [learning_rate(settings, samples, 100) for samples in (1, 5, 10, 40, 55, 100)]
    assert rates == pytest.approx(wanted)


def test_without_warm_up_the_first_step_is_not_above_the_peak():
    settings = TrainSettings(lr=1.0, min_lr=0.0, warmup_samples=0)
    assert 0.9 < learning_rate(settings, 1, 10) < 1


def test_only_matrices_decay():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    groups = build_optimizer(model, TrainSettings(weight_decay=0.3)).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[id(p)] for p in model.parameters()] == [0.3, 0.0, 0.0, 0.3, 0.0]

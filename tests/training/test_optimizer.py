"""The optimizer and its schedule."""

import pytest
import torch
from torch import nn

from retro.base.stage import UserError
from retro.training.optimizer import build_optimizer, learning_rate, matrices, refuse_spread
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


def two_layers():
    torch.manual_seed(0)
    model = nn.ModuleDict({"up": nn.Linear(4, 8), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 3, bias=False)})
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_muon_moves_the_matrices_between_states_and_adamw_the_rest():
    model, plain = two_layers(), two_layers()
    settings = TrainSettings(optimizer="muon", lr=0.01, muon_lr=0.02, weight_decay=0.0)
    build_optimizer(model, settings, matrices(model)).step()
    build_optimizer(plain, settings.model_copy(update={"optimizer": "adamw"}), matrices(plain)).step()
    same = {name for name, one in model.named_parameters() if torch.equal(one, plain.get_parameter(name))}
    assert same == {"up.bias", "norm.weight", "norm.bias", "head.weight"}
    moved = two_layers()["up"].weight - model["up"].weight
    along = torch.linalg.svdvals(moved.double())
    assert along.max() / along.min() < 2  # every direction alike, which a gradient's are not
    before = torch.linalg.svdvals(two_layers()["up"].weight.grad.double())
    assert before.max() / before.min() > along.max() / along.min()


def test_all_rates_fall_together():
    model = two_layers()
    optimizer = build_optimizer(model, TrainSettings(optimizer="muon", lr=0.01, muon_lr=0.02), matrices(model))
    optimizer.set_rate(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.005, 0.01]


def test_muon_on_parts_of_matrices_is_refused():
    with pytest.raises(UserError, match=r"train.optimizer is muon, which needs whole matrices"):
        refuse_spread(TrainSettings(optimizer="muon"))
    refuse_spread(TrainSettings())


def test_where_the_base_is_frozen_nothing_is_left_for_muon():
    model = two_layers()
    for parameter in model["up"].parameters():
        parameter.requires_grad_(False)
    optimizer = build_optimizer(model, TrainSettings(optimizer="muon"), matrices(model))
    assert [type(part).__name__ for part in optimizer.parts] == ["AdamW"]
    assert optimizer.state(model["up"].weight) == {}

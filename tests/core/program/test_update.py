"""The owner of a problem's update: order of work, rates as tensors, the same step as a pure function, its state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from mlorun.core.program.pure_steps import PURE_STEPS
from mlorun.core.program.update import UpdateRule
from mlorun.errors import ConfigError
from mlorun.verify.point import equal


def rule_of(make: Any, *, clip: float | None = None, scaler: Any = None, **kwargs: Any) -> UpdateRule:
    torch.manual_seed(0)
    theta = (nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2)))
    optimizer = make(theta, **kwargs)
    return UpdateRule(theta, optimizer, StepLR(optimizer, step_size=2, gamma=0.5), clip, scaler)


def give_gradient(rule: UpdateRule, seed: int = 1) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    gradient = tuple(torch.randn(p.shape, generator=draw) for p in rule.theta)
    rule.add_gradient(gradient)
    return gradient


LOSS = torch.zeros(())
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    "Adam": (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.01, "amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.01}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.5, "centered": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1}),
}


def test_every_registered_step_is_tried_here() -> None:
    assert {kind.__name__ for kind in PURE_STEPS} == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_pure_update_is_the_update(name: str, clip: float | None) -> None:
    make, options = OPTIMIZERS[name]
    rule = rule_of(make, clip=clip, **options)
    for seed in range(4):
        before, now = rule.iterate(copy=True), rule.options()
        gradient = give_gradient(rule, seed)
        pure = rule.apply(now, before, gradient, {})
        rule.step(LOSS, rule.optimizer.step)
        rule.clear_gradient()
        for got, wanted in zip(pure.theta, rule.theta, strict=True):
            torch.testing.assert_close(got, wanted.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_pure_update_leaves_the_state_that_the_optimizer_has(name: str) -> None:
    make, options = OPTIMIZERS[name]
    rule = rule_of(make, **options)
    for size in (1.0, 0.01, 0.01):  # gradients that shrink: a maximum over the past is not the present
        before, now = rule.iterate(copy=True), rule.options()
        gradient = tuple(size * torch.ones_like(p) for p in rule.theta)
        rule.add_gradient(gradient)
        pure = rule.apply(now, before, gradient, {})
        rule.step(LOSS, rule.optimizer.step)
        rule.clear_gradient()
        for got, wanted in zip(pure.state, rule.iterate(copy=False).state, strict=True):
            for key in got:
                torch.testing.assert_close(got[key], wanted[key], rtol=1e-5, atol=1e-7)


def test_rates_are_tensors_that_follow_the_optimizer_in_place() -> None:
    rule = rule_of(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.02)
    rates, decay = rule.learning_rates, rule.decay
    assert decay is not None
    assert [float(rate) for rate in rates] == [0.1, 0.1]
    assert [float(part) for part in (*decay, *rule.momenta)] == [0.02, 0.02, 0.9, 0.9]
    assert all(rate.shape == () for rate in rates)
    for _ in range(2):
        give_gradient(rule)
        rule.step(LOSS, rule.optimizer.step)
    assert [float(rate) for rate in rule.learning_rates] == [0.05, 0.05]
    assert rates[0] is rule.learning_rates[0]  # what has been captured sees the new value
    rule.optimizer.param_groups[0]["weight_decay"] = 0.0
    assert rule.decay is None


def test_each_group_has_its_own_rate_and_a_parameter_that_is_not_held_has_none() -> None:
    theta = tuple(nn.Parameter(torch.ones(())) for _ in range(3))
    groups: list[dict[str, Any]] = [{"params": [theta[0]], "lr": 0.5}, {"params": [theta[2]]}]
    rule = UpdateRule(theta, torch.optim.SGD(groups, lr=0.1), None, None)
    assert [float(rate) for rate in rule.learning_rates] == [0.5, 0.0, 0.1]
    assert rule.options()[1] is None


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_only_decay_that_belongs_to_the_objective_counts(make: Any) -> None:
    decay = rule_of(make, lr=0.1, weight_decay=0.3).decay
    assert (decay is None) == (make is torch.optim.AdamW)


def test_a_scaled_gradient_is_unscaled_before_it_is_clipped() -> None:
    moved = []
    for scaled in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if scaled else None
        rule = rule_of(torch.optim.SGD, lr=1.0, clip=0.5, scaler=scaler)
        before = rule.iterate(copy=True).theta
        factor = 1.0 if scaler is None else float(scaler.scale(torch.ones(())))
        rule.add_gradient(tuple(factor * torch.full_like(p, 2.0) for p in rule.theta))
        rule.step(LOSS, rule.optimizer.step)
        moved.append(torch.cat([(a - b).flatten() for a, b in zip(before, rule.theta, strict=True)]))
    assert float(moved[0].detach().norm()) == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_state_comes_back_and_shares_nothing(name: str) -> None:
    make, options = OPTIMIZERS[name]
    rule, other = rule_of(make, **options), rule_of(make, **options)
    for seed in range(3):
        give_gradient(rule, seed)
        rule.step(LOSS, rule.optimizer.step)
        rule.clear_gradient()
    give_gradient(rule, 7)  # half of an accumulation
    state = rule.state_dict()
    with torch.no_grad():
        for theirs, ours in zip(other.theta, rule.theta, strict=True):
            theirs.copy_(ours)
    other.load_state_dict(copy.deepcopy(state))
    for each in (rule, other):
        give_gradient(each, 8)
        each.step(LOSS, each.optimizer.step)
    assert equal(rule.iterate(copy=False).theta, other.iterate(copy=False).theta)
    assert equal(rule.state_dict(), other.state_dict())


def test_the_scale_of_the_loss_comes_back() -> None:
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1) for _ in range(2)]
    rule, other = (rule_of(torch.optim.SGD, lr=0.1, scaler=scaler) for scaler in scalers)
    scalers[0].scale(LOSS)
    give_gradient(rule)
    rule.step(LOSS, rule.optimizer.step)
    assert scalers[0].get_scale() == 8.0
    other.load_state_dict(rule.state_dict())
    assert scalers[1].get_scale() == 8.0


def test_an_inner_loop_may_restart_elsewhere_with_other_options() -> None:
    rule = rule_of(torch.optim.SGD, lr=0.1, momentum=0.9)
    give_gradient(rule)
    rule.step(LOSS, rule.optimizer.step)
    assert rule.optimizer.state
    start = tuple(torch.full_like(p, 3.0) for p in rule.theta)
    rule.restart(start, {"lr": torch.tensor(0.25)})
    assert equal(rule.iterate(copy=False).theta, start)
    assert not rule.optimizer.state
    assert [float(rate) for rate in rule.learning_rates] == [0.25, 0.25]


def test_an_option_may_have_a_number_for_each_group() -> None:
    theta = tuple(nn.Parameter(torch.ones(())) for _ in range(3))
    groups: list[dict[str, Any]] = [{"params": [theta[0], theta[2]]}, {"params": [theta[1]]}]
    rule = UpdateRule(theta, torch.optim.SGD(groups, lr=0.1, momentum=0.9), None, None)
    learned = {"lr": torch.tensor([0.5, 0.25]), "momentum": torch.tensor(0.75)}
    rule.restart(None, learned)
    assert [float(rate) for rate in rule.learning_rates] == [0.5, 0.25, 0.5]
    assert [float(momentum) for momentum in rule.momenta] == [0.75] * 3
    after = rule.apply(rule.options(), rule.iterate(copy=True), [torch.ones(())] * 3, learned)
    assert [float(each) for each in after.theta] == [0.5, 0.75, 0.5]


def test_an_optimizer_without_a_registered_step_is_refused_by_name() -> None:
    rule = rule_of(torch.optim.Adadelta, lr=0.1)
    with pytest.raises(ConfigError, match="Adadelta has no registered step"):
        rule.precondition((), (), ())

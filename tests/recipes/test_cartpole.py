"""CartPole, and the two levels of actor_critic_cartpole."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from mlorun.recipes.actor_critic import Critic
from mlorun.recipes.cartpole import Carts, fallen, pushed, returns, rollout, start_states

from mlorun.core.state import on_host
from tests.recipes.runs import engine, metrics

pytestmark = pytest.mark.usefixtures("empty_folder")
SMALL = (
    "critic.carts=4",
    "critic.steps=3",
    "critic.warmup_steps=0",
    "actor.time_limit=20",
    "data.selection=2",
    "data.test=2",
)


def test_a_push_moves_cart_and_pole_as_the_equations_of_barto_sutton_and_anderson_say() -> None:
    """By numbers worked out by hand: at rest upright, 10 N to the right; and a leaning pole pushed to the left."""
    states = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.2, 0.1, -0.3]], dtype=torch.float64)
    first, second = pushed(states, torch.tensor([1, 0])).tolist()
    # turning = -(10 / 1.1) / (0.5 (4/3 - 0.1 / 1.1)), speeding = 10 / 1.1 - 0.05 turning / 1.1
    turning = -(10 / 1.1) / (0.5 * (4 / 3 - 0.1 / 1.1))
    assert first == pytest.approx([0, 0.02 * (10 / 1.1 - 0.05 * turning / 1.1), 0, 0.02 * turning])
    drive = (-10 + 0.05 * 0.09 * math.sin(0.1)) / 1.1
    turning = (9.8 * math.sin(0.1) - math.cos(0.1) * drive) / (0.5 * (4 / 3 - 0.1 * math.cos(0.1) ** 2 / 1.1))
    speeding = drive - 0.05 * turning * math.cos(0.1) / 1.1
    assert second == pytest.approx([0.504, 0.2 + 0.02 * speeding, 0.094, -0.3 + 0.02 * turning])


def test_a_pole_falls_beyond_twelve_degrees_and_a_cart_beyond_two_metres_forty() -> None:
    at = torch.tensor([[2.39, 9, 0, 9], [2.41, 0, 0, 0], [-2.41, 0, 0, 0], [0, 0, 0.209, 0], [0, 0, -0.21, 0]])
    assert fallen(at).tolist() == [False, True, True, False, True]


def test_carts_that_fell_or_are_at_their_limit_start_anew_and_the_others_go_on() -> None:
    states = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0.2, 3], [0, 0, 0, 0]])
    carts = Carts(states, torch.tensor([3, 3, 9]))
    (_, _, following, fell), after = rollout(
        carts,
        lambda at: torch.ones(len(at), dtype=torch.long),
        steps=1,
        time_limit=10,
        generator=torch.Generator().manual_seed(0),
    )
    assert fell.tolist() == [False, True, False]  # a limit is no fall: its state has a value
    assert torch.equal(following, pushed(states, torch.ones(3)))
    assert torch.equal(after.states[0], following[0]) and after.ages.tolist() == [4, 0, 0]
    assert (after.states[1:].abs() <= 0.05).all() and after.states[1:].any(dim=1).all()


def test_a_return_is_the_number_of_steps_up_to_the_fall_and_at_most_the_limit() -> None:
    def always_right(at: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(at), dtype=torch.long)

    def balance(at: torch.Tensor) -> torch.Tensor:
        return (at[:, 2] + 0.5 * at[:, 3] + 0.05 * at[:, 0] + 0.1 * at[:, 1] > 0).long()

    at, count = torch.zeros(1, 4), 0
    while not fallen(at).any():
        at, count = pushed(at, always_right(at)), count + 1
    assert returns(torch.zeros(1, 4), always_right, 500).tolist() == [count] == [9]
    starts = start_states(seed=0, selection=3, test=20)["test"]
    assert returns(starts, balance, 200).tolist() == [200] * 20


def test_the_bellman_error_is_zero_at_the_value_of_the_policy() -> None:
    """A pole that falls at every step: every value is that of one reward."""
    program = engine("actor_critic_cartpole", *SMALL)
    critic = program.problems["critic"]
    assert isinstance(critic, Critic)
    batch = (*critic.get_batch()[:3], torch.ones(12, dtype=torch.bool))
    with torch.no_grad():
        for p in critic.theta:
            p.zero_()
        assert float(critic.training_step(batch)) == pytest.approx(0.02**2)  # 1 - discount, squared
        critic.theta[-1].fill_(0.02)
        assert float(critic.training_step(batch)) == pytest.approx(0.0, abs=1e-12)


def test_steps_are_the_same_each_time_they_are_asked_for_and_go_on_from_step_to_step() -> None:
    program = engine("actor_critic_cartpole", *SMALL, "engine.train_iters=3")
    critic = program.problems["critic"]
    seen = []
    for action in program.actions():
        if action.problem == "critic":
            first, again = critic.get_batch(), critic.get_batch()
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
            seen.append(first)
    for earlier, later in pairwise(seen):
        going_on = ~earlier[3][-4:]
        assert torch.equal(earlier[2][-4:][going_on], later[0][:4][going_on])


def test_a_run_that_is_resumed_ends_as_one_that_is_not() -> None:
    command = ("actor_critic_cartpole", *SMALL, "engine.train_iters=12")
    whole, half, rest = engine(*command), engine(*command), engine(*command)
    expected = whole.run()
    for step in half.steps():
        if step == 7:
            break
    rest.load_state_dict(on_host(half.state_dict()))  # as a checkpoint has it
    assert rest.run() == expected
    for name, problem in whole.problems.items():
        assert all(torch.equal(a, b) for a, b in zip(problem.theta, rest.problems[name].theta, strict=True))


@pytest.mark.slow
def test_the_policy_learns_to_balance() -> None:
    assert metrics("actor_critic_cartpole")["test/return"] > 300

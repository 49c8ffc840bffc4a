"""REINFORCE: Bernoulli gates whose expectation can be enumerated, and a policy that learns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import Action, UpdateSchedule
from mlorun.errors import ConfigError, GraphError
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.draws import draw
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.reinforce import Reinforce
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.run.device import Precision
from mlorun.verify.oracles import Row
from tests.hypergradient.stepping import execute, swept

CPU = torch.device("cpu")
GATES, LR, TARGET = 3, 0.5, 1.0
PULL = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


class Gated(Problem):
    """One step of gradient descent towards the sum of the open gates, from 0."""

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        mask = draw(Bernoulli(logits=self.policy.module.row))
        return (self.module.row - mask @ PULL).square().sum() / 2


class Policy(Problem):
    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        return (self.lower.module.row - TARGET).square().sum()


def program(estimate: Hypergradient) -> Engine:
    logits = torch.tensor([0.3, -0.2, 0.1])
    policy = Policy(name="policy", module=Row(logits), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    lower = Gated(
        name="lower",
        module=Row(torch.zeros(1)),
        optimizer=lambda p: torch.optim.SGD(p, lr=LR),
        hypergradient=estimate,
    )
    graph = ProblemGraph.build(["policy", "lower"], {"policy": ["lower"]})
    return Engine([policy, lower], graph, device=CPU, precision=Precision("fp32", CPU), train_iters=10)


def gradients(estimate: Hypergradient, count: int) -> Tensor:
    engine = program(estimate)
    taken: list[Tensor] = []
    policy, lower = engine.problems["policy"], engine.problems["lower"]
    policy.grad_callback = lambda: taken.append(policy.module.row.grad.clone())  # type: ignore[method-assign]
    for _ in range(count):
        with torch.no_grad():
            lower.module.row.zero_()
        execute(engine, Action("lower", starts=True), Action("policy"))
    return torch.stack(taken)


def expectation(logits: Tensor) -> Tensor:
    """E[F] over all masks."""
    p = logits.sigmoid()
    total = torch.zeros(())
    for bits in product((0.0, 1.0), repeat=GATES):
        mask = torch.tensor(bits)
        chance = torch.where(mask > 0, p, 1 - p).prod()
        total = total + chance * (LR * (mask @ PULL) - TARGET).square()
    return total


@pytest.mark.parametrize("baseline", ["none", "average"])
def test_the_mean_over_many_draws_is_the_enumerated_gradient_within_three_sigma(baseline: str) -> None:
    logits = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    (wanted,) = torch.autograd.grad(expectation(logits), logits)
    taken = gradients(Reinforce(baseline, 0.9), 4000)  # type: ignore[arg-type]
    sigma = taken.std(dim=0) / len(taken) ** 0.5
    assert ((taken.mean(dim=0) - wanted).abs() < 3 * sigma).all()
    assert (wanted.abs() > 2 * sigma).any(), "too noisy to tell anything"


def test_the_baseline_lowers_the_variance() -> None:
    plain = gradients(Reinforce("none", 0.9), 500)[1:].var(dim=0).sum()
    centred = gradients(Reinforce("average", 0.9), 500)[1:].var(dim=0).sum()
    assert centred < 0.7 * plain


def test_the_first_call_has_no_baseline_and_later_ones_the_average_of_earlier_rewards() -> None:
    engine = program(Reinforce("average", 0.75))
    (row,) = engine.problems["lower"].theta
    with torch.no_grad():
        row.fill_(0.3)  # from 0 the target can be met, and a reward of 0 shows nothing
    execute(engine, Action("lower", starts=True))
    before, theta = torch.get_rng_state(), row.detach().clone()
    reward = (theta - TARGET).square().sum()

    def call(mean: Tensor | None) -> tuple[Tensor, Tensor]:
        carries = {} if mean is None else {"lower": mean}
        result = swept(engine, "policy", {"lower": (2 * (theta - TARGET),)}, carries)
        return result.edges["lower", "policy"][0], result.carries["lower"]

    first, mean = call(None)
    assert torch.equal(mean, reward)
    earlier = torch.tensor(3.0)
    later, after = call(earlier)
    torch.testing.assert_close(later / (reward - earlier), first / reward)
    torch.testing.assert_close(after, 0.75 * earlier + 0.25 * reward)
    # one carry, one answer; and nothing has moved
    assert torch.equal(call(earlier)[0], later)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(row, theta)


def test_an_edge_of_draws_alone_is_accepted_with_reinforce_and_refused_with_t1t2() -> None:
    program(Reinforce("none", 0.9)).probe()
    with pytest.raises(GraphError, match="does not differentiate through its draws") as error:
        program(Implicit(Identity(1.0), ForwardOverReverse(), "after", "full")).probe()
    assert "reinforce" in str(error.value.fix)


class Chooser(Problem):
    """Trains towards one of three targets, whichever the policy draws."""

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        choice = draw(Categorical(logits=self.policy.module.row))
        return (self.module.row - torch.tensor([0.0, 1.0, 2.0])[choice]).square().sum() / 2


def test_a_policy_learns_to_draw_the_good_option() -> None:
    policy = Policy(name="policy", module=Row(torch.zeros(3)), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    lower = Chooser(
        name="lower",
        module=Row(torch.zeros(1)),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        hypergradient=Reinforce("average", 0.9),
        update_schedule=UpdateSchedule(unroll_steps=3),
    )
    graph = ProblemGraph.build(["policy", "lower"], {"policy": ["lower"]})
    engine = Engine([policy, lower], graph, device=CPU, precision=Precision("fp32", CPU), train_iters=1500)
    engine.run()
    assert policy.module.row.detach().softmax(dim=0)[1] > 0.8


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: Reinforce("mean", 0.9), "baseline"),  # type: ignore[arg-type]
        (lambda: Reinforce("average", 1.0), "decay"),
        (lambda: Reinforce("average", -0.1), "decay"),
    ],
)
def test_an_option_out_of_bounds_is_refused_by_name(build: Callable[[], Hypergradient], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        build()


def test_the_policy_is_a_module_like_any_other() -> None:
    assert isinstance(program(Reinforce("none", 0.9)).problems["policy"].module, nn.Module)

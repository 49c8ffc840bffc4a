"""Actor and critic as two levels (Stackelberg actor-critic, Zheng et al. 2022, arXiv:2109.12286; Hong et al. 2020,
arXiv:2007.05170): the critic solves the Bellman equation of the actor's policy, and the actor sees its answer.

With hypergradient=first_order it is a plain actor-critic: the actor takes the critic for a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlorun import Metric, Problem
from mlorun.run.seeds import derive_seed

from .cartpole import Carts, Transitions, returns, rollout, starts


class Critic(Problem):
    """Lower: the squared Bellman error on fresh steps of the policy. Its module gives (1 - discount) Q(s, .).

    Both expectations over pushes and next states are exact: a next state has no noise, and the next push is averaged
    over the policy. So the squared error is unbiased, and is minimized as it stands, its target included.
    """

    actor: Actor

    def __init__(self, *, seed: int, carts: int, steps: int, time_limit: int, discount: float, **problem: Any) -> None:
        super().__init__(**problem)
        self._seed, self._steps, self._time_limit, self._discount = seed, steps, time_limit, discount
        draw = torch.Generator().manual_seed(derive_seed(seed, "carts"))
        device = self.theta[0].device
        self._carts = Carts(starts(carts, draw).to(device), torch.zeros(carts, dtype=torch.long, device=device))
        self._next, self._since = self._carts, 0

    def get_batch(self) -> Transitions:
        """The steps that follow the policy in this global step: the same each time that it is asked for them."""
        if self.step != self._since:
            self._carts, self._since = self._next, self.step
        draw = torch.Generator().manual_seed(derive_seed(self._seed, "rollout", str(self.step)))
        with torch.no_grad():
            batch, self._next = rollout(
                self._carts,
                lambda states: self.actor.drawn(states, draw),
                steps=self._steps,
                time_limit=self._time_limit,
                generator=draw,
            )
        return batch

    def training_step(self, batch: Transitions) -> Tensor:
        states, pushes, following, fell = batch
        values = self(states).gather(1, pushes[:, None]).squeeze(1)
        future = (self.actor(following).softmax(1) * self(following)).sum(1) * ~fell
        target = (1 - self._discount) + self._discount * future
        error: Tensor = (values - target).square().mean()
        return error

    def state_dict(self) -> Mapping[str, Any]:
        return {"carts": tuple(self._carts), "next": tuple(self._next), "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._carts, self._next, self._since = Carts(*state["carts"]), Carts(*state["next"]), state["since"]


class Actor(Problem):
    """Upper: the critic's value of the policy at the states visited, and a little entropy."""

    critic: Critic

    def __init__(self, *, entropy: float, time_limit: int, **problem: Any) -> None:
        super().__init__(**problem)
        self._entropy, self._time_limit = entropy, time_limit

    def drawn(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """A push for each state, from the policy."""
        right: Tensor = self(states).softmax(1)[:, 1]
        return (torch.rand(len(states), generator=generator).to(right) < right).long()

    def get_batch(self) -> Tensor:
        return self.critic.get_batch()[0]

    def training_step(self, states: Tensor) -> Mapping[str, Metric]:
        logs = self(states).log_softmax(1)
        value = (logs.exp() * self.critic(states)).sum(1).mean()
        entropy = -(logs.exp() * logs).sum(1).mean()
        return {"loss": -value - self._entropy * entropy, "value": value, "entropy": entropy}

    def evaluation_step(self, states: Tensor) -> Mapping[str, Metric]:
        return {"return": returns(states, lambda at: self(at).argmax(1), self._time_limit).mean()}

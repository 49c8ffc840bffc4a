"""Few-shot recipes: MAML, iMAML and ANIL on tasks side by side, and their baselines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mlorun.recipes.few_shot import Copies
from mlorun.recipes.modules import mlp
from torch import Tensor, nn
from torch.func import functional_call

from mlorun.core.engine import Engine
from tests.recipes.runs import engine, metrics

pytestmark = pytest.mark.usefixtures("empty_folder")
SMALL = ("data.tasks.train=20", "data.tasks.valid=5", "data.tasks.test=20")


def before_the_upper_step(program: Engine) -> Engine:
    program.probe()
    for action in program.actions():
        if action.problem == "meta":
            break
    return program


def one_by_one(network: nn.Module, weights: Any, inputs: Tensor) -> Tensor:
    names = [name for name, _ in network.named_parameters()]
    rows = (
        functional_call(network, dict(zip(names, each, strict=True)), (x,))
        for *each, x in zip(*weights, inputs, strict=True)
    )
    return torch.stack(list(rows))


def test_copies_side_by_side_are_copies_one_by_one() -> None:
    copies = Copies(mlp([3, 4, 2]), tasks=5)
    with torch.no_grad():
        for p in copies.copies:
            p.copy_(torch.randn_like(p))
    inputs = torch.randn(5, 6, 3)
    torch.testing.assert_close(copies(inputs), one_by_one(copies.network, tuple(copies.copies), inputs))


def test_maml_goes_far_in_one_step_on_new_tasks_after_little_training() -> None:
    small = ("data.train_tasks=2000", "data.valid_tasks=10", "data.test_tasks=200", "engine.log_every=1000")
    untrained = metrics("maml_sinusoid", "engine.train_iters=1", *small)
    trained = metrics("maml_sinusoid", "engine.train_iters=200", *small)
    assert trained["test/error_after_1"] < 0.85 * trained["test/error_after_0"]
    assert trained["test/error_after_1"] < 0.85 * untrained["test/error_after_1"]


def test_support_and_query_of_an_inner_loop_are_of_the_same_tasks_and_the_next_loop_has_others() -> None:
    program = engine("maml_sinusoid", "engine.train_iters=3", "data.train_tasks=80")
    tasks = []
    meta = program.problems["meta"]
    take = meta.get_batch

    def watched() -> object:
        query = take()
        tasks.append((program.problems["learner"].tasks(), query))
        return query

    program.probe()
    meta.get_batch = watched  # type: ignore[method-assign]
    program.run()
    assert len(tasks) == 3
    assert all(query is task["query"] for task, query in tasks)
    assert not torch.equal(tasks[0][0]["support"][0], tasks[1][0]["support"][0])


@pytest.mark.parametrize("experiment", ["maml_sinusoid", "imaml_digits", "anil_digits"])
def test_every_inner_loop_starts_from_the_meta_weights(experiment: str) -> None:
    small = SMALL if "digits" in experiment else ("data.train_tasks=50",)
    program = engine(experiment, "engine.train_iters=4", "learner.unroll_steps=2", *small, "meta.evaluate_on=[]")
    learner, meta = program.problems["learner"], program.problems["meta"]
    start = list(meta.theta)[-len(learner.theta) :]  # the last layers where the others are not adapted
    same: list[bool] = []
    step = learner.training_step

    def watched(batch: Any) -> Any:
        if learner.step % 2 == 0 and learner.theta[0].is_leaf:
            same.append(all(torch.equal(a, b.expand_as(a)) for a, b in zip(learner.theta, start, strict=True)))
        return step(batch)

    program.probe()
    learner.training_step = watched  # type: ignore[method-assign]
    program.run()
    assert sum(same) >= 2


def test_the_evaluation_adapts_as_training_does() -> None:
    short = ("engine.train_iters=3", "learner.unroll_steps=3", "learner.batch_size=2", "meta.evaluate_after=[3]")
    program = before_the_upper_step(engine("maml_sinusoid", *short, "data.train_tasks=2"))
    learner, meta = program.problems["learner"], program.problems["meta"]
    by_hand = meta.training_step(learner.tasks()["query"])["loss"]  # type: ignore[index]
    evaluated = meta.evaluation_step(learner.tasks())["error_after_3"]
    assert float(evaluated.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)  # type: ignore[union-attr]


def test_the_gradient_of_imaml_is_the_paper_s_formula() -> None:
    """For each task, proximity (H + proximity I)^-1 v, with the dense Hessian H of its cross entropy (theorem 1)."""
    proximity = 0.7
    program = before_the_upper_step(
        engine(
            "imaml_digits", *SMALL, "meta.module.sizes=[64,5]", f"learner.proximity={proximity}",
            "learner.batch_size=2", "learner.hypergradient.solve.iterations=200",
            "learner.hypergradient.solve.damping=0",
        )
    )  # fmt: skip
    learner = program.problems["learner"]
    (inputs, labels), (queries, targets) = (learner.tasks()[part] for part in ("support", "query"))
    expected = torch.zeros(5 * 64 + 5, dtype=torch.float64)
    for task in range(2):
        at = torch.cat([p[task].flatten() for p in learner.theta]).detach().double()

        def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(x.flatten(1).double(), w[:320].view(5, 64), w[320:]), y)

        hessian = torch.autograd.functional.hessian(lambda w, t=task: loss(w, inputs[t], labels[t]), at)
        v = torch.autograd.functional.jacobian(lambda w, t=task: loss(w, queries[t], targets[t]) / 2, at)
        expected += proximity * torch.linalg.solve(hessian + proximity * torch.eye(len(at)), v)  # type: ignore[arg-type]
    got = torch.cat([part.flatten() for part in program.gradient("meta")])
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-6)


def test_the_gradient_of_anil_is_that_of_its_steps_written_out() -> None:
    program = before_the_upper_step(engine("anil_digits", *SMALL, "learner.batch_size=2", "learner.unroll_steps=3"))
    learner, meta = program.problems["learner"], program.problems["meta"]
    rate = learner.optimizer.param_groups[0]["lr"]
    *body, weight, bias = meta.theta

    def features(x: Tensor) -> Tensor:
        result = x.flatten(1)
        for w, b in zip(body[::2], body[1::2], strict=True):
            result = F.relu(F.linear(result, w, b))
        return result

    total = torch.zeros(())
    for task in range(2):
        (x, y), (query, target) = ((part[task] for part in learner.tasks()[key]) for key in ("support", "query"))
        head = (weight, bias)
        for _ in range(3):
            loss = F.cross_entropy(F.linear(features(x), *head), y)
            slopes = torch.autograd.grad(loss, head, create_graph=True)
            head = tuple(w - rate * slope for w, slope in zip(head, slopes, strict=True))  # type: ignore[assignment]
        total = total + F.cross_entropy(F.linear(features(query), *head), target) / 2
    for got, wanted in zip(program.gradient("meta"), torch.autograd.grad(total, list(meta.theta)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_proximity_below_the_negative_curvature_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A new user's iMAML got worse than untrained where H + proximity I was not positive definite."""
    short = ("engine.train_iters=4", "learner.unroll_steps=4", "meta.evaluate_on=[]")
    weak = ("learner.hypergradient.solve.damping=0", "learner.proximity=0.001")
    program = engine("imaml_digits", *SMALL, *short, *weak)
    with torch.no_grad():
        for p in program.problems["meta"].theta:
            p.mul_(3)
    program.run()
    assert "its hypergradient is not to be trusted" in caplog.text


@pytest.mark.parametrize("shots", [1, 5])
def test_features_of_all_training_classes_know_new_ones(shots: int) -> None:
    small = (f"data.shots={shots}", "engine.train_iters=100", *SMALL)
    assert metrics("few_shot_digits_baseline", *small)["test/accuracy_nearest_mean"] > 50


def test_a_pretrained_network_hardly_adapts_to_a_sinusoid() -> None:
    found = metrics("maml_sinusoid_baseline", "engine.train_iters=200", "data.train_tasks=1000")
    assert 2.5 < found["test/error_after_1"] < found["test/error_after_0"] < 4.5


@pytest.mark.slow
def test_maml_adapts_in_one_step_and_its_baseline_does_not_in_ten() -> None:
    # three seeds: 0.51 to 0.55 after one step, 0.14 to 0.17 after ten
    learned, pretrained = metrics("maml_sinusoid"), metrics("maml_sinusoid_baseline")
    assert 0.3 < learned["test/error_after_1"] < 0.7
    assert learned["test/error_after_10"] < 0.3
    assert pretrained["test/error_after_10"] > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "steps", "low", "high"), [("imaml_digits", 16, 77, 87), ("anil_digits", 5, 72, 83)]
)
def test_learned_starts_beat_untrained_ones(experiment: str, steps: int, low: float, high: float) -> None:
    short = ("meta.optimizer.lr=0", "engine.train_iters=16")
    learned, untrained = (metrics(experiment, *change)[f"test/accuracy_after_{steps}"] for change in ((), short))
    assert low < learned < high
    assert learned > untrained + 2

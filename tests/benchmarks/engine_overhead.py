"""The engine against a hand-written eager loop doing the same arithmetic on mwn_mnist, side by side.

    MLORUN_DATA=path/to/data python -m tests.benchmarks.engine_overhead [OVERRIDES...]

Both start from the same parameters and draw the same batches of the same device-resident tensors. They take turns in
one process, a block of steps each; the numbers are medians over blocks. `experiment=...`-style overrides apply to
both as far as the hand loop knows them: classifier.optimizer.lr and so on, not other estimators than darts and t1t2.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlorun
from mlorun.core.engine import Engine

WARM_UP, BLOCKS, BLOCK = 50, 40, 50


def hand_loop(engine: Engine, radius: float) -> Callable[[int], None]:
    """Meta-Weight-Net with darts as one writes it by hand: default torch optimizers, one loop, no framework."""
    classifier = copy.deepcopy(engine.problems["classifier"].module)
    weight_net = copy.deepcopy(engine.problems["reweight"].module)
    sgd = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9)
    milestones = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones=[1500, 2500])
    adam = torch.optim.Adam(weight_net.parameters(), lr=1e-5)
    train = copy.deepcopy(engine.problems["classifier"].stream)
    balanced = copy.deepcopy(engine.problems["reweight"].stream)
    assert train is not None and balanced is not None
    theta, lam = list(classifier.parameters()), list(weight_net.parameters())

    def lower_loss(inputs: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(classifier(inputs), labels, reduction="none")[:, None]
        return (weight_net(losses.detach()) * losses).mean()

    def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
        return 100.0 * (outputs.detach().argmax(dim=1) == labels).float().mean()

    def step() -> None:
        inputs, labels = next(train)
        outputs = classifier(inputs)
        losses = F.cross_entropy(outputs, labels, reduction="none")[:, None]
        loss = (weight_net(losses.detach()) * losses).mean()
        accuracy(outputs, labels)
        for parameter, grad in zip(theta, torch.autograd.grad(loss, theta), strict=True):
            parameter.grad = grad
        sgd.step()
        milestones.step()

        meta_inputs, meta_labels = next(balanced)
        outputs = classifier(meta_inputs)
        v = torch.autograd.grad(F.cross_entropy(outputs, meta_labels), theta)
        accuracy(outputs, meta_labels)
        eps = radius / torch.cat([part.flatten() for part in v]).norm()
        with torch.no_grad():
            kept = [parameter.clone() for parameter in theta]
            for parameter, part in zip(theta, v, strict=True):
                parameter.add_(eps * part)
        ahead = torch.autograd.grad(lower_loss(inputs, labels), lam)
        with torch.no_grad():
            for parameter, start, part in zip(theta, kept, v, strict=True):
                parameter.copy_(start - eps * part)
        behind = torch.autograd.grad(lower_loss(inputs, labels), lam)
        with torch.no_grad():
            for parameter, start in zip(theta, kept, strict=True):
                parameter.copy_(start)
        for parameter, plus, minus in zip(lam, ahead, behind, strict=True):
            parameter.grad = -(plus - minus) / (2 * eps)
        adam.step()

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    run.parameters = (classifier, weight_net)  # type: ignore[attr-defined]
    return run


def engine_loop(engine: Engine) -> Callable[[int], None]:
    def run(steps: int) -> None:
        engine.train_iters = engine.step_count + steps
        engine.run()

    return run


def timed(loop: Callable[[int], None]) -> float:
    """Milliseconds a step over one block."""
    start = time.perf_counter()
    loop(BLOCK)
    return 1e3 * (time.perf_counter() - start) / BLOCK


def distance(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest difference of any parameter, relative to the largest parameter."""
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def main() -> None:
    torch.set_num_threads(2)
    config = mlorun.compose(["experiment=mwn_mnist", "problems.classifier.evaluate_on=[]", *sys.argv[1:]])
    engine = mlorun.build(config)
    engine.log_every = 10**9
    hand = hand_loop(engine, radius=config.problems.classifier.hypergradient.cross.radius)
    ours = engine_loop(engine)
    hand(WARM_UP)
    ours(WARM_UP)
    classifier, weight_net = hand.parameters  # type: ignore[attr-defined]
    for name, module in (("classifier", classifier), ("reweight", weight_net)):
        print(f"after {WARM_UP} steps the parameters of {name} differ by", end=" ")
        print(f"{distance(engine.problems[name].module, module):.1e} (relative, largest)")
    times: dict[str, list[float]] = {"hand": [], "mlorun": []}
    for block in range(BLOCKS):
        pair = [("hand", hand), ("mlorun", ours)]
        for name, loop in pair if block % 2 else reversed(pair):
            times[name].append(timed(loop))
    ratios = [a / b for a, b in zip(times["mlorun"], times["hand"], strict=True)]
    for name, values in times.items():
        quartiles = statistics.quantiles(values, n=4)
        print(
            f"{name:8s} median {statistics.median(values):.3f} ms a step, "
            f"quartiles {quartiles[0]:.3f} {quartiles[2]:.3f}"
        )
    print(f"ratio of medians {statistics.median(times['mlorun']) / statistics.median(times['hand']):.3f}, ", end="")
    print(
        f"median of block ratios {statistics.median(ratios):.3f} ({BLOCKS} blocks of {BLOCK} steps, interleaved, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__})")


if __name__ == "__main__":
    main()

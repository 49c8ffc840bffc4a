"""Memory of unrolled differentiation against the length of the inner loop.

    python -m tests.benchmarks.unrolled_memory [--plot FILE]

Peak bytes of live tensors during T recorded updates of a 784-200-10 classifier (SGD with momentum, batches of 100 from
a stream, as mwn_mnist's) and one hypergradient. The exponent is the slope on log-log axes, of what grows: the peak of a
loop of one update is taken off.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from mlorun.recipes.modules import WeightNet, mlp
from mlorun.recipes.reweighting import Reweight, WeightedClassifier

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.data.stream import stream
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.run.device import Precision
from mlorun.verify.memory import PeakMemory

LENGTHS = (16, 64, 256)


def peak(length: int, memory: Any) -> int:
    """Bytes, of one inner loop and its hypergradient."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    data = torch.randn(5000, 1, 28, 28), torch.randint(10, (5000,))

    def batches(name: str) -> Any:
        return stream(data, batch_size=100, seed=0, name=name, device=device)

    problems = [
        Reweight(
            name="reweight",
            module=WeightNet(1, 100),
            optimizer=lambda p: torch.optim.Adam(p, lr=1e-5),
            stream=batches("reweight"),
        ),
        WeightedClassifier(
            name="classifier",
            module=mlp([784, 200, 10], 0.0, True),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            stream=batches("classifier"),
            hypergradient=Unrolled(None, memory),
            update_schedule=UpdateSchedule(unroll_steps=length),
        ),
    ]
    engine = Engine(
        problems,
        ProblemGraph.build(["reweight", "classifier"], {"reweight": ["classifier"]}),
        device=device,
        precision=Precision("fp32", device),
        train_iters=length,
        log_every=10**6,
    )
    with PeakMemory() as watch:
        engine.run()
    return watch.peak


def main() -> None:
    """Print the table; draw it if asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plot", type=Path)
    picture = parser.parse_args().plot
    table = {kind: {length: peak(length, kind) for length in (1, *LENGTHS)} for kind in ("iterates", "sqrt")}
    for kind, peaks in table.items():
        shown = "  ".join(f"T = {length}: {peaks[length] / 1e6:7.1f} MB" for length in (1, *LENGTHS))
        first, last = (peaks[length] - peaks[1] for length in (LENGTHS[0], LENGTHS[-1]))
        exponent = math.log(last / first) / math.log(LENGTHS[-1] / LENGTHS[0])
        print(f"{kind:9s} {shown}  exponent {exponent:.2f}")
    if picture is not None:
        draw(table, picture)


def draw(table: dict[str, dict[int, int]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind, peaks in table.items():
        axes.plot(LENGTHS, [peaks[length] / 1e6 for length in LENGTHS], marker="o", label=f"memory: {kind}")
    axes.set(xscale="log", yscale="log", xlabel="updates of the inner loop", ylabel="peak of live tensors, MB")
    axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    sizes = (10, 20, 50, 100, 200, 500)
    axes.set_yticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

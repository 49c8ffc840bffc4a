"""Every public name of torch and torchvision at every place of a config: refused, but for what belongs there.

    python -m tests.reliability.places

The walk goes through the modules that training, models and torch's own tools import, private ones left out, and through
every public callable in them, under each name that it has there. What is let in must be a class that derives from what
its place is for, or one of torchvision's models.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module

from mlorun.config.places import PLACES, Allowed
from mlorun.errors import ConfigError

# with what these import in their turn
TOOLS = (
    "torch.distributed.run", "torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing", "torch.hub",
    "torch.utils.collect_env", "torch.utils.cpp_extension", "torch.utils.data", "torch.utils.model_zoo", "torch.jit",
    "torch.package", "torch.fx", "torch.export", "torch.onnx", "torch.profiler", "torch.optim.lr_scheduler",
    "torch.serialization", "torchvision.models", "torchvision.datasets.utils", "torchvision.transforms",
    "torchvision.io",
)  # fmt: skip
ROOTS = ("torch", "torchvision")


def public_names() -> Iterator[str]:
    """module.name of every public callable, by each public name that it has."""
    for tool in TOOLS:
        import_module(tool)
    for module in sorted(sys.modules):
        parts = module.split(".")
        if parts[0] in ROOTS and not any(part.startswith("_") for part in parts):
            for name, value in sorted(vars(sys.modules[module]).items()):
                if not name.startswith("_") and callable(value):
                    yield f"{module}.{name}"


def belongs(place: str, target: str) -> bool:
    """Whether it is what the place is for, by a look that shares nothing with `Allowed`."""
    import torch
    from torchvision.models import list_models

    module, _, name = target.rpartition(".")
    found = getattr(sys.modules[module], name)
    if not inspect.isclass(found):
        return place in ("module", "argument") and found.__name__ in list_models()
    bases = {
        "module": torch.nn.Module,
        "argument": torch.nn.Module,
        "optimizer": torch.optim.Optimizer,
        "scheduler": torch.optim.lr_scheduler.LRScheduler,
    }
    return place in bases and issubclass(found, bases[place])


def main() -> int:
    names = list(public_names())
    functions = sum(
        inspect.isroutine(getattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2])) for name in names
    )
    refused, allowed, wrong = Counter[str](), Counter[str](), []
    for place in PLACES:
        here = Allowed.at(place)
        for name in names:
            try:
                here.locate(name, "here")
            except ConfigError:
                refused[place] += 1
            else:
                allowed[place] += 1
                if not belongs(place, name):
                    wrong.append(f"{name} as {place}")
        print(f"{place}: {refused[place]:,} refused, {allowed[place]:,} let in", flush=True)
    print(
        f"{len(names):,} names, {functions:,} of them functions, at {len(PLACES)} places: "
        f"{len(wrong)} let in that do not belong there"
    )
    for line in wrong:
        print(f"  {line}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

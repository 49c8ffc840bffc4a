"""A problem's own defaults for optimizer options: the `${optimizer_default:...}` of configs/optimizer. No torch.

    configs/optimizer/adam.yaml          lr: ${optimizer_default:adam,1.0e-3}
    configs/experiment/mwn_mnist.yaml    problems: {reweight: {optimizer_defaults: {adam: {lr: 1.0e-5}}}}

With adam, reweight's learning rate is 1e-5; with another optimizer it is that optimizer's own. A number typed on the
command line replaces the `${optimizer_default:...}`, so it wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, Node, OmegaConf

from mlorun.config.locations import config_folders, options
from mlorun.config.option_files import content
from mlorun.errors import ConfigError, did_you_mean

RESOLVER = "optimizer_default"
_being_read: set[int] = set()  # the nodes whose default is being looked up


def _default(option: str, value: Any, *, _node_: Node, _parent_: Container) -> Any:
    """What the problem around this optimizer has in `optimizer_defaults` for the option and this key; else `value`."""
    problem = _parent_._get_parent()
    given = problem.get("optimizer_defaults") if isinstance(problem, DictConfig) else None
    of_option = given.get(option) if given else None
    key = _node_._key()
    if of_option and key in of_option:
        if id(_node_) in _being_read:  # OmegaConf would go round for ever
            path = _node_._get_full_key(None)
            raise ConfigError(
                "a reference in the config leads back to itself", where=path, fix="give the default a number of its own"
            )
        _being_read.add(id(_node_))
        try:
            value = of_option[key]
        finally:
            _being_read.discard(id(_node_))
    # OmegaConf takes no plain list from a resolver
    return OmegaConf.create(value) if isinstance(value, list | ListConfig) else value


OmegaConf.register_new_resolver(RESOLVER, _default, replace=True)


def faults(defaults: Mapping[str, Mapping[str, Any]], where: str) -> Iterator[ConfigError]:
    """Faults of a problem's `optimizer_defaults`, which stands at `where`: an unknown option, an unknown key."""
    known = options("optimizer")
    for option, numbers in defaults.items():
        if option not in known:
            yield ConfigError(
                f"optimizer has no option {option!r}", where=f"{where}.{option}", fix=did_you_mean(option, known)
            )
            continue
        keys = _keys(option)
        for key, number in numbers.items():
            if key not in keys:
                advice = did_you_mean(key, keys) if keys else "none of its keys does"
                yield ConfigError(
                    f"optimizer option {option!r} has no key {key!r} that takes a default",
                    where=f"{where}.{option}.{key}",
                    seen=f"{key}: {number!r}",
                    fix=f"{advice}; a key takes one if {known[option].name} has KEY: ${{{RESOLVER}:{option},NUMBER}}",
                )


def _keys(option: str) -> set[str]:
    """The keys of an optimizer option that take a default: of the user's file, and of ours."""
    files = [folder / "optimizer" / f"{option}.yaml" for folder in config_folders()]
    return {
        str(key)
        for file in files
        if file.is_file()
        for key, text in content(file).items()
        if str(text).startswith(f"${{{RESOLVER}:{option},")
    }

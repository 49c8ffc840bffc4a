"""A config with ${oc.env:NAME} in place of every secret in its texts. No torch."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from mlorun.run.secrets import masked


def masked_config(config: DictConfig) -> DictConfig:
    """A copy of a resolved config, the secrets in its texts masked."""
    copy = config.copy()
    text = str(OmegaConf.to_container(copy, resolve=True))
    if masked(text) != text:
        _mask(copy)
    return copy


def _mask(node: Any) -> None:
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            _mask(value)
        elif isinstance(value, str) and (text := masked(value)) != value:
            node[key] = text

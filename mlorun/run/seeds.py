"""Seeds: one number that everything random in a run is derived from."""

from __future__ import annotations

import hashlib
import os
import random

import numpy as np
import torch

from mlorun.errors import ConfigError


def derive_seed(seed: int, *names: str) -> int:
    """A seed in 0 .. 2**63 - 1 for the purpose that the names spell; the same on every machine and Python."""
    # repr keeps ("a", "bc") and ("ab", "c") apart
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Start Python's, numpy's and torch's random numbers, the latter on every device, from `seed`."""
    random.seed(seed)
    # numpy's global generator takes 32 bits, torch's 64
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def prepare_torch(device: torch.device, *, threads: int | None, deterministic: bool) -> None:
    """Make torch compute on `device` with so many CPU threads and, if deterministic, the same bits always."""
    if threads is not None:
        if threads < 1:
            raise ConfigError(
                "a run needs a thread",
                where="threads",
                seen=f"threads={threads}",
                fix="threads=1 or more, or threads=null for torch's own choice",
            )
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            # read when cuBLAS starts, so before the first matrix product; a user's own value is kept
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # as use_deterministic_algorithms(deterministic, warn_only=True), which imports torch's compiler: a second
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    # a debugging aid that fills every torch.empty with NaN; nothing here reads memory it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

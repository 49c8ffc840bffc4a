"""Device and precision: from the config's words to torch's objects."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mlorun.errors import DeviceError, did_you_mean

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GPU_WORDS = ("gpu", "nvidia", "rocm", "hip")  # what people call it
# one for all steps: a null context has no state
_FULL: AbstractContextManager[None] = nullcontext()


def available_devices() -> tuple[str, ...]:
    """The names of all devices here, fastest first; cpu is always the last."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return (*gpus, *mps, "cpu")


def resolve_device(text: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` as a device that exists here. Raises DeviceError."""
    here = available_devices()
    if text == "auto":
        # CUDA_VISIBLE_DEVICES, or the caller, has chosen the current GPU
        return _current_gpu() if here[0].startswith("cuda") else torch.device(here[0])
    if text == "cuda" and here[0].startswith("cuda"):
        return _current_gpu()
    if text in here:
        return torch.device(text)
    kind, _, index = text.partition(":")
    if kind == "cuda" and (text == "cuda" or index.isdecimal()):
        raise _no_gpu(text, here)
    if text == "mps":
        built = torch.backends.mps.is_built()
        raise DeviceError(
            "there is no Apple GPU here",
            where="device",
            seen="device=mps, and " + ("macOS is too old for it" if built else "a torch built without mps"),
            fix=_instead(here),
        )
    if text.strip().lower().partition(":")[0] in _GPU_WORDS:
        raise DeviceError(
            f"{text!r} is not a device; torch's name for a GPU is {'mps' if 'mps' in here else 'cuda'}",
            where="device",
            seen=f"device={text}, and this machine has {', '.join(here)}",
            fix=_instead(here),
        )
    raise DeviceError(
        f"{text!r} is not a device",
        where="device",
        seen=f"device={text}",
        fix=did_you_mean(text.strip().lower(), {"auto", "cuda", "mps", *here}),
    )


def describe(device: torch.device) -> str:
    """The device as a person would say it: `cuda:0 (NVIDIA H200)`, `cpu`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _current_gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _no_gpu(text: str, here: tuple[str, ...]) -> DeviceError:
    gpus = [name for name in here if name.startswith("cuda")]
    if gpus:
        count = len(gpus)
        seen = f"device={text}, and {count} GPU{'s' if count > 1 else ''}: {', '.join(gpus)}"
        return DeviceError("there is no such GPU here", where="device", seen=seen, fix=f"device={gpus[-1]}")
    built = torch.version.cuda is not None
    why = "no GPU or driver that torch can use" if built else "a torch built without CUDA"
    return DeviceError(
        "there is no CUDA GPU here",
        where="device",
        seen=f"device={text}, and {why} (torch {torch.__version__})",
        fix=_instead(here),
    )


def _instead(here: tuple[str, ...]) -> str:
    return f"device={here[0]}, or device=auto for the best there is"


@dataclass(frozen=True)
class Precision:
    """`fp32`, `bf16` or `fp16` on a device. Raises DeviceError where that cannot be had."""

    name: str
    device: torch.device

    def __post_init__(self) -> None:
        if self.name not in DTYPES:
            raise DeviceError(
                f"{self.name!r} is not a precision",
                where="precision",
                seen=f"precision={self.name}",
                fix=did_you_mean(self.name.strip().lower(), DTYPES),
            )
        if self.name == "fp32":
            return
        # bfloat16 came to Apple GPUs with macOS 14; torch would warn and go on in float32
        too_old = self.name == "bf16" and self.device.type == "mps" and not _macos_14()
        if too_old or not torch.amp.is_autocast_available(self.device.type):
            raise DeviceError(
                f"{self.device} cannot compute in {self.name}",
                where="precision",
                seen=f"precision={self.name}, device={self.device}",
                fix="precision=fp16, or precision=fp32" if too_old else "precision=fp32",
            )

    def autocast(self) -> AbstractContextManager[None]:
        """The context that a loss is computed in; costs nothing in fp32."""
        if self.name == "fp32":
            return _FULL
        return torch.autocast(self.device.type, DTYPES[self.name])

    def make_scaler(self) -> torch.amp.GradScaler | None:
        """A loss scaler where gradients would underflow without one: fp16, on any device."""
        return torch.amp.GradScaler(self.device.type) if self.name == "fp16" else None


def _macos_14() -> bool:
    return torch.backends.mps.is_macos_or_newer(14, 0)

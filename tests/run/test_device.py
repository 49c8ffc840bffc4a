"""Devices that exist, errors for those that do not, and the precision to compute in."""

from __future__ import annotations

import pytest
import torch

from mlorun.errors import DeviceError
from mlorun.run.device import Precision, available_devices, describe, resolve_device

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing but a CPU; tests add to it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def add_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.usefixtures("machine")
def test_auto_takes_a_gpu_before_mps_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")
    add_gpus(monkeypatch, 2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert available_devices() == ("cuda:0", "cuda:1", "mps", "cpu")


@pytest.mark.usefixtures("machine")
def test_cuda_means_the_current_gpu_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    add_gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("text", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_a_gpu_says_so_and_offers_the_cpu(text: str) -> None:
    with pytest.raises(DeviceError, match="no CUDA GPU") as caught:
        resolve_device(text)
    assert caught.value.where == "device"
    assert f"device={text}" in str(caught.value.seen)
    assert str(caught.value.fix).startswith("device=cpu")


@pytest.mark.usefixtures("machine")
def test_a_gpu_beyond_the_last_names_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    add_gpus(monkeypatch, 1)
    with pytest.raises(DeviceError, match="no such GPU") as caught:
        resolve_device("cuda:3")
    assert caught.value.seen == "device=cuda:3, and 1 GPU: cuda:0"
    assert caught.value.fix == "device=cuda:0"


@pytest.mark.usefixtures("machine")
def test_mps_without_an_apple_gpu_says_so() -> None:
    with pytest.raises(DeviceError, match="no Apple GPU"):
        resolve_device("mps")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("text", "meant"), [("cpuu", "cpu"), ("CPU", "cpu"), ("cud", "cuda"), ("aut", "auto")])
def test_nonsense_gets_the_nearest_device(text: str, meant: str) -> None:
    with pytest.raises(DeviceError, match="is not a device") as caught:
        resolve_device(text)
    assert str(caught.value.fix).startswith(f"did you mean {meant}?")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("text", ["", "cuda:", "cuda:x", "cuda:-1", "meta"])
def test_no_text_gets_past_as_a_device_by_accident(text: str) -> None:
    with pytest.raises(DeviceError, match="is not a device"):
        resolve_device(text)


def test_the_cpu_is_called_cpu() -> None:
    assert describe(CPU) == "cpu"


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_are_computed_in_the_precision_asked_for(name: str, dtype: torch.dtype) -> None:
    precision = Precision(name, CPU)
    for _ in range(2):  # the context can be entered again
        with precision.autocast():
            assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == dtype
    assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.float32


def test_only_fp16_has_a_scaler_and_it_steps_on_the_cpu() -> None:
    assert Precision("fp32", CPU).make_scaler() is None
    assert Precision("bf16", CPU).make_scaler() is None
    scaler = Precision("fp16", CPU).make_scaler()
    assert scaler is not None
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler.scale(weight.sum() * 0.25).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.75, 0.75]


def test_an_unknown_precision_gets_the_nearest_name() -> None:
    with pytest.raises(DeviceError, match="is not a precision") as caught:
        Precision("fp61", CPU)
    assert str(caught.value.fix).startswith("did you mean fp16?")


def test_bf16_on_an_old_mac_is_an_error_rather_than_a_silent_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlorun.run.device._macos_14", lambda: False)
    with pytest.raises(DeviceError, match="mps cannot compute in bf16"):
        Precision("bf16", torch.device("mps"))

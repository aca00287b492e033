"""What devices differ in: which there are, how wide their numbers are, and how they are sent something."""

from __future__ import annotations

import platform

import torch
from torch import Tensor


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``: the best this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def bfloat16_is_fast() -> bool:
    """Whether the CPU has kernels for products in bfloat16; of x86 those with AVX-512 have."""
    old = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return not (old and platform.machine().lower() in ("x86_64", "amd64"))


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype of ratios and masses: float64 where the device has it (MPS has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A host tensor on a device, without waiting for the device where that is safe.

    Args:
        tensor: in ordinary memory, which CUDA has read when the call returns; others may read it later.
        device: where it goes.
        dtype: of the result; None keeps it.
    """
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type == "cuda")

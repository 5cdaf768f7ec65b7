"""Which device and which precision a run uses, chosen at run time and said once.

On a CPU all is fp32: bf16 matrix products there are a hundred times slower. On CUDA the weights are bf16 without
autocast, so every operation runs in the type of its input and nothing is cast behind anyone's back; the optimizer works
on fp32 master weights, and gradients are summed over micro-batches in fp32 (`weights.py`).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from puna.core.errors import UsageError

DeviceChoice = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Machine:
    """A choice.

    Attributes:
        device: Where the model is.
        dtype: Of its weights and activations.
        description: The choice with its reason, for the log.
    """

    device: torch.device
    dtype: torch.dtype
    description: str


def choose_machine(device: DeviceChoice = "auto", precision: Precision = "auto") -> Machine:
    """Choose.

    Raises:
        UsageError: What is asked for is not here.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("device is 'cuda', but PyTorch sees no CUDA device. Use device=cpu or device=auto.")
    if device == "cpu" or not has_cuda:
        why = "asked for" if device == "cpu" else "there is no CUDA device"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        threads = torch.get_num_threads()
        slow = ", slow here" if precision == "bf16" else ""
        text = (
            f"device: cpu with {threads} thread{'s' if threads != 1 else ''} ({why}); precision: {_name(dtype)}{slow}"
        )
        return Machine(torch.device("cpu"), dtype, text)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    text = f"device: {torch.cuda.get_device_name()}; precision: {_name(dtype)}"
    if dtype == torch.bfloat16:
        text += " with fp32 master weights and gradient sums"
    return Machine(torch.device("cuda", torch.cuda.current_device()), dtype, text)


def _name(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """Memory in use, and all there is: the peak of the GPU's, or this process's share of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    page = os.sysconf("SC_PAGE_SIZE")
    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[1]) * page if statm.exists() else 0
    return used, os.sysconf("SC_PHYS_PAGES") * page

"""A mode in which a step must not ask the device for a number: each such question makes the host wait."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ASKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "_unique2", "equal", "bincount")


class NoHostReads(TorchDispatchMode):
    """Raises on operators whose result, or its shape, depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.split("::")[-1]
        assert name not in ASKS, f"aten.{name} makes the host wait for the device"
        if name in ("index", "index_put", "index_put_"):
            chosen = [i for i in args[1] if i is not None]
            assert all(i.dtype not in (torch.bool, torch.uint8) for i in chosen), f"aten.{name} with a mask waits"
        return func(*args, **(kwargs or {}))

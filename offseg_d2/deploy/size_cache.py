"""Results that depend on nothing but the input's size, kept for the sizes seen last."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

CAPACITY = 4


class SizeCache:
    """The last few results by size, device and type; copies and files of it are empty.

    Args:
        capacity: number of results that are kept; the least recently used one goes.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, size: Hashable, like: Tensor, make: Callable[[], Any]) -> Any:
        """The result for ``size``, on the device and of the type of ``like``; made if missing."""
        key = (size, like.device, like.dtype)
        found = self._entries.pop(key, None)
        if found is None:
            # Tensors made in inference mode could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                found = make()
        self._entries[key] = found
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_capacity": self._capacity, "_entries": OrderedDict()}

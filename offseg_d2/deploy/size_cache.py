"""Results that depend on nothing but the input's size, kept for the sizes seen last."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

CAPACITY = 4


class SizeCache:
    """The last few results by size, device and type; copies and files of it are empty."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, size: Hashable, like: Tensor, make: Callable[[], Any]) -> Any:
        """The result for ``size``, on the device and of the type of ``like``; made if missing."""
        key = (size, like.device, like.dtype)
        found = self._entries.pop(key, None)
        if found is None:
            found = make()
        self._entries[key] = found
        while len(self._entries) > CAPACITY:
            self._entries.popitem(last=False)
        return found

    def clear(self) -> None:
        """Forget all, as the weights have changed."""
        self._entries.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"_entries": OrderedDict()}

"""Streams of a pretended GPU, and what could go wrong between them.

Each stream is a queue of work; only events order one after another (happens-before by vector
clocks). An operation that reads what another stream writes, without an event that orders the two,
is a race. So is memory that a second stream uses without ``record_stream``, as the allocator may
give it away too early. Copies that should run beside other work need pinned memory of the host.
Simulated: it shows the order that was asked for, not that a driver keeps it.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Smaller ones become part of the command.
STAGED_BYTES = 64 * 1024


class RaceError(RuntimeError):
    """Two streams use a tensor without an order between them."""


class Event:
    def __init__(self, clock: Counter) -> None:
        self.clock = clock


class Stream:
    """In place of ``torch.cuda.Stream``."""

    def __init__(self, device: Any = None, name: str = "side") -> None:
        self.name, self.clock = name, Counter()

    def record_event(self) -> Event:
        return Event(self.clock.copy())

    def wait_event(self, event: Event) -> None:
        self.clock |= event.clock


class StreamLog(TorchDispatchMode):
    """Watches operations of streams on the device ``cuda``.

    Attributes:
        operations: (stream's name, operation's name), in the order in which they are started.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = Stream(name="main")
        self.operations: list[tuple[str, str]] = []
        self.pinned: list[Any] = []  # storages; kept, so that no other gets their address
        self._written: dict[int, tuple[Any, str, int]] = {}
        self._owner: dict[int, str] = {}
        self._used: set[tuple[int, str]] = set()
        self._recorded: set[tuple[int, str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view or not isinstance(out, Tensor | list | tuple):
            return out
        name, stream = func._schema.name, self.current
        read, written = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in (args, out))
        if not any(tensor.is_cuda for tensor in (*read, *written)):
            return out
        self.operations.append((stream.name, name))
        for tensor in read:
            self._read(tensor, stream, name)
        stream.clock[stream.name] += 1
        for tensor in written:
            key = _key(tensor)
            self._owner.setdefault(key, stream.name)
            self._used.add((key, stream.name))
            time = stream.clock[stream.name]
            self._written[key] = (tensor.untyped_storage(), stream.name, time)
        return out

    def _read(self, tensor: Tensor, stream: Stream, name: str) -> None:
        if not tensor.is_cuda:
            size = tensor.untyped_storage().nbytes()
            if size > STAGED_BYTES and _key(tensor) not in {_key(t) for t in self.pinned}:
                raise RaceError(f"{name} copies {size} bytes from memory that is not pinned.")
            return
        _, writer, time = self._written.get(_key(tensor), (None, stream.name, 0))
        if stream.clock[writer] < time:
            raise RaceError(f"{name} on {stream.name} reads what {writer} still writes.")
        self._used.add((_key(tensor), stream.name))

    def record(self, tensor: Tensor, stream: Stream) -> None:
        self._recorded.add((_key(tensor), stream.name))

    def pin(self, tensor: Tensor) -> Tensor:
        self.pinned.append(tensor.clone())
        return self.pinned[-1]

    def check_memory(self) -> None:
        """Check that the allocator knows of every stream that uses a tensor of another one."""
        foreign = {(key, user) for key, user in self._used if self._owner.get(key, user) != user}
        if foreign - self._recorded:
            raise RaceError(f"{len(foreign - self._recorded)} tensors lack a record_stream.")


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def pretended_streams() -> Iterator[StreamLog]:
    """Context in which CUDA's streams are pretended and watched; inside of a ``FakeTensorMode``."""
    log = StreamLog()

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, log.current = log.current, stream
        yield
        log.current = before

    with (
        mock.patch("torch.cuda.Stream", Stream),
        mock.patch("torch.cuda.stream", on),
        mock.patch("torch.cuda.current_stream", lambda _=None: log.current),
        mock.patch.object(torch.Tensor, "record_stream", lambda *args: log.record(*args)),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: log.pin(tensor)),
        log,
    ):
        yield log

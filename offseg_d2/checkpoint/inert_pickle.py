"""Reading pickles without running anything they ask for.

A pickle is a program: it names functions and classes and calls them. Here each name that a
checkpoint may hold stands for an inert class of this module that only notes its arguments; any
other name is refused. What was noted of numpy arrays becomes arrays afterwards, in
:func:`to_plain`, with every size checked.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

# Booleans, integers, floats and complex numbers; no objects, no strings, no structures.
_NUMERIC_DTYPE = re.compile(r"[<>=|]?[biufc](1|2|4|8|16)")


class RefusedGlobalError(pickle.UnpicklingError):
    """A pickle names a function or class that a checkpoint has no need of."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the pickle asks for `{name}`")
        self.name = name


class Inert:
    """Stands for an object that is not needed; accepts whatever the pickle does with it."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class DtypeRecord:
    """A numpy data type as a pickle describes it."""

    def __init__(self, code: Any, *flags: Any) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.byte_order = ""

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.byte_order = order if order in ("<", ">") else ""

    def to_dtype(self) -> np.dtype:
        """The numeric data type.

        Raises:
            pickle.UnpicklingError: if it is not numeric.
        """
        if not isinstance(self.code, str) or not _NUMERIC_DTYPE.fullmatch(self.code):
            raise pickle.UnpicklingError(f"numpy data type {self.code!r} is not numeric")
        return np.dtype(
            self.byte_order + self.code.lstrip("<>=|") if self.byte_order else self.code
        )


class ArrayRecord:
    """A numpy array as a pickle describes it; made by numpy's ``_reconstruct``."""

    def __init__(self, *args: Any) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)

    def to_plain(self) -> np.ndarray:
        """The array, copied out of the noted bytes."""
        if len(self.state) != 5:
            raise pickle.UnpicklingError("a numpy array has no state")
        _, shape, dtype, fortran, data = self.state
        return _array_from_bytes(data, dtype, shape, "F" if fortran else "C")


class BufferRecord(ArrayRecord):
    """A numpy array as pickle protocol 5 writes it; made by numpy's ``_frombuffer``."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any = "C") -> None:
        super().__init__()
        self.state = (1, shape, dtype, order == "F", data)


class ScalarRecord:
    """A numpy number; made by numpy's ``scalar``."""

    def __init__(self, dtype: Any, data: Any = b"") -> None:
        self.dtype, self.data = dtype, data

    def to_plain(self) -> Any:
        """The number as a Python scalar."""
        return _array_from_bytes(self.data, self.dtype, (), "C").item()


def encode_latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Stand-in for the codec by which protocol 2 writes bytes; it needs latin-1 only."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedGlobalError(f"_codecs.encode with the codec {encoding}")
    return text.encode("latin1")


def make_bytes() -> bytes:
    """Stand-in for `bytes`, for empty ones only; with a size it could claim any memory."""
    return b""


def make_bytearray(data: Any = b"", encoding: Any = "latin1") -> bytearray:
    """Stand-in for `bytearray` in protocols before 5; content only, no size."""
    if isinstance(data, str):
        data = encode_latin1(data, encoding)
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a bytearray does not hold bytes")
    return bytearray(data)


def _array_from_bytes(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if isinstance(data, str):  # written by Python 2 and read as latin-1
        data = data.encode("latin1")
    if not isinstance(dtype, DtypeRecord) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("a numpy array does not hold numbers")
    sizes = [shape] if isinstance(shape, int) else list(shape)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise pickle.UnpicklingError(f"a numpy array has the shape {shape!r}")
    try:
        flat = np.frombuffer(bytes(data), dtype=dtype.to_dtype())
        return flat.reshape(sizes, order="F" if order == "F" else "C").copy()
    except ValueError as error:
        raise pickle.UnpicklingError(f"a numpy array is incomplete: {error}") from error


def _numpy_globals() -> dict[str, Any]:
    names: dict[str, Any] = {"numpy.dtype": DtypeRecord, "numpy.ndarray": Inert}
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        names[f"{core}.multiarray._reconstruct"] = ArrayRecord
        names[f"{core}.multiarray.scalar"] = ScalarRecord
        names[f"{core}.numeric._frombuffer"] = BufferRecord
    names |= {f"numpy.dtypes.{name}": Inert for name in np.dtypes.__all__}
    return names


# What plain containers of numpy arrays need: Detectron2's model zoo.
NUMPY_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": encode_latin1,
    "builtins.set": set,
    "__builtin__.set": set,
    "builtins.bytes": make_bytes,
    "__builtin__.bytes": make_bytes,
    "builtins.bytearray": make_bytearray,
    "__builtin__.bytearray": make_bytearray,
    **_numpy_globals(),
}

# What checkpoints of mmengine name beyond tensors: a log buffer, and `getattr` on its class.
MMENGINE_GLOBALS: dict[str, Any] = {
    "mmengine.logging.history_buffer.HistoryBuffer": Inert,
    "builtins.getattr": Inert,
    "__builtin__.getattr": Inert,
    **_numpy_globals(),
}


class InertUnpickler(pickle.Unpickler):
    """Unpickler that knows only :data:`NUMPY_GLOBALS`."""

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in NUMPY_GLOBALS:
            raise RefusedGlobalError(full_name)
        return NUMPY_GLOBALS[full_name]


def load_inert_pickle(file: BinaryIO, check: Callable[[Any], None] | None = None) -> Any:
    """Read a pickle of containers, numbers, text and numpy arrays.

    Args:
        file: at the pickle.
        check: called with what was read, before containers are copied and arrays are made.

    Raises:
        RefusedGlobalError: if it names anything else.
        pickle.UnpicklingError, EOFError: if it is damaged.
    """
    data = InertUnpickler(file, encoding="latin1").load()
    if check is not None:
        check(data)
    return to_plain(data)


def to_plain(value: Any) -> Any:
    """Copy of nested containers with records turned into arrays and inert objects left out."""
    if isinstance(value, ArrayRecord | ScalarRecord):
        return value.to_plain()
    if isinstance(value, Mapping):
        items = {
            to_plain(key): to_plain(item) for key, item in value.items() if not _is_inert(item)
        }
        return OrderedDict(items) if isinstance(value, OrderedDict) else items
    if isinstance(value, list | tuple | set):
        return type(value)(to_plain(item) for item in value if not _is_inert(item))
    return value


def _is_inert(value: Any) -> bool:
    # The classes themselves too: a pickle may name one without calling it.
    return isinstance(value, Inert | DtypeRecord | type) or callable(value)

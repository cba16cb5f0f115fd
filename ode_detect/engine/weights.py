"""Files of weights from anywhere, read without running code from them; what cannot be read so is refused."""

from __future__ import annotations

import importlib
import pickle
import pickletools
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ode_detect.ode import ConversionError

# Containers inside one another. Weights need a handful; Python itself crashes on some hundred thousand tuples.
_DEEPEST = 100
# Pickles that torch's old files begin with.
_PICKLES_OF_OLD_FILES = 5
# Kinds of files, the containers in them and the prefixes of names that are looked through.
_TORCH_FILES = (".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")
_CONTAINERS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit; the message says what to do."""


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Say what is wrong with a file that cannot be read as weights.

    Raises:
        CheckpointError: reading failed.
    """
    try:
        yield
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # what a broken file makes its reader raise is nobody's contract
        raise CheckpointError(
            f"{path} cannot be read as weights ({(str(error).splitlines() or ['it is empty'])[0]}). It may be cut "
            "short, be another kind of file, or hold code, which is not run. Get it again from its source."
        ) from error


def load_weights_only(path: str, *, mmap: bool = False) -> Any:
    """Read a file of torch.save: tensors and plain values.

    Args:
        path: the file.
        mmap: read tensors only when they are used, where the file allows it.

    Raises:
        Exception: the file cannot be read, or holds something else; see `explained`.
    """
    with Path(path).open("rb") as file:
        old = file.read(2) != b"PK"
        file.seek(0)
        for _ in range(_PICKLES_OF_OLD_FILES if old else 0):
            _refuse_deep(file)
    if not old:
        # torch's own reader of the archive: what is looked at here is what is loaded below.
        _refuse_deep(torch._C.PyTorchFileReader(path).get_record("data.pkl"))
    return torch.load(path, map_location="cpu", mmap=mmap and not old, weights_only=True)


def unpickle_weights(path: str) -> dict[str, Any]:
    """Read a .pkl of Detectron2's zoo, or of Caffe2's: numbers in plain containers, the weights in "model".

    Raises:
        Exception: the file cannot be read, or holds something else; see `explained`.
    """
    with Path(path).open("rb") as file:
        _refuse_deep(file)
        file.seek(0)
        return _from_zoo(_NumbersOnly(file, encoding="latin1").load())


def categories_in(content: Mapping[str, Any], path: str) -> tuple[dict[str, Any], ...]:
    """The classes that a file of weights names.

    Args:
        content: of the file.
        path: of the file, for the message.

    Returns:
        "id" and "name" of each, in the order of the network; () if it names none.

    Raises:
        CheckpointError: what the file has instead of classes.
    """
    found = content.get("categories") or ()
    plain = isinstance(found, (list, tuple)) and all(
        isinstance(one, dict) and type(one.get("id")) is int and type(one.get("name")) is str for one in found
    )
    if not plain:
        raise CheckpointError(
            f'"categories" in a file of weights is a list of classes, each with an id (a whole number) and a name, and '
            f"in {path} it is {reprlib.repr(found)}. Take it out of the file, or get the file again from its source."
        )
    return tuple({"id": one["id"], "name": one["name"]} for one in found)


def _from_zoo(data: dict[str, Any]) -> dict[str, Any]:
    """The contents of a .pkl of Detectron2's zoo, or of Caffe2's, as Detectron2 reads them."""
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _refuse_deep(pickled: bytes | IO[bytes]) -> None:
    """Refuse a pickle with containers deep inside one another, whose hash overflows the stack of the interpreter.

    Nothing is built: its operations are followed with the depth of each value in the value's place. Deep lists, which
    are filled after they are made, may escape; they have no hash.
    """
    stack: list[int] = []
    memo: dict[Any, int] = {}
    mark = -1
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "MARK":
            stack.append(mark)
        elif operation.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif operation.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif operation.name == "POP":
            stack.pop()
        else:
            taken = []
            for kind in reversed(operation.stack_before):
                if kind is pickletools.stackslice:
                    while (top := stack.pop()) != mark:
                        taken.append(top)
                elif kind is not pickletools.markobject:
                    taken.append(stack.pop())
            # What is filled further gets no deeper by itself.
            filled = taken.pop() if operation.stack_before[:1] and _is_filled(operation) else 0
            depth = max(filled, 1 + max(taken, default=-1))
            if depth > _DEEPEST:
                raise pickle.UnpicklingError(f"it holds containers inside one another, more than {_DEEPEST} deep")
            stack += [depth] * len(operation.stack_after)


def _is_filled(operation: pickletools.OpcodeInfo) -> bool:
    return operation.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


class _NumbersOnly(pickle.Unpickler):
    """Unpickles arrays of numbers and plain containers; all that a file can call are the few functions below."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.")
        if (module, name) not in _STUBS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STUBS[module, name]


class _Dtype:
    """A numeric type; of its state only the order of the bytes counts."""

    def __init__(self, name: str, *_: object) -> None:
        self.numpy: np.dtype[Any] = np.dtype(name) if isinstance(name, str) and len(name) < 16 else np.dtype("O")
        if self.numpy.kind not in "biufc":
            raise pickle.UnpicklingError(f"it holds an array of {str(name)[:40]!r}, which are no numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])

    def read(self, data: bytes | str, shape: tuple[int, ...], order: str) -> NDArray[Any]:
        """An array of its own memory, in the order of bytes of this machine."""
        # Python 2 has written its bytes as text.
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(raw, (bytes, bytearray)):
            # A number, say, from which bytes() makes as many zeros.
            raise pickle.UnpicklingError("it holds an array whose numbers are not written as bytes")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError("it holds an array whose shape is not one of whole numbers")
        values = np.frombuffer(raw, self.numpy).reshape(shape, order="F" if order == "F" else "C")
        return values.astype(self.numpy.newbyteorder("="), order="C")


class _Array(np.ndarray):
    """An array of numbers, empty until its state is set, which may give it numbers and nothing else."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        values = _checked(dtype).read(data, shape, "F" if fortran else "C")
        plain: Any = values.__reduce__()[2]
        super().__setstate__(plain)


def _checked(dtype: Any) -> _Dtype:
    if type(dtype) is not _Dtype:
        raise pickle.UnpicklingError("it holds an array without a type")
    return dtype


def _reconstruct(*_: object) -> NDArray[Any]:
    return np.empty(0).view(_Array)


def _frombuffer(data: bytes, dtype: Any, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    return _checked(dtype).read(data, shape, order)


def _scalar(dtype: Any, data: bytes | str) -> Any:
    return _checked(dtype).read(data, (), "C")[()]


def _encode(text: str, _: str) -> bytes:
    return text.encode("latin1")


class _Dict(dict[Any, Any]):
    """Stands for an OrderedDict, whose attributes (the versions of torch's modules) are not needed."""

    def __setstate__(self, state: object) -> None:
        pass


# What a pickle may name -> what it gets. An array names its class, and never gets it.
_STUBS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, without running code from it.

    Args:
        path: a file of torch (.pth, .pt, .th, .tar, .bin, .ckpt), a .pkl of Detectron2's zoo, or .safetensors.

    Returns:
        The tensors by name, on the CPU, without the prefix that DataParallel gives them.

    Raises:
        CheckpointError: no such file, another kind of file, a broken one, one that holds code, or no weights in it.
    """
    return tensors_of(read_content(Path(path)), path)


def read_content(path: Path) -> Any:
    """What a file of weights holds, read without running code from it; see `read_weights`.

    Raises:
        CheckpointError: see `read_weights`.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}; --weights names a file of weights.")
    kind = path.suffix.lower()
    if kind not in (*_TORCH_FILES, ".pkl", ".safetensors"):
        raise CheckpointError(
            f"{path} is not a kind of file whose weights are read without running code; those are .pkl, .safetensors, "
            f"{', '.join(_TORCH_FILES)}. Load it where you trust it, and torch.save(model.state_dict(), 'weights.pth')."
        )
    safetensors = require_library("safetensors.torch", "safetensors") if kind == ".safetensors" else None
    with explained(str(path)):
        if kind == ".pkl":
            return unpickle_weights(str(path))
        if safetensors is not None:
            return safetensors.load_file(path)
        return load_weights_only(str(path))


def require_library(module: str, package: str) -> Any:
    """Import a module of a package that is needed for some files only.

    Raises:
        ConversionError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConversionError(f"{package} is needed and not installed; pip install {package}.") from error


def tensors_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The tensors by name in what was read from a file, without the containers and prefixes around them.

    Raises:
        CheckpointError: there are none.
    """
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = content.items() if isinstance(content, Mapping) else ()
    weights = {str(n): torch.as_tensor(v) for n, v in tensors if isinstance(v, Tensor | np.ndarray)}
    if not weights:
        raise CheckpointError(f"{path} holds no tensors by name. Save them with torch.save(model.state_dict(), FILE).")
    # Either may stand before the other.
    while (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), None)) is not None:
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights

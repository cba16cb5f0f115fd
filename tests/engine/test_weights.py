import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ode_detect.engine.checkpoint import Checkpointer
from ode_detect.engine.weights import (
    CheckpointError,
    categories_in,
    explained,
    load_weights_only,
    read_weights,
    unpickle_weights,
)

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big endian": np.arange(6, dtype=">f8").reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "half": np.array([1.5, -2], dtype=np.float16),
    "bool": np.array([True, False]),
    "no axis": np.array(3.5),
    "one row": np.zeros((1, 4), np.uint8),
    "scalar": np.float64(2.5),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numbers_come_as_they_were_pickled(protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "zoo.pkl"
    file.write_bytes(pickle.dumps({"model": OrderedDict(ARRAYS), "__author__": "x"}, protocol))
    read = unpickle_weights(str(file))["model"]
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(read[name], array)
        assert read[name].shape == array.shape
        assert read[name].dtype == array.dtype.newbyteorder("=")


def test_the_bytes_of_python_2_are_text_and_read_all_the_same(tmp_path: Path) -> None:
    raw = np.array([1.0, -3.0], np.float32).tobytes()
    # What cPickle of Python 2 wrote: the numbers as a str (U), and the class and type by name.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x02tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + raw
        + b"tb"
    )
    file = tmp_path / "caffe2.pkl"
    file.write_bytes(b"\x80\x02}U\x07conv1_w" + array + b"s.")
    content = unpickle_weights(str(file))
    assert content["__author__"] == "Caffe2"
    assert content["model"]["conv1_w"].tolist() == [1.0, -3.0]


class Call:
    """Pickled as a call, with a state to set."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.reduced


_reconstruct = np.zeros(1).__reduce__()[0]
FORGED = {
    # An array of pointers, whose buffer the file writes.
    "objects over a buffer": Call(np.ndarray, (1,), np.dtype("O"), b"\x10" * 8),
    "objects in a state": Call(_reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("O"), False, [1])),
    "a type of objects": np.dtype("O"),
    "a structured type": np.dtype([("a", "O")]),
    "a type of text": np.dtype("U4"),
    "a state of a type that makes it another": Call(
        np.dtype, "f8", False, True, state=(3, "|", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 8, 27)
    ),
    "an array without a type": Call(_reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), "f8", False, b"0" * 8)),
    "a negative shape": Call(
        _reconstruct, np.ndarray, (0,), b"b", state=(1, (-1, -1), np.dtype("f8"), False, b"0" * 8)
    ),
    "a shape that its bytes do not fill": Call(
        _reconstruct, np.ndarray, (0,), b"b", state=(1, (10**12,), np.dtype("f8"), False, b"0" * 8)
    ),
    "a number in the place of bytes": Call(
        _reconstruct, np.ndarray, (0,), b"b", state=(1, (8,), np.dtype("f8"), False, 64)
    ),
    "another function of numpy": Call(np.fromfile, "/etc/hostname"),
    "a function of the standard library": Call(print, "code was run"),
    "an attribute of what is allowed": Call(OrderedDict.fromkeys, ["a"]),
}


@pytest.mark.parametrize("name", FORGED)
def test_nothing_of_numpy_can_be_called_and_no_type_but_numbers_made(name: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "forged.pkl"
    file.write_bytes(pickle.dumps({"model": {"weight": FORGED[name]}, "__author__": "x"}))
    if name.startswith("a state"):
        # It is ignored: nothing here is an array.
        assert unpickle_weights(str(file))["model"]["weight"].numpy == np.float64
        return
    for read in (read_weights, Checkpointer(nn.Linear(1, 1)).load_weights):
        with pytest.raises(CheckpointError, match=r"forged\.pkl cannot be read as weights"):
            read(str(file), **({"whole": False} if read.__name__ == "load_weights" else {}))
    assert "code was run" not in capsys.readouterr().out


# A tuple in a tuple in a tuple, as a key: its hash goes down to the innermost, and overflows the stack.
DEEP = b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"K\x01u."
# The same through the memo, without one tuple following another.
LADDER = b"\x80\x02}(" + b")\x94" + b"".join(b"0h%c\x85\x94" % i for i in range(120)) + b"K\x01u."


@pytest.mark.parametrize("content", [DEEP, LADDER])
@pytest.mark.parametrize("kind", ["pkl", "pth", "old.pth"])
def test_what_is_deep_inside_one_another_does_not_crash_the_interpreter(
    kind: str, content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / f"deep.{kind}"
    if kind == "pth":
        torch.save({"a": torch.zeros(1)}, tmp_path / "sound.pth")
        with zipfile.ZipFile(tmp_path / "sound.pth") as sound, zipfile.ZipFile(file, "w") as forged:
            for entry in sound.infolist():
                data = content if entry.filename.endswith("data.pkl") else sound.read(entry)
                forged.writestr(entry.filename, data)
    elif kind == "old.pth":
        torch.save({"a": torch.zeros(1)}, file, _use_new_zipfile_serialization=False)
        sound_bytes = file.read_bytes()
        start = sound_bytes.index(b"\x80\x02}q\x00X\x01\x00\x00\x00a")
        file.write_bytes(sound_bytes[:start] + content + sound_bytes[start:])
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match="more than 100 deep"):
        read_weights(file)
    with pytest.raises(CheckpointError, match="more than 100 deep"):
        Checkpointer(nn.Linear(1, 1)).load_weights(str(file), whole=False)


def test_a_long_list_is_not_a_deep_one(tmp_path: Path) -> None:
    weights = {f"w{i}": np.full((1, 2), i) for i in range(3000)}
    file = tmp_path / "long.pkl"
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "x", "list": [(i,) for i in range(5000)]}))
    assert len(unpickle_weights(str(file))["model"]) == 3000


class Malicious:
    def __reduce__(self) -> tuple:
        return print, ("code was run",)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pyth"])
def test_no_variable_of_torch_lets_code_run(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"model": {"a": Malicious()}, "model_state": {"a": Malicious()}}, tmp_path / name)
    with pytest.raises(CheckpointError, match="not run"):
        Checkpointer(nn.Linear(1, 1)).load_weights(str(tmp_path / name), whole=False)
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [[[1.0]], "text", None])
def test_weights_that_are_no_numbers_are_refused(value: object, tmp_path: Path) -> None:
    torch.save({"model": {"weight": value}}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="weights are tensors or arrays"):
        Checkpointer(nn.Linear(1, 1)).load_weights(str(tmp_path / "weights.pth"), whole=False)


def test_an_address_that_leads_out_of_the_cache_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no '\.\.' in its path"):
        Checkpointer(nn.Linear(1, 1)).load_weights("http://localhost:9/../../../.bashrc", whole=False)


@pytest.mark.parametrize("old", [False, True])
def test_the_classes_of_a_checkpoint_are_read(old: bool, tmp_path: Path) -> None:
    categories = [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 1, "name": "dog"}]
    file = tmp_path / "weights.pth"
    torch.save({"model": {}, "categories": categories}, file, _use_new_zipfile_serialization=not old)
    assert categories_in(load_weights_only(str(file)), "") == ({"id": 3, "name": "cat"}, {"id": 1, "name": "dog"})
    assert categories_in({"model": {}}, "") == ()


@pytest.mark.parametrize(
    "categories",
    [7, "cat", ["cat"], [{"id": "1", "name": "cat"}], [{"id": 1}], [{"id": 1, "name": 2}], {"id": 1, "name": "cat"}],
)
def test_classes_that_are_none_are_refused(categories: object, tmp_path: Path) -> None:
    weights = {name: torch.zeros(shape) for name, shape in (("weight", (1, 1)), ("bias", (1,)))}
    torch.save({"model": weights, "categories": categories}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="each with an id"):
        Checkpointer(nn.Linear(1, 1)).load_weights(str(tmp_path / "weights.pth"), whole=False)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        Checkpointer(nn.Linear(1, 1)).load_weights(str(tmp_path / "weights.pth"), whole=False)
    with explained("it"):
        assert load_weights_only(str(tmp_path / "weights.pth")) == [1, 2]

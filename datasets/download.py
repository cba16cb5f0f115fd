"""Download MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 by torchvision, to where ode_detect looks for them.

python datasets/download.py mnist cifar10
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torchvision.datasets
from wheels import datasets_root

# By the name of the folder: the class of torchvision, and what it downloads.
SETS = {
    "mnist": ("MNIST", "11 MB"),
    "fashion_mnist": ("FashionMNIST", "30 MB"),
    "cifar10": ("CIFAR10", "163 MB"),
    "cifar100": ("CIFAR100", "161 MB"),
}


def download(name: str, root: Path) -> Path:
    """Download a data set into a folder of its name, unless it is there.

    Raises:
        OSError, RuntimeError: there is no network, or what came is not what was published.
    """
    folder = root / name
    getattr(torchvision.datasets, SETS[name][0])(str(folder), download=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 if a set could not be downloaded."""
    parser = argparse.ArgumentParser(description="Download data sets by torchvision.")
    known = ", ".join(f"{name} ({size})" for name, (_, size) in SETS.items())
    parser.add_argument("names", nargs="+", choices=SETS, metavar="NAME", help=known)
    parser.add_argument("--output", type=Path, help="folder of all; default: $DETECTRON2_DATASETS or datasets")
    options = parser.parse_args(arguments)
    root = options.output or datasets_root()
    for name in options.names:
        try:
            folder = download(name, root)
        except (URLError, OSError, RuntimeError) as error:
            print(
                f"error: {name} is downloaded from its makers, or a mirror; that failed with: {error}. Without a "
                f"network, copy its files from another machine into {root / name}; datasets/README.md lists them.",
                file=sys.stderr,
            )
            return 2
        print(f"{name}: in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

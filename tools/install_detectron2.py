#!/usr/bin/env python3
"""Install Detectron2 without a compiler.

A Detectron2 that is already installed is used as it is. Otherwise this script fetches the project sal-detectron2 0.7.2
from PyPI, which is Facebook's commit a59f0563 packed for CPython 3.10, checks its SHA-256, leaves out the parts that
are bound to that Python (and a stray package ``tools``), packs the rest as a wheel named ``detectron2`` that suits
every Python 3.10 to 3.13 on every platform, and installs that with pip.

Without the compiled part, rotated boxes, deformable convolutions and the fast COCOeval are missing; pycocotools
evaluates instead, and everything else works. Who needs them builds Detectron2 from source; it is then used as it is.

Needs the standard library and pip only, so that it runs before anything else is installed.
"""

from __future__ import annotations

import argparse
import base64
import csv
import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = "sal-detectron2"
PROJECT_VERSION = "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
UPSTREAM_COMMIT = "a59f0563"

# Upstream's __version__ has been 0.6 since 2021 and is 0.6 in this commit, so 0.6 is the public part: `detectron2>=0.6`
# means what it means upstream, and nobody takes this for a release of theirs. PEP 440's local part says what differs:
# the commit, that nothing is compiled, and the count of our own builds, to be raised when PATCHES or METADATA change.
# detectron2.__version__ is patched to the same text (the wheel says 0.7.2, which upstream never released).
VERSION = f"0.6+{UPSTREAM_COMMIT}.purepython.1"
GENERATOR = "ode_detect tools/install_detectron2.py"

LEFT_OUT = ("detectron2/_C*", "tools/*")
OLDEST, NEWEST = (3, 10), (3, 13)
WHEEL_NAME = f"detectron2-{VERSION}-py3-none-any.whl"
DIST_INFO = f"detectron2-{VERSION}.dist-info"

# What upstream's setup.py asks for at this commit, and what it imports without asking: torch, torchvision, cv2 (its
# visualizer, at import), PyYAML, NumPy. The numpy<2 of sal-detectron2 is not upstream's, and not needed.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "black",
    "packaging",
    "numpy",
    "opencv-python-headless",
    "pyyaml>=5.1",
    "torch>=1.8",
    "torchvision",
)
OPTIONAL_REQUIREMENTS = ("fairscale", "timm", "scipy>1.5.1", "shapely", "pygments>=2.2", "psutil")


class InstallError(Exception):
    """Something the user can mend: the rule, what came in, what to do."""


@dataclass(frozen=True)
class Patch:
    """A change to one file; ``old`` must occur in it exactly once."""

    path: str
    old: str
    new: str
    why: str

    def apply(self, text: str) -> str:
        count = text.count(self.old)
        if count != 1:
            raise InstallError(
                f"a patch must find its text exactly once in {self.path}; {self.old.strip()!r} occurs {count} times. "
                f"Use {PROJECT}=={PROJECT_VERSION}, whose text the patches were made for."
            )
        return text.replace(self.old, self.new)


_MARK = "  # changed by ode_detect"
_MESHGRID = 'torch.meshgrid warns that its argument "indexing" will be required; "ij" is what it does without'
PATCHES = (
    Patch(
        "detectron2/__init__.py",
        f'__version__ = "{PROJECT_VERSION}"\n',
        f'__version__ = "{VERSION}"{_MARK}\n',
        "the version says which commit this is, as the distribution does",
    ),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        "setuptools 80 warns that pkg_resources goes, setuptools 82 no longer has it",
    ),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )\n',
        f'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path){_MARK}\n',
        "the same path without pkg_resources",
    ),
    Patch(
        "detectron2/modeling/anchor_generator.py",
        "torch.meshgrid(shifts_y, shifts_x)\n",
        f'torch.meshgrid(shifts_y, shifts_x, indexing="ij"){_MARK}\n',
        _MESHGRID,
    ),
    Patch(
        "detectron2/modeling/backbone/swin.py",
        "torch.meshgrid([coords_h, coords_w]))",
        'torch.meshgrid([coords_h, coords_w], indexing="ij"))' + _MARK,
        _MESHGRID,
    ),
)


@dataclass(frozen=True)
class Installed:
    """The Detectron2 that Python finds."""

    version: str
    folder: Path
    is_ours: bool
    has_metadata: bool

    def __str__(self) -> str:
        origin = "built by this script" if self.is_ours else "not built by this script"
        return f"detectron2 {self.version} in {self.folder} ({origin})"


def find_installed() -> Installed | None:
    """Find Detectron2 without importing it (which would import torch)."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        found = re.search(r"^__version__ = \"([^\"]+)\"", Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
        return Installed(found.group(1) if found else "unknown", folder, is_ours=False, has_metadata=False)
    is_ours = GENERATOR in (distribution.read_text("WHEEL") or "")
    return Installed(distribution.version, folder, is_ours=is_ours, has_metadata=True)


def is_to_be_replaced(installed: Installed, *, force: bool, force_foreign: bool) -> bool:
    """Decide whether to put our build in the place of what is installed.

    Raises:
        InstallError: if that would overwrite a Detectron2 that somebody else installed.
    """
    if installed.is_ours:
        return force or force_foreign or installed.version != VERSION
    if not (force or force_foreign):
        return False
    if not force_foreign:
        raise InstallError(
            f"--force replaces only a Detectron2 that this script built; found {installed}. "
            "Keep it, it works with ode_detect; or overwrite it with --force-foreign."
        )
    if not installed.has_metadata:
        raise InstallError(
            f"only a Detectron2 that pip knows can be replaced; found {installed} without metadata. "
            "Remove that folder yourself and run this script again."
        )
    return True


def run_pip(*arguments: str, purpose: str) -> None:
    """Run this Python's pip; its own messages are shown only where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if finished.returncode == 0:
        return
    if "No module named pip" in finished.stdout:
        raise InstallError(f"this script needs pip; {sys.executable} has none. Run: {sys.executable} -m ensurepip")
    tail = "\n".join("    " + line for line in finished.stdout.strip().splitlines()[-15:])
    raise InstallError(
        f"pip must be able to {purpose}; it said:\n{tail}\n"
        "If this machine is offline, fetch the file elsewhere and give it with --wheel (see --help)."
    )


def download(folder: Path) -> Path:
    """Fetch the pinned wheel from the package index that pip is configured for."""
    # It is tagged cp310-none-any; pip takes it on another Python only if told so, and then only without dependencies.
    run_pip(
        *("download", "--no-deps", "--only-binary=:all:", "--python-version", "3.10", "--dest", str(folder)),
        f"{PROJECT}=={PROJECT_VERSION}",
        purpose=f"download {PROJECT}=={PROJECT_VERSION}",
    )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InstallError(
            f"pip download must bring one wheel; it brought {[w.name for w in wheels]}. "
            f"Fetch {PROJECT}=={PROJECT_VERSION} by hand and give it with --wheel."
        )
    return wheels[0]


def read_source(wheel: Path, sha256: str = SHA256) -> dict[str, bytes]:
    """Read what we keep of the fetched wheel: Detectron2's Python files and configs, and the licence.

    Raises:
        InstallError: if the file is absent or is not the pinned one.
    """
    if not wheel.is_file():
        raise InstallError(f"--wheel takes the file of {PROJECT} {PROJECT_VERSION}; there is no file {wheel}.")
    content = wheel.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise InstallError(
            f"{wheel.name} must have the SHA-256 {sha256}; it has {digest}. It is damaged or is another file: "
            f"fetch {PROJECT}=={PROJECT_VERSION} again, from an index that you trust."
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/")]
        kept = {n: archive.read(n) for n in names if n.startswith("detectron2/") and not _is_left_out(n)}
        licence = archive.read(f"{PROJECT.replace('-', '_')}-{PROJECT_VERSION}.dist-info/LICENSE")
    return {**kept, f"{DIST_INFO}/LICENSE": licence}


def _is_left_out(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def apply_patches(files: dict[str, bytes], patches: tuple[Patch, ...] = PATCHES) -> dict[str, bytes]:
    """Return the files with our changes, each of which is listed in METADATA."""
    patched = dict(files)
    for patch in patches:
        if patch.path not in patched:
            raise InstallError(
                f"a patch needs the file {patch.path}; the wheel has none. Use {PROJECT}=={PROJECT_VERSION}."
            )
        patched[patch.path] = patch.apply(patched[patch.path].decode("utf-8")).encode("utf-8")
    return patched


def metadata() -> str:
    """METADATA of the wheel: what it is, where it comes from, what it lacks."""
    fields = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Detectron2 (FAIR's platform for object detection and segmentation), its Python part only",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Classifier: License :: OSI Approved :: Apache Software License",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
        "Provides-Extra: all",
        *(f'Requires-Dist: {requirement}; extra == "all"' for requirement in OPTIONAL_REQUIREMENTS),
        "Description-Content-Type: text/plain",
    ]
    patches = "\n".join(f"- {patch.path}: {patch.why}" for patch in PATCHES)
    return (
        "\n".join(fields)
        + f"""

Made by {GENERATOR}; this is not a release of Detectron2's authors.

Origin: the PyPI project {PROJECT} {PROJECT_VERSION}, SHA-256
{SHA256},
which packs commit {UPSTREAM_COMMIT} of https://github.com/facebookresearch/detectron2 (April 2024, where __version__ is
0.6) with the configs of the model zoo and the projects point_rend, deeplab and panoptic_deeplab. Against that commit it
wraps a set in list() before random.sample, which Python 3.11 needs, and adds a helper that skips tests.

Left out: the extension module detectron2._C, compiled for CPython 3.10 alone, and a stray top-level package "tools".
Without _C there are no rotated boxes, no deformable convolutions and no fast COCOeval (COCOEvaluator falls back to
pycocotools by itself). ROIAlign and NMS are torchvision's and work. As upstream, the project panoptic_deeplab
needs panopticapi, which is not on PyPI.

Changed:
{patches}

Licence: Apache-2.0, see LICENSE.
"""
    )


def build_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write the wheel; the same files give the same bytes on every machine."""
    wheel_text = f"Wheel-Version: 1.0\nGenerator: {GENERATOR}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    described = {
        **dict(sorted(files.items())),
        f"{DIST_INFO}/METADATA": metadata().encode("utf-8"),
        f"{DIST_INFO}/WHEEL": wheel_text.encode("utf-8"),
        f"{DIST_INFO}/top_level.txt": b"detectron2\n",
    }
    described[f"{DIST_INFO}/RECORD"] = _record(described).encode("utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / WHEEL_NAME
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:  # deflated bytes would depend on the zlib
        for name, content in described.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
    return wheel


def _record(files: dict[str, bytes]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")
        writer.writerow([name, f"sha256={digest}", len(content)])
    writer.writerow([f"{DIST_INFO}/RECORD", "", ""])
    return text.getvalue()


def install(wheel: Path, *, no_deps: bool, constraint: Path | None, replace: bool) -> None:
    """Install the wheel with pip."""
    if replace:  # in two calls, because --force-reinstall alone would install torch anew as well
        run_pip("install", "--quiet", "--force-reinstall", "--no-deps", str(wheel), purpose="replace detectron2")
        if no_deps:
            return
    options = [*(["--no-deps"] if no_deps else []), *(["--constraint", str(constraint)] if constraint else [])]
    run_pip("install", "--quiet", *options, str(wheel), purpose="install detectron2 and what it requires")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0] if __doc__ else None,
        epilog=f"Offline copy for --wheel, fetched where there is a network: pip download {PROJECT}=={PROJECT_VERSION} "
        "--no-deps --only-binary=:all: --python-version 3.10",
    )
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"use this copy of {PROJECT} {PROJECT_VERSION}")
    parser.add_argument("--wheel-only", type=Path, metavar="DIR", help="write our wheel into DIR, install nothing")
    parser.add_argument("--no-deps", action="store_true", help="do not install what Detectron2 requires")
    parser.add_argument("--constraint", type=Path, metavar="FILE", help="constraints file handed to pip")
    parser.add_argument("--force", action="store_true", help="replace a Detectron2 that this script installed")
    parser.add_argument("--force-foreign", action="store_true", help="replace any Detectron2, whoever installed it")
    return parser.parse_args(arguments)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    if not OLDEST <= version <= NEWEST:
        raise InstallError(
            f"ode_detect runs on Python 3.10 to 3.13; this is {version[0]}.{version[1]} ({sys.executable}). "
            "Run this script with one of those."
        )


def run(options: argparse.Namespace) -> None:
    check_python()
    if options.constraint and not options.constraint.is_file():
        raise InstallError(f"--constraint takes a file; there is no file {options.constraint}.")
    installed = None if options.wheel_only else find_installed()
    if installed and not is_to_be_replaced(installed, force=options.force, force_foreign=options.force_foreign):
        print(f"Using {installed}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        if not options.wheel:
            print(f"Fetching {PROJECT} {PROJECT_VERSION} (7 MB)", flush=True)
        source = options.wheel or download(Path(temporary))
        files = apply_patches(read_source(source))
        wheel = build_wheel(files, options.wheel_only or Path(temporary) / "built")
        if options.wheel_only:
            print(f"Wrote {wheel}")
            return
        print(f"Installing detectron2 {VERSION}" + (f" in place of {installed}" if installed else ""), flush=True)
        install(wheel, no_deps=options.no_deps, constraint=options.constraint, replace=installed is not None)
    print(f"Installed {check_result()}")


def check_result() -> Installed:
    """Look, after the installation, at what Python now finds."""
    found = find_installed()
    if found is None or not found.is_ours or found.version != VERSION:
        raise InstallError(
            f"after the installation Python must find detectron2 {VERSION}; it finds {found}. "
            "Another copy comes earlier on sys.path (see PYTHONPATH): remove it."
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    try:
        run(parse_arguments(arguments))
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

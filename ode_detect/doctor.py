"""What is installed, what this machine can do, and what to do about what is missing: ``python -m ode_detect.doctor``.

Imports the standard library only, and `ode_detect.threads`, which does the same; everything else is imported inside a
check, so that a broken installation is a row of the table instead of a traceback.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from .threads import describe_waiting

Status = Literal["ok", "note", "bad"]

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
IMPORTED_AS = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
OUR_BUILD = ".purepython"  # the mark in the version of what tools/install_detectron2.py builds
BFLOAT16_SECONDS = 0.5  # measured time per precision


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        name: what was looked at.
        status: ``ok``; ``note`` where something optional is absent or slow; ``bad`` where ode_detect does not work.
        found: what was found, in words.
        cure: what to do about it, in one line; empty where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Requirement:
    """A distribution and the range of versions that ode_detect works with.

    Attributes:
        name: name of the distribution.
        bounds: pairs of an operator and a version, as in ``((">=", "2.9"), ("<", "2.15"))``.
    """

    name: str
    bounds: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read a requirement such as ``torch>=2.9,<2.15``; what stands after ``;`` is left out.

        Raises:
            ValueError: if the text is not of this form.
        """
        found = re.fullmatch(
            r"([A-Za-z0-9._-]+)\s*\(?((?:\s*(?:>=|<=|==|!=|>|<)\s*[0-9][^,\s()]*\s*,?)*)\)?", _bare(text)
        )
        if not found:
            raise ValueError(
                f"a requirement must be a name and bounds, like torch>=2.9,<2.15; got {text!r}. "
                "Mend it in pyproject.toml."
            )
        bounds = re.findall(r"(>=|<=|==|!=|>|<)\s*([^,\s]+)", found.group(2))
        return cls(found.group(1), tuple(bounds))

    @property
    def range(self) -> str:
        """The bounds as they are written in a requirement; ``any`` if there are none."""
        return ",".join(operator + version for operator, version in self.bounds) or "any"

    def admits(self, version: str) -> bool:
        """Whether a version lies in the range; local parts (``+cpu``) are left out, as in PEP 440."""
        return all(_compare(_release(version), operator, _release(bound)) for operator, bound in self.bounds)


def _bare(requirement: str) -> str:
    return requirement.split(";")[0].strip()


def _release(version: str) -> tuple[int, ...]:
    """The release numbers of a version without trailing zeros: ``2.14.0+cpu`` is (2, 14)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(number) for number in found.group().split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _compare(left: tuple[int, ...], operator: str, right: tuple[int, ...]) -> bool:
    results = {">=": left >= right, "<=": left <= right, "==": left == right}
    results |= {"!=": left != right, ">": left > right, "<": left < right}
    return results[operator]


def requirements(root: Path = ROOT) -> list[Requirement]:
    """What ode_detect requires, from the checkout's pyproject.toml, or else from the installed metadata."""
    project = root / "pyproject.toml"
    if project.is_file():
        # tomllib is not in Python 3.10's library; the array holds one quoted requirement a line.
        found = re.search(
            r"^dependencies = \[\n(.*?)^\]", project.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        lines = re.findall(r"^\s*\"([^\"]+)\"", found.group(1), re.MULTILINE) if found else []
    else:
        lines = [line for line in importlib.metadata.requires("ode_detect") or [] if "extra ==" not in line]
    return [Requirement.parse(line) for line in lines]


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Is this a Python that ode_detect runs on?"""
    found = f"{platform.python_version()} ({sys.executable})"
    if OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "bad", found, "use Python 3.10 to 3.13: make setup PYTHON=python3.12")


def check_package(requirement: Requirement) -> Check:
    """Is a package there, in the range, and can it be imported?"""
    pip = f'pip install "{requirement.name}{requirement.range if requirement.bounds else ""}"'
    cure = f"make setup, or: {pip}"
    if requirement.name == "detectron2":
        cure = "python tools/install_detectron2.py"
    module = IMPORTED_AS.get(requirement.name, requirement.name)
    version = _version(requirement.name)
    if version is None and importlib.util.find_spec(module) is None:
        return Check(requirement.name, "bad", f"not installed (needs {requirement.range})", cure)
    if version is not None and not requirement.admits(version):
        return Check(requirement.name, "bad", f"{version} is outside {requirement.range}", cure)
    try:
        _import(module)
    except Exception as error:
        return Check(requirement.name, "bad", f"{version} does not import: {_short(error)}", cure)
    if version is None:  # a copy on sys.path, or another distribution that gives the same module, as opencv-python does
        return Check(requirement.name, "note", f"{module} is there, but pip knows no {requirement.name}", cure)
    return Check(requirement.name, "ok", f"{version} in {requirement.range}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"


def check_packages() -> Iterator[Check]:
    """One row for ode_detect itself and one for each package that it requires."""
    version = _version("ode_detect")
    if version is None:
        yield Check("ode_detect", "note", f"used without installation, from {ROOT}", "make setup, or: pip install -e .")
    else:
        yield Check("ode_detect", "ok", f"{version} ({ROOT})")
    try:
        required = requirements()
    except (ValueError, importlib.metadata.PackageNotFoundError) as error:
        yield Check("requirements", "bad", _short(error), "run this in a checkout, or install ode_detect again")
        return
    for requirement in required:
        yield check_package(requirement)


def check_detectron2_origin() -> Check:
    """Which Detectron2 is it, and where?"""
    name, cure = "Detectron2's origin", "python tools/install_detectron2.py"
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return Check(name, "bad", "not found", cure)
    folder = Path(spec.origin).parent
    version = _version("detectron2")
    if version is None:
        return Check(name, "note", f"a copy that pip does not know, in {folder}", f"remove it, then {cure}")
    if OUR_BUILD in version:
        commit = version.split("+")[-1].split(".")[0]
        return Check(name, "ok", f"our wheel, upstream commit {commit}, Python part only, in {folder}")
    return Check(name, "ok", f"not ours: upstream or a fork of it, version {version}, in {folder}")


def check_detectron2_imports() -> Check:
    """Do the parts of Detectron2 that everything stands on import?"""
    for module in ("detectron2.model_zoo", "detectron2.engine"):
        try:
            _import(module)
        except ModuleNotFoundError as error:
            cure = 'pip install "setuptools<81"' if error.name == "pkg_resources" else "make setup"
            return Check("Detectron2 imports", "bad", f"{module}: {_short(error)}", cure)
        except Exception as error:
            return Check("Detectron2 imports", "bad", f"{module}: {_short(error)}", "make setup")
    return Check("Detectron2 imports", "ok", "model zoo and engine")


def check_compiled() -> Check:
    """Is Detectron2's compiled part there, and does it fit the installed torch?"""
    name = "Detectron2's _C"
    without = "no rotated boxes, deformable convolutions, fast COCOeval; all else works"
    try:
        if importlib.util.find_spec("detectron2._C") is None:
            return Check(name, "note", f"absent: {without}", "only if you need these: build Detectron2 from source")
        _import("detectron2._C")
    except Exception as error:
        found = f"does not load ({_short(error)}): {without}"
        return Check(name, "note", found, "build Detectron2 from source again, against this torch")
    return Check(name, "ok", "present: rotated boxes, deformable convolutions, fast COCOeval")


def check_torchvision_operators() -> Check:
    """Do torch and torchvision belong together? Their compiled operators fail where they do not."""
    name = "torch with torchvision"
    try:
        torch, ops = _import("torch"), _import("torchvision.ops")
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
        kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        ops.roi_align(torch.zeros(1, 1, 8, 8), [boxes[:1]], output_size=2)
    except Exception as error:
        return Check(name, "bad", f"nms fails: {_short(error)}", "make setup (it installs a matching pair)")
    if kept != [0, 2]:
        return Check(name, "bad", f"nms keeps {kept} instead of [0, 2]", "make setup (it installs a matching pair)")
    return Check(name, "ok", "compatible: nms and roi_align work")


def cpu_model() -> str:
    """The name of the processor."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine() or "unknown"


def cpu_flags() -> set[str]:
    """The instruction sets that the kernel names, in lower case; empty where they cannot be read."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].lower().split())
    if sys.platform == "darwin":
        return set(_output("sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features").lower().split())
    return set()


def memory_bytes() -> int | None:
    """The memory that this process may use: the machine's, or its control group's where that is less."""
    total = _machine_memory_bytes()
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if total and limit.isdigit():
        return min(total, int(limit))
    return total


def _machine_memory_bytes() -> int | None:
    if hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    windows: Any = getattr(ctypes, "windll", None)
    if windows is None:
        return None
    kibibytes = ctypes.c_ulonglong(0)
    windows.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kibibytes))
    return kibibytes.value * 1024 or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def check_cpu() -> Iterator[Check]:
    """Rows about the processor and the memory; none of them is ever bad."""
    yield Check("CPU", "ok", cpu_model())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cores", "ok", f"{usable} usable of {os.cpu_count()}; {_threads()}")
    yield check_waiting(_read("/proc/self/maps"))
    memory = memory_bytes()
    yield Check("memory", "ok", f"{memory / 2**30:.1f} GiB") if memory else Check("memory", "note", "unknown")
    yield check_instruction_sets(cpu_flags())


def _threads() -> str:
    try:
        return f"torch uses {_import('torch').get_num_threads()} threads"
    except Exception:
        return "torch's threads unknown"


def check_waiting(maps: str) -> Check:
    """How threads wait for each other, and whether the OpenMP that torch has loaded reads that.

    Args:
        maps: the files that this process has mapped, as Linux lists them; "" where that is unknown.
    """
    name, setting = "threads that wait", describe_waiting()
    loaded = set(re.findall(r"/lib(gomp|iomp5|omp)\b", maps))
    if loaded == {"gomp"}:
        return Check(name, "ok", setting)
    found = " and ".join(f"lib{one}" for one in sorted(loaded)) or "unknown"
    return Check(name, "note", f"{setting}; GNU OpenMP reads it, and the OpenMP of this torch is {found}")


def check_instruction_sets(flags: set[str]) -> Check:
    """AVX2, AVX-512 and AMX make float32 and bfloat16 fast on x86-64."""
    if not flags:
        return Check("instruction sets", "note", "cannot be read on this system")
    sets = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 bfloat16": "avx512_bf16", "AMX bfloat16": "amx_bf16"}
    sets |= {"NEON": "asimd", "SVE": "sve", "Arm bfloat16": "bf16"}
    found = [label for label, flag in sets.items() if flag in flags]
    return Check("instruction sets", "ok" if found else "note", ", ".join(found) or "none of AVX2, AVX-512, AMX")


def check_bfloat16() -> Check:
    """Is mixed precision faster here? Measured, because flags do not say."""
    name = "bfloat16"
    try:
        ratio = measure_bfloat16()
    except Exception as error:
        return Check(name, "note", f"not measured: {_short(error)}", "leave SOLVER.AMP.ENABLED False")
    return describe_bfloat16(ratio)


def describe_bfloat16(ratio: float) -> Check:
    """Words for the ratio of the time in float32 to the time in bfloat16."""
    what = "a convolution, forward and backward, against float32"
    if ratio >= 1.1:
        return Check("bfloat16", "ok", f"{ratio:.1f}x faster ({what}): SOLVER.AMP.ENABLED True pays")
    if ratio > 0.9:
        return Check("bfloat16", "note", f"as fast as float32 ({what})", "leave SOLVER.AMP.ENABLED False")
    return Check("bfloat16", "note", f"{1 / ratio:.1f}x slower ({what})", "leave SOLVER.AMP.ENABLED False")


def measure_bfloat16(seconds: float = BFLOAT16_SECONDS) -> float:
    """Time in float32 divided by time under bfloat16 autocast, of a 3x3 convolution, forward and backward.

    Args:
        seconds: time to measure for, per precision; at least one repetition is made.
    """
    torch: Any = _import("torch")
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1)
    features = torch.randn(2, 64, 48, 48, requires_grad=True)

    def step(autocast: bool) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            convolution(features).float().sum().backward()
        return time.perf_counter() - start

    return _median_step(lambda: step(False), seconds) / _median_step(lambda: step(True), seconds)


def _median_step(step: Callable[[], float], seconds: float) -> float:
    step()  # the first one allocates and chooses an algorithm
    times = [step()]
    while sum(times) < seconds and len(times) < 50:
        times.append(step())
    return statistics.median(times)


def check_gpu() -> Check:
    """Which GPU does torch see?"""
    try:
        cuda = _import("torch").cuda
        if not cuda.is_available():
            return Check("GPU", "ok", "none that torch can use; the CPU is used (MODEL.DEVICE cpu)")
        devices = [cuda.get_device_properties(i) for i in range(cuda.device_count())]
    except Exception as error:
        return Check("GPU", "note", f"unknown: {_short(error)}")
    found = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
    return Check("GPU", "note", f"{found}; ode_detect's own tests ran on CPUs only", "MODEL.DEVICE cuda uses it")


def check_compiler() -> Check:
    """Is there a C++ compiler? torch.compile needs one; nothing else does."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl"]
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if found:
        return Check("C++ compiler", "ok", f"{found} (torch.compile can be used)")
    return Check("C++ compiler", "note", "none", "only if you want torch.compile: install g++ or clang++")


def run_checks() -> list[Check]:
    """All rows, in the order of the table. A check that itself fails becomes a row as well."""
    groups: list[Callable[[], Check | Iterator[Check]]] = [
        *(check_python, check_packages, check_torchvision_operators),
        *(check_detectron2_origin, check_detectron2_imports, check_compiled),
        *(check_cpu, check_bfloat16, check_gpu, check_compiler),
    ]
    return [row for group in groups for row in _rows(group)]


def _rows(group: Callable[[], Check | Iterator[Check]]) -> list[Check]:
    rows: list[Check] = []
    try:
        result = group()
        if isinstance(result, Check):
            return [result]
        rows.extend(result)
    except Exception as error:
        rows.append(Check(group.__name__, "bad", f"the check itself failed: {_short(error)}", "report this as a bug"))
    return rows


def is_healthy(checks: list[Check]) -> bool:
    """Whether all that is necessary works."""
    return all(check.status != "bad" for check in checks)


def table(checks: list[Check]) -> str:
    """The rows as aligned text, with a cure under the row that needs one, and a verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.cure:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.cure}")
    bad = [check.name for check in checks if check.status == "bad"]
    verdict = f"Not ready: {', '.join(bad)}." if bad else "Ready: all that is necessary works."
    return "\n".join([*lines, "", verdict])


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or JSON.

    Returns:
        0 if all that is necessary works, otherwise 1.
    """
    parser = argparse.ArgumentParser(prog="python -m ode_detect.doctor", description=(__doc__ or "").split(":")[0])
    parser.add_argument(
        "--json", action="store_true", help="print JSON: {ready, checks: [{name, status, found, cure}]}"
    )
    options = parser.parse_args(arguments)
    checks = run_checks()
    ready = is_healthy(checks)
    if options.json:
        print(json.dumps({"ready": ready, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(table(checks))
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())

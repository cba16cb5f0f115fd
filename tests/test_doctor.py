"""The doctor: its judgement of versions and rows, and that a broken installation is a row instead of a traceback."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ode_detect import doctor
from ode_detect.doctor import Check, Requirement

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("requirement", "version", "expected"),
    [
        ("torch>=2.9,<2.15", "2.9", True),
        ("torch>=2.9,<2.15", "2.9.0", True),
        ("torch>=2.9,<2.15", "2.14.1+cpu", True),
        ("torch>=2.9,<2.15", "2.15.0", False),
        ("torch>=2.9,<2.15", "2.8.9", False),
        ("torch (>=2.9, <2.15)", "2.10", True),
        ("detectron2>=0.6", "0.6+a59f0563.purepython.1", True),
        ("fvcore>=0.1.5,<0.1.6", "0.1.5.post20221221", True),
        ("a!=1.2", "1.2.0", False),
        ("a==1.2", "1.2.0", True),
        ("a>1.2", "1.2", False),
        ("a<=1.2", "1.2", True),
        ("numpy", "0.1", True),
        ('tomli>=2; python_version < "3.11"', "2.5", True),
    ],
)
def test_version_range(requirement: str, version: str, expected: bool) -> None:
    assert Requirement.parse(requirement).admits(version) is expected


def test_our_own_requirements_are_read_with_their_ranges() -> None:
    ranges = {requirement.name: requirement.range for requirement in doctor.requirements(ROOT)}
    assert ranges["torch"] == ">=2.9,<2.15"
    assert ranges["setuptools"] == "<81"
    assert {"torchvision", "torchdiffeq", "detectron2", "scipy", "pillow", "tensorboard"} <= set(ranges)
    assert "pytest" not in ranges


def test_without_a_checkout_the_installed_metadata_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch<2.15,>=2.9", 'pytest>=8; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    assert doctor.requirements(tmp_path) == [Requirement("torch", (("<", "2.15"), (">=", "2.9")))]


@pytest.mark.parametrize("text", ["", "torch~=2.9", "torch @ file:///x", ">=2"])
def test_requirement_of_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="a requirement must be a name and bounds"):
        Requirement.parse(text)


@pytest.mark.parametrize(("version", "status"), [((3, 9), "bad"), ((3, 10), "ok"), ((3, 13), "ok"), ((3, 14), "bad")])
def test_python(version: tuple[int, int], status: str) -> None:
    assert doctor.check_python(version).status == status


class Breaking:
    """An import hook that makes a module raise, as a library compiled for another one does."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error = name, error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.name:
            raise self.error


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("ailing"):
            del sys.modules[name]


def add_package(site: Path, version: str, code: str = "") -> None:
    (site / "ailing.py").write_text(code)
    info = site / f"ailing-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ailing\nVersion: {version}\n")


AILING = Requirement("ailing", ((">=", "1"), ("<", "2")))


def test_healthy_package(site: Path) -> None:
    add_package(site, "1.5")
    assert doctor.check_package(AILING) == Check("ailing", "ok", "1.5 in >=1,<2")


def test_absent_package_names_its_cure(site: Path) -> None:
    check = doctor.check_package(AILING)
    assert (check.status, check.found) == ("bad", "not installed (needs >=1,<2)")
    assert 'pip install "ailing>=1,<2"' in check.cure


def test_package_outside_its_range(site: Path) -> None:
    add_package(site, "2.0")
    check = doctor.check_package(AILING)
    assert (check.status, check.found) == ("bad", "2.0 is outside >=1,<2")


@pytest.mark.parametrize(
    "code", ["raise OSError('libcuda.so.1: no such file')", "import no_such_module", "1 / 0", "def"]
)
def test_package_that_does_not_import_is_a_row(site: Path, code: str) -> None:
    add_package(site, "1.5", code)
    check = doctor.check_package(AILING)
    assert check.status == "bad"
    assert "1.5 does not import" in check.found


def test_module_that_pip_does_not_know_is_a_note(site: Path) -> None:
    (site / "ailing.py").write_text("")
    assert doctor.check_package(AILING).status == "note"


def test_warnings_of_an_import_are_not_errors(site: Path) -> None:
    add_package(site, "1.5", "import warnings\nwarnings.warn('old', DeprecationWarning)")
    assert doctor.check_package(AILING).status == "ok"


@pytest.fixture
def foreign_detectron2(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    (site / "detectron2").mkdir()
    (site / "detectron2" / "__init__.py").write_text("")
    return site / "detectron2"


def test_origin_names_version_and_folder(foreign_detectron2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.6")
    check = doctor.check_detectron2_origin()
    assert check.status == "ok"
    assert check.found == f"not ours: upstream or a fork of it, version 0.6, in {foreign_detectron2}"


def test_origin_of_our_wheel_names_the_commit(foreign_detectron2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.6+a59f0563.purepython.1")
    assert "our wheel, upstream commit a59f0563" in doctor.check_detectron2_origin().found


@pytest.mark.parametrize(
    ("code", "found"),
    [(None, "absent"), ("raise ImportError('undefined symbol')", "does not load"), ("", "present")],
)
def test_compiled_part(foreign_detectron2: Path, code: str | None, found: str) -> None:
    if code is not None:
        (foreign_detectron2 / "_C.py").write_text(code)
    check = doctor.check_compiled()
    assert check.found.startswith(found)
    assert check.status == ("ok" if found == "present" else "note")
    assert "rotated boxes" in check.found


def test_missing_pkg_resources_has_its_own_cure(foreign_detectron2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (foreign_detectron2 / "model_zoo.py").write_text("import pkg_resources")
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    check = doctor.check_detectron2_imports()
    assert (check.status, check.cure) == ("bad", 'pip install "setuptools<81"')


def test_torchvision_that_does_not_fit_torch_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("operator torchvision::nms does not exist\nmore")
    monkeypatch.delitem(sys.modules, "torchvision.ops", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Breaking("torchvision.ops", error), *sys.meta_path])
    check = doctor.check_torchvision_operators()
    assert check.status == "bad"
    assert check.found == "nms fails: RuntimeError: operator torchvision::nms does not exist"


def test_torchvision_of_this_environment_fits() -> None:
    assert doctor.check_torchvision_operators().status == "ok"


@pytest.mark.parametrize(
    ("flags", "status", "found"),
    [
        ({"avx2", "avx512f", "amx_bf16"}, "ok", "AVX2, AVX-512, AMX bfloat16"),
        ({"sse2"}, "note", "none of AVX2, AVX-512, AMX"),
        (set(), "note", "cannot be read on this system"),
    ],
)
def test_instruction_sets(flags: set[str], status: str, found: str) -> None:
    assert doctor.check_instruction_sets(flags) == Check("instruction sets", status, found)


@pytest.mark.parametrize(
    ("ratio", "status", "words", "advice"),
    [(2.94, "ok", "2.9x faster", "pays"), (1.0, "note", "as fast", "leave"), (0.25, "note", "4.0x slower", "leave")],
)
def test_words_for_bfloat16(ratio: float, status: str, words: str, advice: str) -> None:
    check = doctor.describe_bfloat16(ratio)
    assert check.status == status
    assert words in check.found
    assert advice in check.found + check.cure


def test_bfloat16_is_measured_on_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    seen = []
    autocast = torch.autocast

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(kwargs["enabled"])
        return autocast(*args, **kwargs)

    monkeypatch.setattr(torch, "autocast", spy)
    assert doctor.measure_bfloat16(seconds=0.0) > 0
    assert seen == [False, False, True, True]


def test_memory_is_limited_by_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_machine_memory_bytes", lambda: 8 * 2**30)
    monkeypatch.setattr(doctor, "_read", lambda _: f"{2**30}\n")
    assert doctor.memory_bytes() == 2**30
    monkeypatch.setattr(doctor, "_read", lambda _: "max\n")
    assert doctor.memory_bytes() == 8 * 2**30


def test_compiler_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.check_compiler().status == "note"


def test_a_check_that_fails_becomes_a_row() -> None:
    def check_something() -> Iterator[Check]:
        yield Check("first", "ok", "")
        raise KeyError("x")

    first, second = doctor._rows(check_something)
    assert first.name == "first"
    assert (second.name, second.status) == ("check_something", "bad")


ROWS = [Check("torch", "ok", "2.14"), Check("Detectron2's _C", "note", "absent", "build it")]


def test_table_shows_cures_and_the_verdict() -> None:
    assert doctor.table(ROWS).splitlines() == [
        "ok    torch            2.14",
        "note  Detectron2's _C  absent",
        "                       -> build it",
        "",
        "Ready: all that is necessary works.",
    ]
    assert doctor.table([*ROWS, Check("numpy", "bad", "absent")]).endswith("Not ready: numpy.")


@pytest.mark.parametrize(("extra", "code"), [([], 0), ([Check("numpy", "bad", "absent")], 1)])
def test_exit_code_and_json(
    extra: list[Check], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda: ROWS + extra)
    assert doctor.main(["--json"]) == code
    printed = json.loads(capsys.readouterr().out)
    assert printed["ready"] is (code == 0)
    assert printed["checks"][1] == {
        "name": "Detectron2's _C",
        "status": "note",
        "found": "absent",
        "cure": "build it",
    }


def test_importing_the_doctor_imports_the_standard_library_only() -> None:
    code = "import sys, ode_detect.doctor; print(*{name.split('.')[0] for name in sys.modules})"
    finished = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = set(finished.stdout.split()) - set(sys.stdlib_module_names) - {"__main__", "ode_detect"}
    assert not foreign


def test_without_any_package_it_still_prints_a_table() -> None:
    command = [sys.executable, "-S", "-m", "ode_detect.doctor"]  # -S: no site-packages
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr == ""
    assert "bad   torch " in finished.stdout
    assert finished.stdout.splitlines()[-1].startswith("Not ready: ")


def test_how_threads_wait_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    (row,) = [row for row in doctor.check_cpu() if row.name == "threads that wait"]
    assert row.found.startswith("GOMP_SPINCOUNT=7 (of your environment)")


@pytest.mark.parametrize(
    ("maps", "status", "said"),
    [
        ("7f0 r-xp 0 fe:00 1  /site-packages/torch/lib/libgomp.so.1\n7f1 r-xp 0 fe:00 1  /lib/libcomplex.so", "ok", ""),
        ("7f0 r-xp 0 fe:00 1  /lib/libgomp-24e2ab19.so.1.0.0", "ok", ""),
        ("7f0 r-xp 0 fe:00 1  /conda/lib/libiomp5.so", "note", "the OpenMP of this torch is libiomp5"),
        ("/lib/libgomp.so.1\n/lib/libomp.so", "note", "the OpenMP of this torch is libgomp and libomp"),
        ("", "note", "the OpenMP of this torch is unknown"),
    ],
)
def test_another_openmp_than_the_one_that_reads_the_setting_is_a_note(maps: str, status: str, said: str) -> None:
    row = doctor.check_waiting(maps)
    assert row.status == status
    assert row.found.endswith(said)

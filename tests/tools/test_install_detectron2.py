"""The installer, on a tiny wheel of the same shape; no network, nothing is installed."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "install_detectron2.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["install_detectron2"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


installer = load_script()

MODEL_ZOO = """import os
import pkg_resources
import torch


def get_config_file(config_path):
    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
    return cfg_file
"""
SOURCE = {
    "detectron2/__init__.py": '# upstream\n__version__ = "0.7.2"\n',
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "machine code",
    "detectron2/_C.cp310-win_amd64.pyd": "machine code",
    "detectron2/model_zoo/model_zoo.py": MODEL_ZOO,
    "detectron2/model_zoo/configs/a,b.yaml": "MODEL: {}\n",
    "detectron2/modeling/anchor_generator.py": "shift_y, shift_x = torch.meshgrid(shifts_y, shifts_x)\n",
    "detectron2/modeling/backbone/swin.py": "coords = torch.stack(torch.meshgrid([coords_h, coords_w]))  # 2, Wh, Ww\n",
    "tools/__init__.py": "",
    "tools/train_net.py": "stray\n",
    "sal_detectron2-0.7.2.dist-info/LICENSE": "Apache License\n",
    "sal_detectron2-0.7.2.dist-info/METADATA": "Name: sal-detectron2\n",
    "sal_detectron2-0.7.2.dist-info/RECORD": "",
}


def write_source(folder: Path, files: dict[str, str]) -> Path:
    wheel = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path, SOURCE)


def pin(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(installer.read_source, "__defaults__", (digest,))


@pytest.fixture
def built(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> zipfile.ZipFile:
    pin(monkeypatch, source)
    assert installer.main(["--wheel", str(source), "--wheel-only", str(tmp_path / "out")]) == 0
    (wheel,) = (tmp_path / "out").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        yield archive


def text_of(archive: zipfile.ZipFile, ending: str) -> str:
    (name,) = [name for name in archive.namelist() if name.endswith(ending)]
    return archive.read(name).decode("utf-8")


def test_compiled_part_and_stray_package_are_left_out(built: zipfile.ZipFile) -> None:
    names = [name for name in built.namelist() if ".dist-info/" not in name]
    assert names == sorted(name for name in SOURCE if name.startswith("detectron2/") and "/_C" not in name)


def test_wheel_is_pure_python_and_carries_the_licence(built: zipfile.ZipFile) -> None:
    assert Path(built.filename).name == f"detectron2-{installer.VERSION}-py3-none-any.whl"
    wheel = text_of(built, "/WHEEL")
    assert "Root-Is-Purelib: true\n" in wheel
    assert "Tag: py3-none-any\n" in wheel
    assert text_of(built, "/LICENSE") == "Apache License\n"
    assert text_of(built, "/top_level.txt") == "detectron2\n"


def test_record_lists_every_file_with_its_real_hash_and_size(built: zipfile.ZipFile) -> None:
    rows = {name: (digest, size) for name, digest, size in csv.reader(io.StringIO(text_of(built, "/RECORD")))}
    assert list(rows) == built.namelist()
    for name, (digest, size) in rows.items():
        if name.endswith("/RECORD"):
            assert (digest, size) == ("", "")
            continue
        content = built.read(name)
        expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert (digest, size) == (f"sha256={expected}", str(len(content)))


def test_metadata_states_origin_losses_patches_and_requirements(built: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(text_of(built, "/METADATA"))
    assert metadata["Name"] == "detectron2"
    assert metadata["Version"] == installer.VERSION
    assert metadata["License"] == "Apache-2.0"
    required = metadata.get_all("Requires-Dist")
    assert {"numpy", "torchvision", "fvcore>=0.1.5,<0.1.6", "opencv-python-headless"} <= set(required)
    assert not any("dataclasses" in requirement for requirement in required)
    description = metadata.get_payload()
    for word in (installer.SHA256, "a59f0563", "sal-detectron2 0.7.2", "rotated boxes", "deformable", "COCOeval"):
        assert word in description
    for patch in installer.PATCHES:
        assert f"- {patch.path}: {patch.why}" in description


def test_patched_version_equals_the_distribution_version(built: zipfile.ZipFile) -> None:
    namespace: dict[str, str] = {}
    exec(built.read("detectron2/__init__.py"), namespace)
    assert namespace["__version__"] == installer.VERSION


def test_patched_model_zoo_finds_its_configs_without_pkg_resources(built: zipfile.ZipFile, tmp_path: Path) -> None:
    code = built.read("detectron2/model_zoo/model_zoo.py").decode().replace("import torch\n", "")
    assert "pkg_resources" not in code
    namespace = {"__file__": str(tmp_path / "model_zoo.py")}
    exec(code, namespace)
    assert namespace["get_config_file"]("COCO/x.yaml") == str(tmp_path / "configs" / "COCO" / "x.yaml")


def test_every_patch_changes_its_file_and_says_so_in_it(built: zipfile.ZipFile) -> None:
    for path in {patch.path for patch in installer.PATCHES}:
        assert built.read(path).decode() != SOURCE[path]
        assert "# changed by ode_detect" in built.read(path).decode()
    assert 'torch.meshgrid(shifts_y, shifts_x, indexing="ij")' in text_of(built, "anchor_generator.py")
    assert 'torch.meshgrid([coords_h, coords_w], indexing="ij"))' in text_of(built, "swin.py")


def test_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    files = installer.apply_patches(installer.read_source(source, digest))
    shuffled = dict(reversed(files.items()))
    one = installer.build_wheel(files, tmp_path / "one").read_bytes()
    two = installer.build_wheel(shuffled, tmp_path / "two").read_bytes()
    assert one == two


def test_wrong_checksum_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert installer.main(["--wheel", str(source), "--wheel-only", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert installer.SHA256 in message
    assert hashlib.sha256(source.read_bytes()).hexdigest() in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_absent_wheel_is_an_error_of_three_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert installer.main(["--wheel", str(tmp_path / "none.whl"), "--wheel-only", str(tmp_path)]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "import pkg_resources\nimport pkg_resources\n"])
def test_patch_that_does_not_fit_exactly_once_is_an_error(text: str) -> None:
    patch = installer.Patch("detectron2/a.py", "import pkg_resources\n", "", "why")
    with pytest.raises(installer.InstallError, match=r"exactly once in detectron2/a\.py"):
        patch.apply(text)


def test_patch_of_an_absent_file_is_an_error() -> None:
    with pytest.raises(installer.InstallError, match=r"the wheel has none"):
        installer.apply_patches({})


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_other_pythons_are_refused(version: tuple[int, int]) -> None:
    with pytest.raises(installer.InstallError, match=r"3\.10 to 3\.13; this is"):
        installer.check_python(version)


def installed(version: str, *, is_ours: bool, has_metadata: bool = True) -> object:
    return installer.Installed(version, Path("site-packages/detectron2"), is_ours, has_metadata)


FOREIGN = installed("0.6", is_ours=False)
OURS = installed(installer.VERSION, is_ours=True)


@pytest.mark.parametrize(
    ("found", "flags", "expected"),
    [
        (FOREIGN, {}, False),
        (FOREIGN, {"force_foreign": True}, True),
        (OURS, {}, False),
        (OURS, {"force": True}, True),
        (installed("0.6+a59f0563.purepython.0", is_ours=True), {}, True),
    ],
    ids=["foreign is kept", "foreign forced", "ours is kept", "ours forced", "ours outdated"],
)
def test_what_is_replaced(found: object, flags: dict[str, bool], expected: bool) -> None:
    assert installer.is_to_be_replaced(found, **{"force": False, "force_foreign": False, **flags}) is expected


def test_force_does_not_replace_a_foreign_detectron2() -> None:
    with pytest.raises(installer.InstallError, match="--force-foreign"):
        installer.is_to_be_replaced(FOREIGN, force=True, force_foreign=False)


def test_copy_without_metadata_is_never_replaced() -> None:
    copy = installed("0.6", is_ours=False, has_metadata=False)
    with pytest.raises(installer.InstallError, match="Remove that folder yourself"):
        installer.is_to_be_replaced(copy, force=False, force_foreign=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on sys.path, with a foreign detectron2 that nobody may import."""
    folder = tmp_path / "site"
    (folder / "detectron2").mkdir(parents=True)
    (folder / "detectron2" / "__init__.py").write_text('__version__ = "0.6"\nraise RuntimeError("imported")\n')
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.syspath_prepend(folder)
    return folder


def add_metadata(site: Path, version: str, generator: str) -> None:
    info = site / f"detectron2-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: detectron2\nVersion: {version}\n")
    (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nGenerator: {generator}\n")


def test_foreign_detectron2_is_found_and_kept_without_pip(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_metadata(site, "0.6", "setuptools (75.6.0)")
    monkeypatch.setattr(installer.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert installer.main([]) == 0
    printed = capsys.readouterr().out
    assert "Using detectron2 0.6" in printed
    assert str(site / "detectron2") in printed
    assert "not built by this script" in printed


def test_our_own_build_is_recognised(site: Path) -> None:
    add_metadata(site, installer.VERSION, installer.GENERATOR)
    found = installer.find_installed()
    assert (found.is_ours, found.version, found.folder) == (True, installer.VERSION, site / "detectron2")


def test_version_of_a_copy_without_metadata_comes_from_its_source(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(site)])  # a detectron2 of the environment has metadata
    found = installer.find_installed()
    assert (found.version, found.has_metadata, found.is_ours) == ("0.6", False, False)


class FakePip:
    """Stands in for subprocess.run and keeps the arguments of each call of pip."""

    def __init__(self, returncode: int = 0, output: str = "") -> None:
        self.calls: list[list[str]] = []
        self.result = SimpleNamespace(returncode=returncode, stdout=output)

    def __call__(self, command: list[str], **_: object) -> SimpleNamespace:
        assert command[:3] == [sys.executable, "-m", "pip"]
        self.calls.append(command[4:])
        return self.result


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(installer.subprocess, "run", fake)
    return fake


def test_constraint_and_no_deps_reach_pip(pip: FakePip, tmp_path: Path) -> None:
    wheel, constraint = tmp_path / "a.whl", tmp_path / "constraints.txt"
    installer.install(wheel, no_deps=True, constraint=constraint, replace=False)
    installer.install(wheel, no_deps=False, constraint=None, replace=False)
    assert pip.calls == [
        ["install", "--quiet", "--no-deps", "--constraint", str(constraint), str(wheel)],
        ["install", "--quiet", str(wheel)],
    ]


def test_replacing_does_not_reinstall_what_detectron2_requires(pip: FakePip, tmp_path: Path) -> None:
    installer.install(tmp_path / "a.whl", no_deps=False, constraint=None, replace=True)
    assert "--no-deps" in pip.calls[0]
    assert "--force-reinstall" in pip.calls[0]
    assert "--force-reinstall" not in pip.calls[1]


def test_failure_of_pip_is_told_with_its_last_words(pip: FakePip, tmp_path: Path) -> None:
    pip.result = SimpleNamespace(returncode=1, stdout="ERROR: No matching distribution found")
    with pytest.raises(installer.InstallError, match=r"(?s)download.*No matching distribution.*--wheel"):
        installer.download(tmp_path)


def test_python_without_pip_is_told_so(pip: FakePip, tmp_path: Path) -> None:
    pip.result = SimpleNamespace(returncode=1, stdout="/usr/bin/python3: No module named pip")
    with pytest.raises(installer.InstallError, match="ensurepip"):
        installer.download(tmp_path)


def test_download_asks_for_the_pinned_wheel_of_another_python(pip: FakePip, tmp_path: Path) -> None:
    (tmp_path / "x.whl").touch()
    assert installer.download(tmp_path) == tmp_path / "x.whl"
    (call,) = pip.calls
    assert call[-1] == "sal-detectron2==0.7.2"
    assert call[call.index("--python-version") + 1] == "3.10"
    assert {"--no-deps", "--only-binary=:all:"} <= set(call)


def test_absent_constraint_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert installer.main(["--constraint", str(tmp_path / "none.txt")]) == 2
    assert "--constraint takes a file" in capsys.readouterr().err

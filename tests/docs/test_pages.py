"""What the pages of the documentation say must work: their Python runs, their commands and configs are understood."""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

import ode_detect.ode
from ode_detect.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXT = {page.relative_to(ROOT / "docs").as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


README = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}


def blocks(language: str, texts: Mapping[str, str] = TEXT) -> list[tuple[str, str, str]]:
    """(page, title, code) of the fenced blocks in a language."""
    return [
        (page, found["title"] or "", found["code"])
        for page, text in texts.items()
        for found in FENCE.finditer(text)
        if found["language"] == language
    ]


def commands() -> list[tuple[str, str]]:
    """(page, command) of the lines that run a script of ours."""
    shown = blocks("sh", TEXT | README)
    lines = [(page, line) for page, _, code in shown for line in code.replace("\\\n", " ").splitlines()]
    return [(page, line.strip()) for page, line in lines if re.search(r"(^| )(tools|datasets)/\w+\.py", line)]


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_of_a_page", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted({page for page, _, _ in blocks("python")}))
def test_the_python_of_a_page_runs(page: str) -> None:
    names: dict[str, object] = {}
    for where, _, code in blocks("python"):
        if where == page:
            exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda word: word[:60])
def test_a_command_is_understood(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    start = next(i for i, word in enumerate(words) if re.fullmatch(r"(tools|datasets)/\w+\.py", word))
    assert (ROOT / words[start]).is_file(), f"{page} names {words[start]}"
    if "--help" in words or "def parse(" not in (ROOT / words[start]).read_text():
        return
    args = vars(script(words[start]).parse(words[start + 1 :]))
    shown = {title for _, title, _ in blocks("yaml")}
    for value in args.values():
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and name.startswith("configs/"):
                assert (ROOT / name).is_file() or name in shown, f"{page} names {name}"


@pytest.mark.parametrize(("page", "title"), [block[:2] for block in blocks("yaml") if block[1]])
def test_a_config_that_is_shown_loads(page: str, title: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for where, name, text in blocks("yaml"):
        if where == page and name:
            (tmp_path / name).write_text(text)
    assert load_config(tmp_path / title).OUTPUT_DIR != load_config(ROOT / "configs" / "quickstart.yaml").OUTPUT_DIR, (
        page
    )


def test_the_reference_has_every_public_name_of_ode() -> None:
    shown = set(re.findall(r"^::: ode_detect\.ode\.(\w+)$", TEXT["api/ode.md"], re.MULTILINE))
    assert shown == set(ode_detect.ode.__all__)

"""The hooks of MkDocs that bring tables, pictures and config keys into the pages."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
HOOKS = ROOT / "docs" / "hooks.py"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", HOOKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path: Path) -> MkDocsConfig:
    """A project with two files of results and a picture."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(f"site_name: test\nhooks: [{HOOKS}]\n")
    (tmp_path / "results").mkdir()
    for name in ("quickstart.json", "dial_quickstart.json", "dial_quickstart.png"):
        shutil.copy(ROOT / "results" / name, tmp_path / "results")
    # The picture of another file, whose name begins alike.
    shutil.copy(ROOT / "results" / "dial_quickstart_trained.json", tmp_path / "results")
    shutil.copy(ROOT / "results" / "dial_quickstart.png", tmp_path / "results" / "dial_quickstart_trained.png")
    return load_config(str(tmp_path / "mkdocs.yml"))


def test_results_that_no_page_names_are_added(hooks: ModuleType, config: MkDocsConfig, tmp_path: Path) -> None:
    (tmp_path / "docs" / "first.md").write_text("<!-- results: results/quickstart.json -->\n<!-- /results -->\n")
    filled = hooks.on_page_markdown("<!-- other results -->\n", config=config)
    assert filled.count("| quickstart_twin |") == 0
    assert filled.count("| euler_1-2-2 |") == 1
    assert "## The dial of" in filled
    assert filled.count("![dial quickstart](results/dial_quickstart.png)") == 1
    assert filled.count("![dial quickstart trained](results/dial_quickstart_trained.png)") == 1


def test_the_config_keys_come_from_the_code(hooks: ModuleType, config: MkDocsConfig) -> None:
    filled = hooks.on_page_markdown("<!-- config keys --><!-- unused keys -->", config=config)
    assert "| `TEST.PRECISE_BN.ENABLED` | statistics" in filled
    assert "float, in `[0, 1]`, default `0.5`" in filled
    assert "### `MODEL.ODE.METHOD`" in filled


def test_a_page_shows_the_pictures_of_results(config: MkDocsConfig, tmp_path: Path) -> None:
    (tmp_path / "docs" / "index.md").write_text("# Test\n\n<!-- other results -->\n")
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    assert 'src="results/dial_quickstart.png"' in (tmp_path / "site" / "index.html").read_text()
    assert (tmp_path / "site" / "results" / "dial_quickstart.png").stat().st_size > 1000


def test_a_picture_is_named_as_it_lies_in_the_repository(config: MkDocsConfig, tmp_path: Path) -> None:
    (tmp_path / "docs" / "index.md").write_text("![a dial](../results/dial_quickstart.png)\n\n<!-- other results -->\n")
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    assert (tmp_path / "site" / "index.html").read_text().count('src="results/dial_quickstart.png"') == 1


def test_a_marker_without_its_file_stops_the_build(hooks: ModuleType, config: MkDocsConfig) -> None:
    with pytest.raises(PluginError, match=r"nothing\.json"):
        hooks.on_page_markdown("<!-- results: results/nothing.json -->\n<!-- /results -->", config=config)


def test_the_table_of_configs_is_made_from_their_headers(hooks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "configs" / "base").mkdir(parents=True)
    (tmp_path / "configs" / "base" / "hidden.yaml").write_text("# Not to be run.\n")
    config = tmp_path / "configs" / "one.yaml"
    config.write_text(
        "# A network of 1.5 M parameters (see: Dupont et al. 2019),\n# small. More.\n#\n"
        "# Claim: AP50 of 0.3 | more; fast.\nTASK: x\n"
    )
    table = hooks.configs(tmp_path)
    assert table.splitlines()[2:] == [
        "| `one.yaml` | A network of 1.5 M parameters (see: Dupont et al. 2019), small | AP50 of 0.3 \\| more |"
    ]
    for text in (b"TASK: x\n", b"# My network.\nTASK: x\n", b"# \xe9t\xe9\n", b""):  # a user's own
        (tmp_path / "configs" / "mine.yaml").write_bytes(text)
        assert hooks.configs(tmp_path) == table

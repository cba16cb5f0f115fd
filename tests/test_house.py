"""How the files of the package lie: no circle of imports, and a test file for each."""

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

from .conftest import ROOT


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("ode_detect", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 150, "the package"
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_every_file_has_a_test_file_of_the_same_path() -> None:
    missing = []
    for path in sorted((ROOT / "ode_detect").rglob("*.py")):
        place = path.relative_to(ROOT / "ode_detect")
        test = ROOT / "tests" / place.with_name(f"test_{place.name}")
        if place.name != "__init__.py" and not test.exists():
            missing.append(f"{place} has no tests/{test.relative_to(ROOT / 'tests')}")
    assert not missing, "\n".join(missing)


def test_every_test_file_of_a_room_has_a_source_file_of_the_same_path() -> None:
    package, found = ROOT / "ode_detect", 0
    alone = []
    for room in sorted(path.name for path in package.iterdir() if (path / "__init__.py").exists()):
        for test in sorted((ROOT / "tests" / room).rglob("test_*.py")):
            found += 1
            place = test.relative_to(ROOT / "tests")
            source = package / place.with_name(place.name.removeprefix("test_"))
            if not source.exists():
                alone.append(f"tests/{place} tests no {source.relative_to(ROOT)}; move its tests to those of a source")
    assert found > 100, "the test files of the rooms"
    assert not alone, "\n".join(alone)

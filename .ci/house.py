"""The shape of the package in numbers: python .ci/house.py [ROOT], with the environment of `make setup`."""

from __future__ import annotations

import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

# From the top down; rooms of one line do not import each other.
ORDER = (
    {"studies", "deploy"},
    {"engine"},
    {"classification", "detection"},
    {"backbones", "task"},
    {"report", "ode"},
    {"media"},
)


def room(module: str) -> str:
    """The room of a module, such as "engine"."""
    return module.split(".")[1] if "." in module else module


def main() -> None:
    """Print the table."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    sys.path.insert(0, str(root))
    graph = grimp.build_graph("ode_detect", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    pairs = [(module, other) for module, others in imports.items() for other in others]
    height = {name: place for place, names in enumerate(ORDER) for name in names}
    climbs = [(a, b) for a, b in pairs if room(a) != room(b) and height.get(room(a), 0) >= height.get(room(b), 9)]
    lines = Counter()
    for path in (root / "ode_detect").rglob("*.py"):
        place = path.relative_to(root / "ode_detect").parts
        lines[place[0] if len(place) > 1 else path.stem] += len(path.read_text().splitlines())
    total, (largest, most) = sum(lines.values()), lines.most_common(1)[0]
    inside = Counter(room(a) for a, b in pairs if room(a) == room(b))
    tied = {frozenset((room(a), room(b))) for a, b in pairs if room(a) != room(b)}
    longest = max((root / "ode_detect").rglob("*.py"), key=lambda path: len(path.read_text().splitlines()))
    try:
        TopologicalSorter(imports).prepare()
        circle = "none"
    except CycleError as error:
        circle = " -> ".join(error.args[1])
    for name, value in {
        "files, lines": f"{len(imports)}, {total}",
        "circles": circle,
        "imports that climb": ", ".join(f"{a} -> {b}" for a, b in climbs) or "none",
        "largest room": f"{largest}, {100 * most / total:.0f} %",
        "lines of engine": lines["engine"],
        "arrows inside engine, ode, report": f"{inside['engine']}, {inside['ode']}, {inside['report']}",
        "pairs of rooms that are tied": f"{len(tied)} of {len(lines) * (len(lines) - 1) // 2}",
        "longest file": f"{longest.relative_to(root)}, {len(longest.read_text().splitlines())} lines",
        "configs": len(list((root / "configs").rglob("*.yaml"))),
        "lines of README": len((root / "README.md").read_text().splitlines()),
    }.items():
        print(f"{name:34} {value}")


if __name__ == "__main__":
    main()

"""Fill the tables of README.md and of the pages in docs/ from the files in results/ and the headers in configs/.

python tools/update_readme.py            # write them
python tools/update_readme.py --check    # write nothing: exit code 1 if one is not up to date
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from ode_detect.engine.recipes import to_markdown
from ode_detect.media.files import write_text
from ode_detect.report.readme import fill

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a file that is not up to date, 2 for a user error."""
    parser = argparse.ArgumentParser(description="Fill the tables of Markdown files from files of results.")
    parser.add_argument("files", nargs="*", type=Path, help="without any: README.md and the pages in docs/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is not up to date")
    options = parser.parse_args(arguments)
    try:
        return max(update(file, check=options.check) for file in options.files or pages())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and the pages of the documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def update(file: Path, *, check: bool) -> int:
    """Fill the tables of one file; returns 1 if ``check`` finds it not up to date."""
    old = file.read_text(encoding="utf-8")
    new = fill(old, _root(file), {"networks": lambda folder, root: to_markdown(root, folder)})
    if check and new != old:
        print("".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "as it is", "as it should be")))
        print(f"{file.name} is not up to date. Run python tools/update_readme.py.", file=sys.stderr)
        return 1
    if new != old:
        write_text(file, new)
    if new != old or "<!-- results:" in new or "<!-- networks:" in new:
        print(f"{file.name}: {'up to date' if new == old else 'written'}")
    return 0


def _root(file: Path) -> Path:
    """The folder that the paths in the markers start from: the nearest around the file that has one named results."""
    folders = file.resolve().parents
    return next((folder for folder in folders if (folder / "results").is_dir()), folders[0])


if __name__ == "__main__":
    sys.exit(main())

"""Fill the tables of README.md from the files in results/.

python tools/update_readme.py            # write it
python tools/update_readme.py --check    # only tell: exit code 1 if README.md is not up to date
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from ode_detect.media.files import write_text
from ode_detect.report.readme import fill


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a file that is not up to date, 2 for a user error."""
    parser = argparse.ArgumentParser(description="Fill the tables of a Markdown file from files of results.")
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).resolve().parents[1] / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the file is not up to date")
    options = parser.parse_args(arguments)
    try:
        old = options.file.read_text(encoding="utf-8")
        new = fill(old, options.file.resolve().parent)
        if not options.check and new != old:
            write_text(options.file, new)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check and new != old:
        print("".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "as it is", "as it should be")))
        print(f"{options.file.name} is not up to date. Run python tools/update_readme.py.", file=sys.stderr)
        return 1
    print(f"{options.file.name}: {'up to date' if new == old else 'written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

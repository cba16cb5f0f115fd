#!/usr/bin/env python
"""Join the results of several runs (a network, its twin, its ablation, other seeds) into one file of results.

Example:
    python tools/merge_results.py output/quickstart output/twin output/ablation --output results/quickstart.json
"""

from __future__ import annotations

import argparse
import sys

from ode_detect.report.results import ResultsError, merge, to_text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or their results.json")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the joined results go")
    args = parser.parse_args(arguments)
    try:
        results = merge(args.runs)
        results.write(args.output)
    except (ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(to_text(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

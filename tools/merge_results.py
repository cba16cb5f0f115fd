#!/usr/bin/env python
r"""Join the results of several runs (a network, its twin, its ablation, other seeds) into one file of results.

Examples:
    python tools/merge_results.py output/quickstart output/twin output/ablation --output results/quickstart.json
    python tools/merge_results.py untrained=output/a/dial/dial.json trained=output/b/dial/dial.json \
        --output results/dial.json --plot top1

Runs with names may differ in protocol; their rows are called by them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from ode_detect.report.dial import plot_dial
from ode_detect.report.plots import MetricsError
from ode_detect.report.protocol import full_settings
from ode_detect.report.results import ResultsError, merge
from ode_detect.report.tables import to_text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or their results.json; NAME=RUN names it")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the joined results go")
    parser.add_argument("--plot", metavar="METRIC", help="also draw a dial: this metric against evaluations, as .png")
    args = parser.parse_args(arguments)
    try:
        found = [re.fullmatch(r"(?:(\w+)=)?(.+)", run, re.DOTALL) for run in args.runs]
        names = [match[1] or "" for match in found if match]
        results = merge([match[2] for match in found if match], names if any(names) else [])
        results.write(args.output)
        if args.plot:
            plot = Path(args.output).with_suffix(".png")
            plot_dial(results.rows, args.plot, plot, full=full_settings(results.protocol))
    except (ResultsError, MetricsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(to_text(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

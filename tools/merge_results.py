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
import sys
from pathlib import Path

from ode_detect.report.plots import MetricsError, plot_dial
from ode_detect.report.results import ResultsError, merge, to_text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or their results.json; NAME=RUN names it")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the joined results go")
    parser.add_argument("--plot", metavar="METRIC", help="also draw a dial: this metric against evaluations, as .png")
    args = parser.parse_args(arguments)
    try:
        named = [run.rpartition("=") for run in args.runs]
        names = [name for name, _, _ in named] if any(name for name, _, _ in named) else []
        results = merge([path for _, _, path in named], names)
        results.write(args.output)
        if args.plot:
            full = next((c for c in results.protocol.split("; ") if c.startswith("full steps: ")), "")
            plot = Path(args.output).with_suffix(".png")
            plot_dial(results.rows, args.plot, plot, full=full.removeprefix("full steps: "))
    except (ResultsError, MetricsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(to_text(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Measure what the continuous core costs, each side and what it is compared with taking turns in one process.

Ratios are what is claimed; wall times depend on the machine and the day. About 25 minutes on 2 cores. Each section is
written when it is through; the other sections of the file stay, if they are of the same commit and machine.

Examples:
    python tools/benchmark.py --output results/benchmark_cpu.json
    python tools/benchmark.py --only flow gradients --output output/benchmark.json
    python tools/benchmark.py --list
"""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from ode_detect.engine.launch import run_tool


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/benchmark.json"), metavar="FILE")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="measure these sections; see --list")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the numbers mean nothing")
    parser.add_argument("--list", action="store_true", help="list the sections")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Parse, measure, report."""
    from ode_detect.report.tables import to_text
    from ode_detect.studies.benchmark.run import SECTIONS, run_benchmark, write_plots

    args = parse(arguments)
    if args.list:
        width = max(map(len, SECTIONS))
        print("\n".join(f"{name.ljust(width)}  {section.about}" for name, section in SECTIONS.items()))
        return
    command = shlex.join(["python", "tools/benchmark.py", *arguments])
    tell = partial(print, flush=True)
    try:
        results = run_benchmark(args.only, quick=args.quick, command=command, output=args.output, tell=tell)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the sections that were finished are in {args.output}.") from None
    pictures = write_plots(results, args.output)
    print(f"\n{to_text(results)}\n\nwritten: {', '.join(map(str, [args.output, *pictures]))}")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

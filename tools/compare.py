#!/usr/bin/env python
"""Compare networks of one task: one page with numbers, differences to the twin, curves and the same pictures.

Examples:
    python tools/compare.py --config-file configs/detection/bccd.yaml --roles ode twin ablation --seeds 2 --train
    python tools/compare.py --config-file configs/detection/bccd.yaml --networks bccd_shared bccd_pieces --train
    python tools/compare.py --configs a.yaml b.yaml c.yaml --seeds 3 3 1 --train
    python tools/compare.py --configs a.yaml b.yaml --weights a.pth b.pth --output output/a_and_b
    python tools/compare.py --configs a.yaml b.yaml --train SOLVER.MAX_ITER 100 OUTPUT_DIR output/short

A network is a config as it is, one in several roles (flows, their twin, their ablation), or one that the header of a
config names. The run of seed s is in OUTPUT_DIR/seed_s of its config, in another role in OUTPUT_DIR_ROLE/seed_s, by a
name in a folder of that name beside OUTPUT_DIR (with OUTPUT_DIR on the command line: in OUTPUT_DIR/NAME/seed_s). A
finished one is taken; with --train what is missing or unfinished is trained, one after another, and the same command
goes on where it was stopped. Writes comparison.html (one file, with its pictures), comparison.md, results.json (a row
for each network and seed) and timing.json (ratios measured in turns).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ode_detect.engine.launch import WHOLE_NUMBERS, parse_anywhere, run_tool


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; flags may stand anywhere among KEY VALUE pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_mutually_exclusive_group(required=True)
    files.add_argument("--config-file", metavar="FILE", help="one config, with --roles or --networks")
    files.add_argument("--configs", nargs="+", metavar="FILE", help="several configs")
    parser.add_argument("--roles", nargs="+", default=[], metavar="ROLE", help="take each as ode, twin, ablation")
    parser.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="those that the headers name so")
    parser.add_argument(
        "--seeds", nargs="+", default=["1"], metavar="N", help="seeds 0 to N-1 of all networks (1), or an N for each"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--train", action="store_true", help="train the runs that are missing or not finished")
    source.add_argument("--weights", nargs="+", default=[], metavar="FILE", help="a checkpoint for each network")
    parser.add_argument("--evaluate", action="store_true", help="evaluate the last weights of each run again")
    parser.add_argument("--turn", action="store_true", help="also evaluate with half the step and by another method")
    parser.add_argument("--dial", nargs="+", default=[], metavar="FILE", help="also draw these dial.json")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="X", help="for each of the three timings (20)")
    parser.add_argument("--output", metavar="DIR", help="where to write (output/compare_ and the first config's name)")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over all files")
    lists = {**dict.fromkeys(("configs", "weights", "dial"), "files"), "roles": "roles", "networks": "names"}
    args = parse_anywhere(parser, arguments, lists={**lists, "seeds": WHOLE_NUMBERS})
    args.configs = args.configs or [args.config_file]
    return args


def main(arguments: list[str]) -> None:
    """Parse, compare, report."""
    from ode_detect.report.tables import to_text
    from ode_detect.studies.compare.compare import Request, compare

    args = parse(arguments)
    request = Request(
        configs=tuple(args.configs),
        output=Path(args.output or Path("output") / f"compare_{Path(args.configs[0]).stem}"),
        command=shlex.join(["python", "tools/compare.py", *arguments]),
        roles=tuple(args.roles),
        networks=tuple(args.networks),
        seeds=tuple(args.seeds),
        overrides=tuple(args.overrides),
        weights=tuple(args.weights),
        train=(sys.executable, str(Path(__file__).with_name("train_net.py"))) if args.train else (),
        evaluate=args.evaluate,
        turn=args.turn,
        dials=tuple(map(Path, args.dial)),
        seconds=args.seconds,
    )
    try:
        results, written = compare(request)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or "stopped; the same command takes the runs that are finished.") from None
    print(f"\n{to_text(results)}\n\nwritten: {', '.join(map(str, written))}")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

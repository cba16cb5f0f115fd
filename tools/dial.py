#!/usr/bin/env python
"""Turn the dial of one checkpoint: quality and cost at other steps and methods, and per-flow steps for a budget.

Examples:
    python tools/dial.py --config-file configs/quickstart.yaml
    python tools/dial.py --config-file configs/quickstart.yaml --steps 1 2 4 --methods euler midpoint --max-loss 0.01
    python tools/dial.py --config-file configs/quickstart.yaml --weights model.pth --flow res4 --budget-ms 20

Writes dial.json, dial.png and what it knows already (evaluations.json) into the output folder; for a budget also
config.yaml, to be run by tools/train_net.py --eval-only. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ode_detect.engine.launch import WEIGHTS_HELP, WHOLE_NUMBERS, parse_anywhere, run_tool


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; flags may stand anywhere among KEY VALUE pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the config of the network")
    parser.add_argument("--weights", default="", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument("--steps", nargs="+", default=["1", "2", "4", "8"], metavar="N", help="(1 2 4 8)")
    parser.add_argument(
        "--methods", nargs="+", default=["euler", "midpoint", "heun", "rk4"], metavar="NAME", help="(all of ours)"
    )
    parser.add_argument("--flow", nargs="+", metavar="NAME", help="turn only these flows, such as res4 (all)")
    parser.add_argument("--output", metavar="DIR", help="where to write (OUTPUT_DIR/dial)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--budget-ms", type=float, metavar="X", help="pick the best within X ms for one picture")
    budget.add_argument("--max-loss", type=float, metavar="X", help="pick the fastest that loses at most X, like 0.01")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    lists = {"steps": WHOLE_NUMBERS, "methods": "names", "flow": "names"}
    return parse_anywhere(parser, arguments, lists=lists)


def main(arguments: list[str]) -> None:
    """Parse, sweep, choose, report."""
    from ode_detect.engine.config import load_config
    from ode_detect.engine.lock import visible
    from ode_detect.report.tables import to_text
    from ode_detect.studies.dial.budget import Budget, turn
    from ode_detect.studies.dial.dial import Dial

    args = parse(arguments)
    wanted = args.budget_ms is not None or args.max_loss is not None
    budget = Budget(milliseconds=args.budget_ms, loss=args.max_loss) if wanted else None
    cfg = load_config(args.config_file, args.overrides)
    dial = Dial(
        cfg,
        command=shlex.join(["python", "tools/dial.py", *arguments]),
        config_file=args.config_file,
        weights=args.weights,
        folder=Path(args.output or Path(cfg.OUTPUT_DIR) / "dial"),
    )
    try:
        results, choice = turn(dial, steps=args.steps, methods=args.methods, flows=args.flow, budget=budget)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on from what is in {dial.folder}.") from None
    print(f"\n{to_text(results)}\n")
    if choice:
        print(f"{choice.claim}\nto use it: python tools/train_net.py --eval-only --config-file {choice.path}")
    print(f"all of it is in {dial.folder}/: {', '.join(visible(dial.folder))}")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

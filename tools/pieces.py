#!/usr/bin/env python
"""Fewer pieces for a trained network, by projection and distillation; or a network grown by splitting its pieces.

Examples:
    python tools/pieces.py --config-file configs/classification/cifar10_resnet56_ode.yaml --project 4 2 1 --distil 300
    python tools/pieces.py --config-file configs/classification/cifar10_resnet56_grown.yaml \
        --grow 1 2 4 8 --iterations 400 300 300 200

--project writes pieces.json, pieces.png, and for each network its weights and a config. --grow writes growth.json and a
run folder for each number of pieces. The same command goes on where it was stopped.
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
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--project", nargs="+", metavar="K", help="pieces of each flow after a projection")
    wanted.add_argument("--grow", nargs="+", metavar="K", help="pieces of each flow in each stage of a training")
    parser.add_argument("--weights", default="", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument("--distil", type=int, default=0, metavar="N", help="iterations after each projection (0)")
    parser.add_argument("--iterations", nargs="+", default=[], metavar="N", help="of each stage of --grow")
    parser.add_argument("--output", metavar="DIR", help="where to write (OUTPUT_DIR/pieces)")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    lists = dict.fromkeys(("project", "grow", "iterations"), WHOLE_NUMBERS)
    args = parse_anywhere(parser, arguments, lists=lists)
    for name in lists:
        setattr(args, name, tuple(getattr(args, name) or ()))
    if args.grow and (args.weights or args.distil):
        parser.error("--weights and --distil belong to --project; a network is grown from MODEL.WEIGHTS, or from none")
    if args.project and args.iterations:
        parser.error("--iterations are those of --grow; --distil N says how long to distil")
    return args


def main(arguments: list[str]) -> None:
    """Parse, project or grow, report."""
    from ode_detect.engine.config import load_config
    from ode_detect.engine.lock import visible
    from ode_detect.report.tables import to_text
    from ode_detect.studies.pieces.grow import Growth, grow
    from ode_detect.studies.pieces.project import Projection, project

    args = parse(arguments)
    cfg = load_config(args.config_file, args.overrides)
    folder = Path(args.output or Path(cfg.OUTPUT_DIR) / "pieces")
    command = shlex.join(["python", "tools/pieces.py", *arguments])
    try:
        if args.project:
            wanted = Projection(counts=args.project, iterations=args.distil)
            results = project(
                cfg, wanted, command=command, config_file=args.config_file, weights=args.weights, folder=folder
            )
        else:
            results = grow(
                args.config_file,
                args.overrides,
                Growth(counts=args.grow, iterations=args.iterations),
                tool=(sys.executable, str(Path(__file__).with_name("train_net.py"))),
                command=command,
                folder=folder,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on from what is in {folder}.") from None
    print(f"\n{to_text(results)}\n\nall of it is in {folder}/: {', '.join(visible(folder))}")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

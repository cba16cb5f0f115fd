#!/usr/bin/env python
"""Certify the flows of a network: are their gradients right in every mode, and are they flows or tied to their steps?

The exit code is 1 where a gradient is not what its mode promises.

Examples:
    python tools/certify.py --config-file configs/quickstart.yaml
    python tools/certify.py --config-file configs/quickstart.yaml --random 224 MODEL.ODE.METHOD midpoint
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ode_detect.engine.launch import WEIGHTS_HELP, parse_anywhere, run_tool


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; flags may stand anywhere among KEY VALUE pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a yaml file, such as configs/quickstart.yaml"
    )
    parser.add_argument("--weights", default="", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument("--random", type=int, metavar="SIZE", help="a random picture of this size; needs no data set")
    parser.add_argument("--output", metavar="DIR", help="where certificate.json goes; OUTPUT_DIR/certificate otherwise")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    return parse_anywhere(parser, arguments)


def main(arguments: list[str]) -> None:
    """Parse, build, certify, report."""
    from ode_detect.engine.config import load_config
    from ode_detect.engine.run import Run
    from ode_detect.engine.tasks import get_task
    from ode_detect.studies.certify import certify_run

    args = parse(arguments)
    cfg = load_config(args.config_file, args.overrides)
    folder = Path(args.output or Path(cfg.OUTPUT_DIR) / "certificate")
    command = shlex.join(["python", "tools/certify.py", *arguments])
    run = Run(cfg, get_task(cfg), folder, command, args.config_file)
    report = certify_run(run, weights=args.weights, size=args.random)
    print(f"{report}\n\nall of it is in {folder / 'certificate.json'}")
    if not report.right:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

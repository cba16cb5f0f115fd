#!/usr/bin/env python
"""Export the backbone of a detector as an ONNX file or a program of torch.export, and compare the file with it.

Examples:
    python tools/export.py --config-file configs/quickstart.yaml --output output/export
    python tools/export.py --config-file configs/quickstart.yaml --output output/export --size 224 320 --format torch
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
    parser.add_argument("--output", required=True, metavar="DIR", help="where the file goes")
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("H", "W"), help="of the pictures")
    parser.add_argument("--format", default="onnx", help="onnx (compared by onnxruntime) or torch")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    return parse_anywhere(parser, arguments)


def main(arguments: list[str]) -> None:
    """Parse, build, export, report."""
    from ode_detect.deploy.export import export_backbone
    from ode_detect.engine.config import load_config
    from ode_detect.engine.run import Run
    from ode_detect.engine.tasks import get_task

    args = parse(arguments)
    cfg = load_config(args.config_file, args.overrides)
    command = shlex.join(["python", "tools/export.py", *arguments])
    run = Run(cfg, get_task(cfg), Path(args.output), command, args.config_file)
    print(export_backbone(run, weights=args.weights, size=tuple(args.size), format=args.format))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

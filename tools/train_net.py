#!/usr/bin/env python
"""Train, resume or evaluate a network of any task.

Examples:
    python tools/train_net.py --config-file configs/quickstart.yaml
    python tools/train_net.py --config-file configs/quickstart.yaml --resume
    python tools/train_net.py --config-file configs/quickstart.yaml --eval-only MODEL.ODE.STEPS 8
"""

from __future__ import annotations

import argparse
import shlex
import sys

from ode_detect.engine.launch import run_tool


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; flags may stand anywhere among KEY VALUE pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a yaml file, such as configs/quickstart.yaml"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR, if there is one")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or the run in OUTPUT_DIR")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> None:
    """Parse, build, run, report."""
    from ode_detect.engine.config import load_config
    from ode_detect.engine.run import evaluate_only, open_run, train
    from ode_detect.engine.trainer import Interrupted
    from ode_detect.report.results import to_text

    args = parse(arguments)
    cfg = load_config(args.config_file, args.overrides)
    run = open_run(
        cfg,
        command=shlex.join(["python", "tools/train_net.py", *arguments]),
        config_file=args.config_file,
        resume=args.resume,
        evaluating=args.eval_only,
    )
    try:
        results = evaluate_only(run) if args.eval_only else train(run, resume=args.resume)
    except KeyboardInterrupt as stop:
        if args.eval_only or isinstance(stop, Interrupted):
            raise
        raise KeyboardInterrupt("stopped at once; --resume goes on from the last checkpoint.") from None
    print(f"\n{to_text(results)}\n")
    print(f"all of it is in {run.folder}/: {', '.join(sorted(p.name for p in run.folder.iterdir()))}")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

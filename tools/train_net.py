#!/usr/bin/env python
r"""Train, resume or evaluate a network of any task.

Examples:
    python tools/train_net.py --config-file configs/quickstart.yaml
    python tools/train_net.py --config-file configs/quickstart.yaml --resume
    python tools/train_net.py --config-file configs/quickstart.yaml --eval-only MODEL.ODE.STEPS 8

Several processes, on GPUs, on CPUs, and on two machines (the second with --machine-rank 1):
    python tools/train_net.py --config-file configs/quickstart.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/quickstart.yaml --num-processes 2 MODEL.DEVICE cpu
    python tools/train_net.py --config-file configs/quickstart.yaml --num-gpus 8 \
        --num-machines 2 --machine-rank 0 --dist-url tcp://machine0:29500
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/quickstart.yaml
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from ode_detect.engine.launch import parse_anywhere, run_tool

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; flags may stand anywhere among KEY VALUE pairs."""
    from ode_detect.engine.processes import add_process_flags

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a yaml file, such as configs/quickstart.yaml"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR, if there is one")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or the run in OUTPUT_DIR")
    add_process_flags(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    return parse_anywhere(parser, arguments)


def main(arguments: list[str]) -> None:
    """Parse, start the other processes if there are any, and work."""
    from ode_detect.engine import distributed, processes
    from ode_detect.engine.config import load_config
    from ode_detect.engine.scaling import check_batch

    args = parse(arguments)
    cfg = load_config(args.config_file, args.overrides)
    plan = processes.layout(args, cfg.MODEL.DEVICE)
    if distributed.started_by_torchrun():
        processes.join(plan, cfg.MODEL.DEVICE)
    elif plan.world > 1:
        check_batch(cfg, plan.world)
        processes.start(main, arguments, plan, cfg.MODEL.DEVICE)
        return
    work(args, cfg, processes.command_line("tools/train_net.py", shlex.join(arguments)))
    distributed.leave()


def work(args: argparse.Namespace, cfg: CfgNode, command: str) -> None:
    """Build, run, report; in one process of one or many."""
    from detectron2.utils import comm

    from ode_detect.engine.hooks import Interrupted
    from ode_detect.engine.lock import visible
    from ode_detect.engine.run import open_evaluation, open_training
    from ode_detect.engine.train import evaluate_only, train
    from ode_detect.report.tables import to_text

    if args.eval_only:
        run = open_evaluation(cfg, command=command, config_file=args.config_file)
    else:
        run = open_training(cfg, command=command, config_file=args.config_file, resume=args.resume)
    try:
        results = evaluate_only(run) if args.eval_only else train(run, resume=args.resume)
    except KeyboardInterrupt as stop:
        if args.eval_only or isinstance(stop, Interrupted):
            raise
        raise KeyboardInterrupt("stopped at once; --resume goes on from the last checkpoint.") from None
    if not comm.is_main_process():
        return
    print(f"\n{to_text(results)}\n")
    print(f"all of it is in {run.folder}/: {', '.join(visible(run.folder))}")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

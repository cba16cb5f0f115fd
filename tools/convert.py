#!/usr/bin/env python
"""Convert the weights of a ResNet into an ODE checkpoint with a certificate that nothing was lost, or back.

Weights are read without running code from the file. The number of classes is read from the last layer.

Examples:
    python tools/convert.py --weights resnet50.pth --model torchvision:resnet50 --output output/ode_resnet50
    python tools/convert.py --weights model.safetensors --model timm:resnet26d --output output/ode_resnet26d
    python tools/convert.py --weights resnet56.th --model cifar:resnet56 --output output/ode_resnet56
    python tools/convert.py --weights R-101.pkl --config-file configs/faster_rcnn_ode.yaml --output output/ode_r101
    python tools/convert.py --reverse --weights output/ode_resnet50/ode_model.pth --output output/resnet50
"""

from __future__ import annotations

import argparse
import sys

from ode_detect.engine.launch import parse_anywhere, run_tool


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; flags may stand anywhere among KEY VALUE pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="weights, or with --reverse an ODE checkpoint")
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--model", metavar="LIBRARY:NAME", help="what they are of: torchvision, timm or cifar")
    network.add_argument("--config-file", metavar="FILE", help="or the config of the ODE network, for Detectron2's")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--reverse", action="store_true", help="from an ODE checkpoint to the original names")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    args = parse_anywhere(parser, arguments)
    if args.reverse and args.model:
        parser.error("an ODE checkpoint of --model says itself what it is of; leave --model out with --reverse")
    if not (args.reverse or args.model or args.config_file):
        parser.error("say what the weights are of: --model LIBRARY:NAME or --config-file FILE")
    if args.overrides and not args.config_file:
        parser.error(f"{args.overrides[0]!r} belongs to a config, and there is no --config-file")
    return args


def main(arguments: list[str]) -> None:
    """Parse, build, run, report."""
    from ode_detect.deploy import convert
    from ode_detect.engine.config import load_config

    args = parse(arguments)
    cfg = load_config(args.config_file, args.overrides) if args.config_file else None
    if args.reverse:
        file = (
            convert.restore_weights(args.weights, args.output)
            if cfg is None
            else convert.restore_for_config(args.weights, cfg, args.output)
        )
        print(f"the discrete network's weights are in {file}")
        return
    certificate = (
        convert.convert_weights(args.weights, args.model, args.output)
        if cfg is None
        else convert.convert_for_config(args.weights, cfg, args.output)
    )
    print(f"{certificate}\n\nall of it is in {args.output}/: certificate.json, certificate.txt, ode_model.pth")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

#!/usr/bin/env python
r"""Predict on pictures and videos with a network of any task; draw what it found and write it as COCO JSON.

Examples:
    python tools/predict.py --config-file configs/quickstart.yaml --input photos/ clip.mp4 --output output/found
    python tools/predict.py --config-file configs/quickstart.yaml --weights model.pth --input 'photos/**/*.jpg' \
        --output output/found --batch 4 --score-threshold 0.3 MODEL.ODE.STEPS 2

DIR gets
    predictions.json  {images, annotations, categories, videos, failed}: each annotation has image_id, file_name (from
                      the folder that all inputs share), category_id (of the data set), category_name,
                      bbox [x, y, width, height] in pixels, score, area, and segmentation (run lengths) if there are
                      masks. COCO.loadRes of pycocotools takes "annotations"; the whole file is a data set itself.
                      Of a classifier: category_id, category_name and score of the most likely classes, and distance and
                      unfamiliar, whether the picture is unlike the training pictures.
    drawn/            each picture and video with what was found, in the file that "drawn" names; small pictures are
                      enlarged
    frames/           for each video a line of JSON a frame: frame (from 0), time in seconds, annotations

Folders are searched with their subfolders, without what this tool has drawn. A command that was stopped goes on with
the rest when it is given again; one that was finished is done again.

Exit code: 0 all done; 1 some inputs could not be read, or not to their end, and the rest is done; 2 a mistake, such as
nothing to predict on; 130 stopped.
"""

from __future__ import annotations

import argparse
import re
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
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="pictures, videos, folders, globs in quotes"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where everything is written")
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help="pictures of one size at a time (1)")
    parser.add_argument(
        "--score-threshold",
        type=_share,
        metavar="T",
        help="of a detector, leave out what scores less (TEST.SCORE_THRESHOLD)",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    args = parse_anywhere(parser, arguments)
    # --input takes all that follows it; a config key is no path.
    keys = [i for i, word in enumerate(args.input) if re.fullmatch(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+", word)]
    for first in keys[:1]:
        if not Path(args.input[first]).exists():
            args.input, args.overrides = args.input[:first], [*args.overrides, *args.input[first:]]
    return args


def main(arguments: list[str]) -> None:
    """Parse, build, predict, report."""
    from ode_detect.deploy.predict import predict
    from ode_detect.engine.config import load_config
    from ode_detect.engine.run import Run
    from ode_detect.engine.tasks import get_task

    args = parse(arguments)
    threshold = [] if args.score_threshold is None else ["TEST.SCORE_THRESHOLD", str(args.score_threshold)]
    cfg = load_config(args.config_file, [*args.overrides, *threshold])
    command = shlex.join(["python", "tools/predict.py", *arguments])
    run = Run(cfg, get_task(cfg), Path(args.output), command, args.config_file)
    summary = predict(run, args.input, weights=args.weights, batch=args.batch)
    print(summary)
    if summary.failed:
        raise SystemExit(1)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it must be 1 or more, not {number}.")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"a score lies in [0, 1], and this is {number}.")
    return number


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

#!/usr/bin/env python
"""Check data sets before training: counts, classes, box sizes and anchors, and whatever is wrong.

Examples:
    python tools/check_dataset.py --config-file configs/quickstart.yaml
    python tools/check_dataset.py --config-file my.yaml --draw 12 --fix datasets/repaired
    python tools/check_dataset.py --images photos --annotations train.json
    python tools/check_dataset.py --images JPEGImages --annotations Annotations --split ImageSets/Main/test.txt

Every picture is decoded. DIR of --output gets check.json, and for each data set NAME.png (classes, sizes and shapes as
the network sees them, with the anchors of the config; for a set that is trained and tested on, NAME_test.png too) and
with --draw NAME_samples.jpg. --fix writes repaired annotations as COCO JSON,
changes.txt, which lists every change, and custom.yaml, the lines that use them in a config; originals are not touched.

Exit code: 0 nothing is wrong; 1 something is, repaired or not; 2 a mistake on the command line; 130 stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ode_detect.engine.launch import parse_anywhere, run_tool

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ode_detect.detection.data.check import Checked
    from ode_detect.media.errors import Problem


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; flags may stand anywhere among KEY VALUE pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="FILE", help="check DATASETS.TRAIN and DATASETS.TEST of a detector")
    parser.add_argument("--images", metavar="DIR", help="without a config: folder of the pictures")
    parser.add_argument("--annotations", metavar="PATH", help="COCO JSON, or a folder of VOC XML")
    parser.add_argument("--split", metavar="FILE", help="with VOC XML: a file with one id per line")
    parser.add_argument("--output", default="output/check", metavar="DIR", help="report and plots (output/check)")
    parser.add_argument("--fix", metavar="DIR", help="write a repaired copy of the annotations")
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="draw N annotated pictures of each data set")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys that win over the file")
    args = parse_anywhere(parser, arguments)
    if bool(args.config_file) == bool(args.images or args.annotations or args.split):
        parser.error("give either --config-file, or --images and --annotations")
    if not args.config_file and not (args.images and args.annotations):
        parser.error("--images and --annotations belong together")
    if args.overrides and not args.config_file:
        parser.error(f"config keys ({args.overrides[0]}) need --config-file")
    if args.draw < 0:
        parser.error("--draw takes a number of pictures")
    return args


def main(arguments: list[str]) -> None:
    """Parse, check, report, repair."""
    from ode_detect.detection.data.check import check, class_problems, overlaps, unused
    from ode_detect.detection.data.summary import describe, problems_of_sizes, stops, write_report
    from ode_detect.detection.model import head_name
    from ode_detect.media.errors import DatasetError, Problem
    from ode_detect.media.places import refuse_as_path

    args = parse(arguments)
    cfg, sources, train, test = _sources(args)
    for source in sources:
        refuse_as_path(source.name)
    checked: list[Checked] = []
    wrong: list[Problem] = []
    for source in sources:
        try:
            checked.append(check(source, progress=_progress(source.name)))
        except DatasetError as error:
            wrong.append(Problem("data sets that cannot be checked", (str(error),)))
            print(f"{source.name}\n  wrong: {error}\n")
            continue
        print(f"\n{describe(checked[-1], cfg, train, test)}")
    between = overlaps(checked, train, test)
    if cfg is not None:
        between += class_problems(checked, cfg.MODEL[head_name(cfg)].NUM_CLASSES)
        between += problems_of_sizes(cfg, checked, train, test)
    wrong += between + [problem for one in checked for problem in one.problems]
    notes = unused(checked)
    for word, problems in (("wrong", between), ("note", notes)):
        for problem in problems:
            print(f"{word}: {problem}{stops(problem) if word == 'wrong' else ''}")
    output = Path(args.output)
    _refuse_overwriting(args, checked)
    write_report(output, cfg, (train, test), checked, between, notes, draw=args.draw)
    if args.fix and checked:
        _fix(Path(args.fix), checked, train, test)
    print(f"{f'kinds of mistakes found: {len(wrong)}' if wrong else 'nothing is wrong'}; report in {output}")
    if wrong:
        raise SystemExit(1)


def _sources(args: argparse.Namespace) -> tuple[CfgNode | None, list[Any], list[str], list[str]]:
    """The config if there is one, the data sets, and the names of those for training and for test."""
    from ode_detect.detection.data.custom import Source, source_of
    from ode_detect.engine.config import load_config
    from ode_detect.engine.tasks import get_task
    from ode_detect.media.errors import DatasetError
    from ode_detect.media.names import printable
    from ode_detect.task import ConfigError

    if args.config_file:
        cfg = load_config(args.config_file, args.overrides)
        task = get_task(cfg)
        if task.name != "detection":
            raise ConfigError(
                f"boxes are checked here, and TASK of {args.config_file} is {task.name}. tools/train_net.py checks its "
                "data before it trains."
            )
        train, test = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
        names = list(dict.fromkeys([*train, *test]))
        task.require(names)
        return cfg, [source_of(name) for name in names], train, test
    split = Path(args.split) if args.split else None
    annotations = Path(args.annotations)
    name = (split or annotations).stem if (split or annotations.is_file()) else annotations.resolve().name
    source = Source(printable(name), Path(args.images), annotations, split)
    missing = [str(path) for path in source.files() if not path.exists()]
    if missing or not source.images.is_dir():
        raise DatasetError(f"there is no {', '.join(missing) or f'folder {source.images}'}; give the right path.")
    return None, [source], [], []


def _refuse_overwriting(args: argparse.Namespace, checked: list[Checked]) -> None:
    """No report and no repaired copy takes the place of a file that was read, such as a picture of that name."""
    from ode_detect.media import first_overwritten
    from ode_detect.media.errors import DatasetError

    targets = [Path(args.output) / "check.json"]
    read = [Path(args.config_file)] if args.config_file else []
    for one in checked:
        name = one.source.name
        targets += [Path(args.output) / f"{name}{suffix}" for suffix in (".png", "_test.png", "_samples.jpg")]
        read += [*one.source.files(), *(one.source.images / image["file_name"] for image in one.content["images"])]
        if args.fix:
            targets += [Path(args.fix) / file for file in (f"{name}_fixed.json", "changes.txt", "custom.yaml")]
            # Copies that are upright may be written there.
            targets += [Path(args.fix) / "pictures" / f"{name}_{image['id']}.png" for image in one.content["images"]]
    if clash := first_overwritten(targets, read):
        raise DatasetError(
            f"{clash[0]} would be written, and is what is checked ({clash[1]}). Give another --output or --fix."
        )


def _fix(folder: Path, checked: list[Checked], train: list[str], test: list[str]) -> None:
    """Write repaired copies and say how to use them."""
    from ode_detect.detection.data.check import overlaps
    from ode_detect.detection.data.repaired import snippet, write_repaired
    from ode_detect.media.files import write_text
    from ode_detect.media.names import printable

    copies, lines = [], []
    tested = frozenset(f.digest for one in checked if one.source.name in test for f in one.files.values()) - {""}
    for one in checked:
        mine = one.source.name in train and one.source.name not in test
        shared = overlaps(checked, [one.source.name], test) if mine else []
        copy = write_repaired(one, folder, overlaps=shared, test=tested if mine else frozenset())
        copies.append(copy)
        lines += [f"{copy.annotations}: {copy.lost} pictures left out"]
        lines += [f"  {change}" for change in copy.changes or ("nothing to change",)]
    write_text(folder / "changes.txt", "\n".join(map(printable, lines)) + "\n")
    text = snippet(copies, train, test)
    write_text(folder / "custom.yaml", text)
    print(
        f"\nrepaired copies in {folder}; changes.txt lists every change. In the config (also in custom.yaml):\n\n{text}"
    )


def _progress(name: str) -> Any:
    def show(done: int) -> None:
        if sys.stderr.isatty() and done % 50 == 0:
            print(f"\r{name}: {done} pictures", end="\r", file=sys.stderr)

    return show


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))

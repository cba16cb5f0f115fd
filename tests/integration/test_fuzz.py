"""Files that somebody spoilt: each is read, or refused by an error of ours; none hangs, or takes all memory.

The examples are the same in each run. ``ODE_DETECT_FUZZ=2000`` tries so many of each kind, drawn anew.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import pickle
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ode_detect.detection.data.annotations import to_records
from ode_detect.detection.data.check import check
from ode_detect.detection.data.custom import Source
from ode_detect.detection.data.repaired import write_repaired
from ode_detect.detection.matching import complete
from ode_detect.engine.config import load_config
from ode_detect.engine.weights import CheckpointError, read_weights
from ode_detect.media.errors import DatasetError
from ode_detect.media.images import read_image, read_size
from ode_detect.media.names import one_line
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART

EXAMPLES = int(os.environ.get("ODE_DETECT_FUZZ", "0"))
# More than the small files here can need.
GIBIBYTES = 2

pytestmark = pytest.mark.timeout(300 + EXAMPLES, method="thread")
fuzzed = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=10_000,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, *([Phase.shrink] if EXAMPLES else [])],
)


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    """Little more memory than the process has already: who asks for more gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        wanted = pages * resource.getpagesize() + GIBIBYTES * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (wanted, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, and room for a file beside them."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "images").mkdir()
    for number in (1, 2):
        Image.new("RGB", (40, 30), (90, 120 * (number - 1), 30)).save(folder / "images" / f"{number}.png")
    return folder


def annotation(number: int) -> dict[str, Any]:
    box = [4.0 + number, 5.0, 12.0, 10.0]
    x, y, width, height = box
    outline = [x, y, x + width, y, x + width, y + height, x, y + height]
    runs: Any = {"size": [30, 40], "counts": [100, 20, 10, 20, 30 * 40 - 150]}
    return {
        "id": number,
        "image_id": 1 + number % 2,
        "category_id": 1 + number % 2,
        "bbox": box,
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [outline] if number % 3 else runs,
        "keypoints": [8, 9, 2, 10, 11, 1],
        "num_keypoints": 2,
    }


COCO_JSON: dict[str, Any] = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)],
    "annotations": [annotation(number) for number in range(1, 6)],
    "categories": [{"id": i, "name": name, "keypoints": ["a", "b"]} for i, name in ((1, "cat"), (2, "dog"))],
}
VOC_XML = (
    '<?xml version="1.0" encoding="utf-8"?><annotation><filename>1.png</filename><size><width>40</width>'
    "<height>30</height><depth>3</depth></size><object><name>cat</name><pose>x</pose><truncated>0</truncated>"
    "<difficult>0</difficult><bndbox><xmin>4</xmin><ymin>5</ymin><xmax>16</xmax><ymax>15</ymax></bndbox></object>"
    "</annotation>"
)

numbers = st.one_of(
    st.integers(-5, 50),
    st.floats(),
    st.sampled_from([10**18, 10**20, 10**400, -(10**400), 2**31, 2**63, 1e308, 1e-320]),
)
words = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "1", "1.0", "nan", "../x.png", "a\\b.png", "x" * 300, "\ud800", "$\\frac{$", "\n", "1.png"]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inside: st.one_of(st.lists(inside, max_size=8), st.dictionaries(words, inside, max_size=3)),
    max_leaves=8,
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """All places of a nested value, as container and key."""
    items: Any = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in items:
        found.append((content, key))
        found += places(value) if isinstance(value, (dict, list)) else []
    return found


@st.composite
def spoilt(draw: st.DrawFn, content: Any) -> Any:
    """A nested value with other values in a few places, or without them."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        where, key = draw(st.sampled_from(places(content) or [([None], 0)]))
        match draw(st.sampled_from(["set", "set", "set", "delete", "repeat"])):
            case "set":
                where[key] = draw(values)
            case "delete":
                del where[key]
            case "repeat" if isinstance(where, list):
                where.append(copy.deepcopy(where[key]))
    return content


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some changed, some taken out, or the end cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["set", "set", "insert", "delete", "cut"])):
            case "set":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=8)) * draw(st.sampled_from([1, 1, 1000]))
            case "delete":
                del data[place : place + draw(st.integers(1, 16))]
            case "cut":
                del data[place:]
    return bytes(data)


def read_as_tools_do(source: Source) -> None:
    """Read, evaluate, check and repair a data set."""
    with contextlib.suppress(DatasetError):
        content, _ = source.read()
        evaluated(content)
        for record in to_records(content, source.images):
            for one in record["annotations"]:
                if isinstance(one.get("segmentation"), dict):
                    pycocotools.mask.decode(one["segmentation"])
    with contextlib.suppress(DatasetError):
        checked = check(source)
        checked.boxes()
        write_repaired(checked, source.images.parent / "fixed")
        fixed = Source("fixed", source.images, source.images.parent / "fixed" / f"{source.name}_fixed.json")
        with contextlib.suppress(DatasetError):  # nothing may be left
            again, _ = fixed.read()
            evaluated(again)


def evaluated(content: dict[str, Any]) -> None:
    """Find every object where it is: pycocotools reads all boxes, areas and masks."""
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        complete(truth)
        boxes = [{**a, "score": 0.9, "segmentation": []} for a in content["annotations"]]
        masks = [a for a in content["annotations"] if a.get("segmentation")]
        runs = [
            {k: a[k] for k in ("id", "image_id", "category_id")} | {"segmentation": truth.annToRLE(a)} for a in masks
        ]
        for kind, found in (("bbox", boxes), ("segm", [{**a, "score": 0.9} for a in runs])):
            if found:
                evaluation = COCOeval(truth, truth.loadRes(found), kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()


@fuzzed
@given(content=spoilt(COCO_JSON))
def test_coco_content(folder: Path, content: dict[str, Any]) -> None:
    # Surrogates are written as JSON's escapes.
    (folder / "a.json").write_text(json.dumps(content))
    read_as_tools_do(Source("a", folder / "images", folder / "a.json"))


@fuzzed
@given(data=spoilt_bytes(json.dumps(COCO_JSON).encode()))
def test_coco_bytes(folder: Path, data: bytes) -> None:
    (folder / "b.json").write_bytes(data)
    read_as_tools_do(Source("b", folder / "images", folder / "b.json"))


@fuzzed
@given(data=st.sampled_from(["utf-8", "utf-16", "latin-1"]).flatmap(lambda e: spoilt_bytes(VOC_XML.encode(e))))
def test_voc_bytes(folder: Path, data: bytes) -> None:
    (folder / "xml").mkdir(exist_ok=True)
    (folder / "xml" / "1.xml").write_bytes(data)
    read_as_tools_do(Source("xml", folder / "images", folder / "xml"))


@fuzzed
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from(["set", "set", "delete", "repeat"]), words | numbers)
    )
)
def test_voc_content(folder: Path, changes: list[tuple[int, str, Any]]) -> None:
    root = ElementTree.fromstring(VOC_XML)
    for place, way, value in changes:
        every = [(parent, child) for parent in root.iter() for child in parent]
        parent, child = every[place % len(every)] if every else (root, root)
        if way == "set":
            child.text = one_line(str(value)) if isinstance(value, str) else format(value)
        elif way == "delete" and child is not root:
            parent.remove(child)
        elif child is not root:
            parent.append(copy.deepcopy(child))
    (folder / "voc").mkdir(exist_ok=True)
    (folder / "voc" / "1.xml").write_bytes(ElementTree.tostring(root))
    read_as_tools_do(Source("voc", folder / "images", folder / "voc"))


CONFIG: dict[str, Any] = {
    "_BASE_": str(QUICKSTART),
    "MODEL": {"ODE": {"STEPS": 2, "METHOD": "euler", "FLOWS": [{"FLOW": "res4", "STEPS": 2}]}, "DEVICE": "cpu"},
    "SOLVER": {"MAX_ITER": 3, "BASE_LR": 0.1, "STEPS": [1, 2], "IMS_PER_BATCH": 2},
    "DATASETS": {"CUSTOM": [{"NAME": "a", "IMAGES": "x", "ANNOTATIONS": "y"}], "TRAIN": ["a"]},
    "INPUT": {"MIN_SIZE_TRAIN": [64], "CROP": {"SIZE": [48, 48]}},
    "SEED": 1,
}


@fuzzed
@given(content=spoilt(CONFIG))
def test_config_content(folder: Path, content: dict[str, Any]) -> None:
    # JSON is yaml, but for what is nested otherwise.
    (folder / "c.yaml").write_text(json.dumps(content))
    with contextlib.suppress(ConfigError):
        load_config(folder / "c.yaml")


@fuzzed
@given(data=spoilt_bytes(QUICKSTART.read_bytes()))
def test_config_bytes(folder: Path, data: bytes) -> None:
    (folder / "d.yaml").write_bytes(data)
    with contextlib.suppress(ConfigError):
        load_config(folder / "d.yaml")


@fuzzed
@given(words=st.lists(st.one_of(st.sampled_from(["SEED", "SOLVER.MAX_ITER", "MODEL.ODE.STEPS", "TASK"]), words)))
def test_overrides(words: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        load_config(QUICKSTART, words)


@functools.cache
def picture(kind: str) -> bytes:
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(out, format=kind)
    return out.getvalue()


KINDS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"]


@pytest.mark.parametrize("kind", KINDS)
@fuzzed
@given(data=st.data())
def test_picture_bytes(folder: Path, kind: str, data: st.DataObject) -> None:
    # Each with the suffix of a PNG, since the suffix decides nothing.
    file = folder / "p.png"
    file.write_bytes(data.draw(spoilt_bytes(picture(kind))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd tags
        with contextlib.suppress(DatasetError):
            read_size(file)
        with contextlib.suppress(DatasetError):
            assert read_image(file, "RGB").shape[2] == 3


@functools.cache
def weights(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "pkl":
        arrays = {"conv1.weight": np.ones((4, 3, 3, 3), np.float32), "conv1.bias": np.zeros(4)}
        pickle.dump({"model": arrays, "__author__": "x", "matching_heuristics": True}, out)
    else:
        torch.save({"model": {"conv1.weight": torch.ones(4, 3)}}, out, _use_new_zipfile_serialization=kind == "pth")
    return out.getvalue()


@pytest.mark.parametrize("kind", ["pkl", "pth", "old.pth"])
@fuzzed
@given(data=st.data())
def test_weights_bytes(folder: Path, kind: str, data: st.DataObject) -> None:
    file = folder / f"w.{kind}"
    file.write_bytes(data.draw(spoilt_bytes(weights(kind))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(CheckpointError):
            read_weights(file)

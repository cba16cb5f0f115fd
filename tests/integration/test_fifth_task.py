"""A task that the package does not know: registered by one call, trained, evaluated, used and compared as any other."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn

from ode_detect.deploy.predict import predict
from ode_detect.engine.config import load_config
from ode_detect.engine.run import open_evaluation, open_training
from ode_detect.engine.tasks import TASKS, register_task
from ode_detect.engine.train import evaluate_only, train
from ode_detect.media.errors import DatasetError
from ode_detect.report.examples import Drawn, Examples
from ode_detect.report.metrics import Quantity
from ode_detect.report.results import Results
from ode_detect.studies.compare import figures, measure
from ode_detect.studies.compare.compare import Request, compare
from ode_detect.task import Example, Predictor, Task

CONFIG = """
TASK: brightness
MODEL:
  META_ARCHITECTURE: BrightnessNet
  BACKBONE: {NAME: build_odenet_backbone}
  ODE_NET: {CHANNELS: [4], BLOCKS: [2], NORM: GN}
  ODE: {ROLE: %s, NORM: GN, PROJECTION: none, STEPS: 2, PIECES: constant}
  BRIGHTNESS: {SCALE: 0.5}
  PIXEL_MEAN: [128.0, 128.0, 128.0]
  PIXEL_STD: [64.0, 64.0, 64.0]
  DEVICE: cpu
DATASETS: {TRAIN: [bright_train], TEST: [bright_test]}
DATALOADER: {NUM_WORKERS: 0, ASPECT_RATIO_GROUPING: false}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 3, WARMUP_ITERS: 0, STEPS: [], CHECKPOINT_PERIOD: 100}
TEST: {EVAL_PERIOD: 2}
SEED: 0
OUTPUT_DIR: %s
VERSION: 2
"""


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 20 + 25 * index, (16, 16, 3), dtype=np.uint8)


def example(image: np.ndarray) -> Example:
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    return {"image": tensor, "height": 16, "width": 16, "value": float(image.mean()) / 255}


class BrightnessNet(nn.Module):
    """The brightness of a picture in [0, 1], by a backbone and a linear layer."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.last = nn.Linear(4, 1)
        self.scale = cfg.MODEL.BRIGHTNESS.SCALE

    @property
    def device(self) -> torch.device:
        return self.last.weight.device

    def forward(self, batch: list[Example]) -> Any:
        images = (torch.stack([one["image"] for one in batch]).float() - 128) / 64
        values = self.scale * self.last(self.backbone(images)["s1"].mean((2, 3)))[:, 0]
        if self.training:
            return {"loss_value": (values - torch.tensor([one["value"] for one in batch])).square().mean()}
        return [{"value": value} for value in values]


class BrightnessEvaluator(DatasetEvaluator):
    def reset(self) -> None:
        self.errors: list[float] = []

    def process(self, inputs: list[Example], outputs: list[Any]) -> None:
        pairs = zip(inputs, outputs, strict=True)
        self.errors += [abs(float(output["value"]) - one["value"]) for one, output in pairs]

    def evaluate(self) -> dict[str, Any]:
        return {"brightness": {"MAE": float(np.mean(self.errors))}}


class BrightnessPredictor(Predictor):
    def example(self, image: np.ndarray) -> Example:
        return example(image)

    def records(self, output: Any) -> list[dict[str, Any]]:
        return [{"value": round(float(output["value"]), 4)}]

    def draw(self, image: np.ndarray, output: Any) -> np.ndarray:
        return image


class Brightness(Task):
    name = "brightness"
    metric = "brightness/MAE"
    quantities = (Quantity("MAE", better="less"),)
    plotted = ("brightness/MAE",)

    def add_config(self, cfg: CfgNode) -> None:
        cfg.MODEL.BRIGHTNESS = CfgNode({"SCALE": 1.0})

    def register(self, cfg: CfgNode) -> None:
        pass

    def require(self, names: list[str]) -> None:
        if unknown := set(names) - {"bright_train", "bright_test"}:
            raise DatasetError(f"there is no data set {unknown}.")

    def train_data(self, cfg: CfgNode) -> tuple[list[Example], Callable[[Example], Any]]:
        return [{"index": index} for index in range(4)], lambda record: example(picture(record["index"]))

    def test_loader(self, cfg: CfgNode, name: str) -> list[list[Example]]:
        return [[example(picture(index))] for index in range(4, 7)]

    def protocol(self, cfg: CfgNode) -> tuple[str, ...]:
        return ("mean absolute error of the brightness",)

    def evaluator(self, cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
        return BrightnessEvaluator()

    def metrics(self, results: dict[str, Any]) -> dict[str, float]:
        return dict(results.get("brightness", {}))

    def draw(self, cfg: CfgNode, model: nn.Module, name: str, folder: Path, path: Path) -> None:
        cv2.imwrite(str(path), picture(4))

    def examples(self, cfg: CfgNode, model: nn.Module, name: str, count: int) -> Examples:
        return Examples("Pictures.", (("#FF0000", "nothing"),), (Drawn(picture(4), "four", "as it is"),))

    def predictor(self, cfg: CfgNode, categories: Any) -> Predictor:
        return BrightnessPredictor()


@pytest.fixture
def brightness() -> Iterator[Task]:
    task = Brightness()
    register_task(task)
    META_ARCH_REGISTRY.register(BrightnessNet)
    yield task
    del TASKS[task.name], META_ARCH_REGISTRY._obj_map["BrightnessNet"]


def test_a_fifth_task_needs_no_change_in_the_package(
    brightness: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PICTURES", 2)
    monkeypatch.setattr(measure, "STEPS", 1)
    monkeypatch.setattr(figures, "EXAMPLES", 1)
    files = []
    for role in ("ode", "twin"):
        files.append(str(tmp_path / f"bright_{role}.yaml"))
        Path(files[-1]).write_text(CONFIG % (role, tmp_path / role))

    def config(file: str) -> CfgNode:
        cfg = load_config(file)
        cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "seed_0")
        return cfg

    for file in files:
        results = train(open_training(config(file), command="", config_file=file, resume=False), resume=False)
        (row,) = results.rows
        assert 0 < row.metrics["MAE"] < 2
        assert row.cost["evaluations"] == (2 if "ode" in Path(file).stem else 0)
        assert evaluate_only(open_evaluation(config(file), command="", config_file=file)).rows[0].metrics == row.metrics
    folder = tmp_path / "ode" / "seed_0"
    assert {"metrics.png", "predictions.jpg", "results.json", "model_final.pth"} <= {p.name for p in folder.iterdir()}
    assert (folder / "model_best.pth").exists()

    cv2.imwrite(str(tmp_path / "one.png"), picture(9))
    opened = open_evaluation(config(files[0]), command="", config_file=files[0])
    summary = predict(replace(opened, folder=tmp_path / "found"), [str(tmp_path / "one.png")])
    assert summary.done == 1
    assert '"value": ' in summary.file.read_text()

    request = Request(tuple(files), tmp_path / "compared", "", seconds=0.05)
    compared, written = compare(request)
    assert {(one.name, one.role) for one in compared.rows} == {("bright_ode", "ode"), ("bright_twin", "twin")}
    assert "MAE\u00a0↓" in (tmp_path / "compared" / "comparison.md").read_text()
    assert Results.read(tmp_path / "compared").rows == compared.rows
    assert all(path.exists() for path in written)

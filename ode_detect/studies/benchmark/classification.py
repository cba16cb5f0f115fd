"""Section ``classification``: our trainer, with all that it does in an iteration, against a plain PyTorch loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage

from ode_detect.classification.data.mapper import BatchMapper, build_mapper
from ode_detect.classification.data.sources import Pictures
from ode_detect.classification.task import Classification
from ode_detect.engine.build import autocast, build_network
from ode_detect.engine.config import add_ode_config
from ode_detect.engine.optimizer import build_optimizer
from ode_detect.engine.stream import random_state_kept, seed_everything
from ode_detect.engine.trainer import Trainer
from ode_detect.studies.timing import Case, Ratio, Side

# At least 0.9 of the pictures per second.
AIM = 1 / 0.9
BATCH, QUICK_BATCH = 128, 4
OURS, PLAIN = "our trainer", "a plain loop"
_SHARED = {
    "MODEL.META_ARCHITECTURE": "Classifier",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_odenet_backbone",
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.LR_SCHEDULER_NAME": "OneCycleLR",
    "SOLVER.AMP.ENABLED": True,
    # Never reached, nor is a checkpoint or an evaluation.
    "SOLVER.MAX_ITER": 1_000_000,
    "SOLVER.CHECKPOINT_PERIOD": 1_000_000,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.RANDOM_FLIP": "horizontal",
    "SEED": 0,
}
_CHEN = {
    **_SHARED,
    "MODEL.ODE_NET.STEM": "chen",
    "MODEL.ODE_NET.CHANNELS": [64],
    "MODEL.ODE_NET.BLOCKS": [1],
    "MODEL.ODE_NET.NORM": "GN",
    "MODEL.ODE.FIELD": "concat",
    "MODEL.ODE.PIECES": "constant",
    "MODEL.ODE.PROJECTION": "none",
    "MODEL.ODE.METHOD": "rk4",
    "MODEL.ODE.STEPS": 2,
    "MODEL.CLASSIFIER.NORM": "GN",
    "MODEL.PIXEL_MEAN": [127.5],
    "MODEL.PIXEL_STD": [73.9],
    "INPUT.FORMAT": "L",
    "INPUT.PAD_CROP": 2,
}
_CIFAR = {
    **_SHARED,
    "MODEL.ODE_NET.STEM": "conv",
    "MODEL.ODE_NET.CHANNELS": [16, 32, 64],
    "MODEL.ODE_NET.BLOCKS": [3, 3, 3],
    "MODEL.ODE_NET.NORM": "BN",
    "MODEL.ODE.FIELD": "basic",
    "MODEL.ODE.NORM": "GN",
    "MODEL.PIXEL_MEAN": [127.5] * 3,
    "MODEL.PIXEL_STD": [73.9] * 3,
    "INPUT.FORMAT": "RGB",
    "INPUT.PAD_CROP": 4,
}


def cases(*, quick: bool) -> Iterator[Case]:
    """The MNIST network of Chen et al. 2018, and an ODE-ResNet for CIFAR, both on random pictures."""
    batch = QUICK_BATCH if quick else BATCH
    for name, keys, shape in (
        ("training of the ODE-Net of Chen et al.", _CHEN, (1, 28, 28)),
        ("training of a CIFAR ODE-ResNet", _CIFAR, (3, 32, 32)),
    ):
        with tempfile.TemporaryDirectory() as folder, random_state_kept():
            cfg = _config({**keys, "SOLVER.IMS_PER_BATCH": batch, "OUTPUT_DIR": folder})
            dicts, mapper = _data(cfg, shape, count=8 * batch)
            with _steps_of_trainer(cfg, dicts, mapper) as step:
                yield Case(
                    f"{name}, {batch}x{'x'.join(map(str, shape))}, bfloat16 autocast",
                    {
                        OURS: Side("ode", step, pictures=batch),
                        PLAIN: Side("baseline", _plain_loop(cfg, dicts, mapper), pictures=batch),
                    },
                    [Ratio(OURS, PLAIN, AIM)],
                    weight=4.0,
                )


def _config(keys: dict[str, Any]) -> CfgNode:
    cfg: CfgNode = get_cfg()
    add_ode_config(cfg)
    for key, value in keys.items():
        cfg.merge_from_list([key, value])
    return cfg


def _data(cfg: CfgNode, shape: Sequence[int], count: int) -> tuple[list[dict[str, Any]], BatchMapper]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(cfg.MODEL.CLASSIFIER.NUM_CLASSES, (count,), generator=generator).tolist()
    mapper = build_mapper(cfg, Pictures(labels, images, (), cfg.INPUT.FORMAT), is_train=True)
    assert isinstance(mapper, BatchMapper), "pictures in memory, of one size"
    return [{"index": index, "label": label} for index, label in enumerate(labels)], mapper


class _InMemory(Classification):
    """Classification of pictures that are in memory."""

    def __init__(self, dicts: list[dict[str, Any]], mapper: BatchMapper) -> None:
        self._dicts, self._mapper = dicts, mapper

    def train_data(self, cfg: CfgNode) -> tuple[list[dict[str, Any]], Callable[[dict[str, Any]], Any]]:
        return self._dicts, self._mapper

    def categories(self, cfg: CfgNode) -> list[dict[str, Any]]:
        return []


@contextmanager
def _steps_of_trainer(cfg: CfgNode, dicts: list[dict[str, Any]], mapper: BatchMapper) -> Iterator[Callable[[], None]]:
    """What does one iteration of `Trainer.train`, its hooks included, each time it is called."""
    seed_everything(cfg.SEED)
    trainer = Trainer(cfg, _InMemory(dicts, mapper), lambda model: {})
    trainer.data_loader = trainer.stream()

    def step() -> None:
        trainer.before_step()
        trainer.run_step()
        trainer.after_step()
        trainer.iter += 1

    with EventStorage(0) as trainer.storage:
        trainer.before_train()
        try:
            yield step
        finally:
            trainer.after_train()


def _plain_loop(cfg: CfgNode, dicts: list[dict[str, Any]], mapper: BatchMapper) -> Callable[[], None]:
    """What anybody writes: one iteration each time it is called."""
    seed_everything(cfg.SEED)
    model = build_network(cfg).train()
    optimizer = build_optimizer(cfg, model)
    batch, generator = cfg.SOLVER.IMS_PER_BATCH, torch.Generator().manual_seed(0)

    def epochs() -> Iterator[list[int]]:
        while True:
            yield from torch.randperm(len(dicts), generator=generator).view(-1, batch).tolist()

    batches = epochs()

    def step() -> None:
        examples = mapper.map_batch([dicts[index] for index in next(batches)], range(batch), batch, generator)
        with autocast(cfg):
            loss = model(examples)["loss_cls"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step

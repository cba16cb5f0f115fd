"""From a config to a network and its stream of training examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ode_detect.media.errors import DatasetError
from ode_detect.ode import ODEBlock
from ode_detect.ode.dial import SolverChange, set_solvers
from ode_detect.task import ConfigError, Task

from .config import flow_settings, tolerances
from .stream import build_stream


def training_stream(cfg: CfgNode, task: Task, *, start: int = 0) -> DataLoader[list[Any]]:
    """The batches of a training, from an iteration on; endless.

    Raises:
        ConfigError: values that the data or the stream cannot have.
        DatasetError: training data that is not there.
    """
    with config_errors():
        dicts, mapper = task.train_data(cfg)
        return build_stream(
            dicts,
            mapper,
            batch=cfg.SOLVER.IMS_PER_BATCH,
            seed=cfg.SEED,
            start=start,
            group_by_shape=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            repeats=_repeats(cfg, task, dicts),
            workers=cfg.DATALOADER.NUM_WORKERS,
        )


def _repeats(cfg: CfgNode, task: Task, dicts: list[Any]) -> Tensor | None:
    """How often each picture comes in an epoch, if pictures of rare classes are to come more often."""
    if cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return None
    classes = [{"annotations": [{"category_id": number} for number in task.classes_in(record)]} for record in dicts]
    factors: Tensor = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        classes, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return factors


def build_network(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``, its flows solved as ``MODEL.ODE.FLOWS`` says.

    Raises:
        ConfigError: the config asks for what cannot be built.
    """
    if on_gpu(cfg) and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} and torch sees no GPU; set MODEL.DEVICE cpu.")
    steps, methods = flow_settings(cfg)
    with config_errors():
        model: nn.Module = build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:
            _to_channels_last(model)
        if cfg.MODEL.ODE.FLOWS and cfg.MODEL.ODE.ROLE == "ode":
            set_solvers(model, SolverChange(steps=steps, method=methods, **tolerances(cfg)))
        return model


def _to_channels_last(model: nn.Module) -> None:
    """All but the flows with a GroupNorm, which PyTorch computes many times slower so on a CPU.

    Such a flow gives contiguous states whatever it is given.
    """
    model.to(memory_format=torch.channels_last)
    for block in model.modules():
        if isinstance(block, ODEBlock) and any(isinstance(part, nn.GroupNorm) for part in block.modules()):
            block.to(memory_format=torch.contiguous_format)
            block.register_forward_pre_hook(_contiguous)


def _contiguous(block: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].contiguous()


@contextmanager
def config_errors() -> Iterator[None]:
    """What fails while a network, an optimizer or a stream is built fails for a config value, or for the data."""
    try:
        yield
    except DatasetError:
        raise
    except (ValueError, KeyError, AssertionError, RuntimeError, ImportError) as error:
        detail = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"the config cannot be built: {detail}") from error


def on_gpu(cfg: CfgNode) -> bool:
    """Whether ``MODEL.DEVICE`` is a CUDA device, whatever its number."""
    return str(cfg.MODEL.DEVICE).startswith("cuda")


def autocast(cfg: CfgNode) -> torch.autocast:
    """bfloat16 on the CPU, float16 on a GPU, if ``SOLVER.AMP.ENABLED``."""
    device, dtype = ("cuda", torch.float16) if on_gpu(cfg) else ("cpu", torch.bfloat16)
    return torch.autocast(device, dtype=dtype, enabled=cfg.SOLVER.AMP.ENABLED)

"""Randomness of an iteration: a function of the seed, the iteration and the picture, whichever process has the picture.

Detectron2 draws the anchors and proposals that are trained on from the state of the process. Two processes then draw
others than one process with the same batch does, and a resumed run needs the state of each process that is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import nn

from .stream import seed_everything

# What is drawn: apart from each other, and (being above 0) from the augmentation of a picture.
_FORWARD, _SHARED, _PICTURE = 1, 2, 3

# Detectron2's methods that draw for one picture, and are called for one picture of the batch after the other.
_DRAWING = ("_subsample_labels", "_sample_proposals")


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed all generators for what a process draws on its own, such as dropout."""
    seed_everything(_seed(seed, _FORWARD, iteration, comm.get_rank()))


def shared_generator(seed: int, iteration: int) -> torch.Generator:
    """A generator for what all processes must draw alike."""
    return torch.Generator().manual_seed(_seed(seed, _SHARED, iteration))


@contextmanager
def drawn_by_picture(model: nn.Module, *, seed: int, iteration: int, pictures: int) -> Iterator[None]:
    """Let Detectron2 draw anchors (RPN) and proposals (ROI heads) for each picture by a seed of its own.

    Args:
        model: Detectron2's meta-architecture.
        seed: of the run.
        iteration: that is being trained.
        pictures: in the batch of this process; picture k of process r of w is number k * w + r of the whole batch.
    """
    with ExitStack() as stack:
        for name in _DRAWING:
            drawing = [module for module in model.modules() if callable(getattr(module, name, None))]
            for number, module in enumerate(drawing):
                key = (seed, _PICTURE, iteration, _DRAWING.index(name), number)
                setattr(module, name, _seeded(getattr(module, name), key, pictures))
                stack.callback(delattr, module, name)
        yield


def _seeded(draw: Callable[..., Any], key: tuple[int, ...], pictures: int) -> Callable[..., Any]:
    calls = itertools.count()

    def seeded(*arguments: Any, **more: Any) -> Any:
        # A second pass in the same iteration draws again.
        time, picture = divmod(next(calls), pictures)
        torch.manual_seed(_seed(*key, time, picture * comm.get_world_size() + comm.get_rank()))
        return draw(*arguments, **more)

    return seeded


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

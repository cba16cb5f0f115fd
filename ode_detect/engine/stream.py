"""The stream of training examples: a function of the seed and the iteration, so that a run can go on where it stopped.

Which pictures are in a batch, and how each is augmented, depend on the seed and the position in the stream only: not on
the number of workers, nor on what was drawn before. Detectron2's samplers and mappers leave both to the state of
processes that are gone when a run is resumed.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Draw = tuple[int, int]


class BatchStream(Sampler[list[Draw]]):
    """Endless batches of (index of the picture, position in the stream).

    Every process of a distributed run forms the same batches and takes its share of each.

    Args:
        size: number of pictures.
        batch: pictures in a batch, over all processes.
        seed: of the order.
        start: the iteration at which to begin.
        wide: for each picture whether it is wider than high; pictures of a batch are then alike. None mixes them.
        repeats: for each picture how often it comes in an epoch, on average over the epochs, 1 or more. None is once.
        rank: which process this is.
        world: how many processes there are.

    Raises:
        ValueError: no pictures, or a batch that cannot be shared equally.
    """

    def __init__(
        self,
        *,
        size: int,
        batch: int,
        seed: int,
        start: int = 0,
        wide: list[bool] | None = None,
        repeats: Tensor | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if size < 1:
            raise ValueError("there is no picture to train on; check DATASETS.TRAIN and its annotations.")
        if batch < 1 or batch % world:
            raise ValueError(
                f"a batch of {batch} cannot be shared by {world} processes; set SOLVER.IMS_PER_BATCH to a multiple."
            )
        self.size, self.batch, self.seed, self.start = size, batch, seed, start
        self.wide, self.repeats, self.rank, self.world = wide, repeats, rank, world

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in itertools.islice(self._batches(), self.start, None):
            yield batch[self.rank :: self.world]

    def _batches(self) -> Iterator[list[Draw]]:
        waiting: dict[bool, list[Draw]] = defaultdict(list)
        for position, index in enumerate(self._indices()):
            bucket = waiting[self.wide[index] if self.wide else False]
            bucket.append((index, position))
            if len(bucket) == self.batch:
                yield bucket.copy()
                bucket.clear()

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        while True:
            epoch = torch.arange(self.size)
            if self.repeats is not None:
                # The same draws as Detectron2's RepeatFactorTrainingSampler.
                whole, rest = self.repeats.trunc(), self.repeats.frac()
                more = torch.rand(self.size, generator=generator) < rest
                epoch = epoch.repeat_interleave(whole.long() + more)
            yield from epoch[torch.randperm(len(epoch), generator=generator)].tolist()


class _Examples(Dataset[Any]):
    """Pictures by draw, each augmented with randomness of its own."""

    def __init__(
        self, dicts: list[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], seed: int, batch: int
    ) -> None:
        self.dicts, self.mapper, self.seed, self.batch = dicts, mapper, seed, batch

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, draw: Draw) -> Any:
        index, position = draw
        # Only the processor's states: a worker process must not touch the GPU.
        with random_state_kept():
            seed = _derived(self.seed, position)
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            return self.mapper(self.dicts[index])

    def __getitems__(self, draws: list[Draw]) -> list[Any]:
        """What the loader calls for a batch, or this process's share of it."""
        map_batch = getattr(self.mapper, "map_batch", None)
        if map_batch is None:
            return [self[draw] for draw in draws]
        generator = torch.Generator().manual_seed(_derived(self.seed, draws[0][1] // self.batch))
        rows = [position % self.batch for _, position in draws]
        return list(map_batch([self.dicts[index] for index, _ in draws], rows, self.batch, generator))


def _derived(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def build_stream(
    dicts: list[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], Any],
    *,
    batch: int,
    seed: int,
    start: int = 0,
    group_by_shape: bool = False,
    repeats: Tensor | None = None,
    workers: int = 0,
) -> DataLoader[list[Any]]:
    """The loader of a training run.

    Args:
        dicts: one for each picture; ``width`` and ``height`` are read if ``group_by_shape``.
        mapper: makes a training example of a dict; may draw from ``random``, numpy and torch. If it has
            ``map_batch(dicts, rows, total, generator)``, that makes the examples of a batch, or of a process's share
            of it: rows are their places among its total, and what is drawn for one comes from the generator, whichever
            the other rows.
        batch: pictures in a batch, over all processes.
        seed: of order and augmentation.
        start: the iteration at which to begin.
        group_by_shape: batches of either wide or high pictures, which wastes less padding. Nothing to a mapper of
            batches, whose pictures have one shape.
        repeats: as for `BatchStream`.
        workers: processes that load.

    Returns:
        An endless iterable of lists of examples.
    """
    grouped = group_by_shape and not hasattr(mapper, "map_batch")
    wide = [d["width"] > d["height"] for d in dicts] if grouped else None
    stream = BatchStream(
        size=len(dicts),
        batch=batch,
        seed=seed,
        start=start,
        wide=wide,
        repeats=repeats,
        rank=comm.get_rank(),
        world=comm.get_world_size(),
    )
    return DataLoader(
        _Examples(dicts, mapper, seed, batch),
        batch_sampler=stream,
        num_workers=workers,
        collate_fn=list,
        # A generator of its own, lest the loader draw from the one that training uses.
        generator=torch.Generator().manual_seed(seed),
    )


def seed_everything(seed: int) -> None:
    """Seed ``random``, numpy and torch (all devices); ``seed`` in [0, 2**32)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the states of ``random``, numpy and torch (on the processor) as they were, whatever is drawn inside."""
    python, numpy, processor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(processor)

"""A record of what solves cost, per block: evaluations, steps, multiply-adds and time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from .block import ODEBlock
from .tables import table
from .tally import BlockRecord, Observer


@dataclass
class SolveRecord:
    """What the solves of a model cost; ``str()`` is a table.

    Attributes:
        blocks: by the block's name in the model.
    """

    blocks: dict[str, BlockRecord] = field(default_factory=dict)

    @property
    def total(self) -> BlockRecord:
        """The sum over blocks."""
        names = BlockRecord.__dataclass_fields__
        return BlockRecord(**{n: sum(getattr(block, n) for block in self.blocks.values()) for n in names})

    def __str__(self) -> str:
        head = ("block", "solves", "NFE", "backward NFE", "accepted", "rejected", "MMACs", "ms", "backward ms")
        rows = [_cells(name, block) for name, block in self.blocks.items()]
        return table(head, rows, total=_cells("total", self.total))


@contextmanager
def record_solves(model: nn.Module, *, measure: bool = True) -> Iterator[SolveRecord]:
    """Record what the solves of a model cost, in this thread, until the context ends.

    Other models and other threads are not seen, and do not see this record. A compiled block (torch.compile) is not
    recorded.

    Args:
        model: any module; all `ODEBlock` in it are recorded under their names.
        measure: also count multiply-adds, in one more evaluation per block and shape, and take the time, waiting for
            the device. False counts evaluations and steps only, which costs next to nothing.

    Yields:
        The record, which fills up as the model runs; a backward pass counts even after the context ended.
    """
    record = SolveRecord()
    thread = threading.get_ident()
    blocks = [(name or "ODEBlock", m) for name, m in model.named_modules() if isinstance(m, ODEBlock)]
    observers: list[tuple[ODEBlock, Observer]] = []
    for name, block in blocks:
        record.blocks[name] = BlockRecord()
        observers.append((block, Observer(record.blocks[name], measure)))
    for block, observer in observers:
        block.observers.setdefault(thread, []).append(observer)
    try:
        yield record
    finally:
        for block, observer in observers:
            block.observers[thread].remove(observer)
            if not block.observers[thread]:
                del block.observers[thread]


def _cells(name: str, block: BlockRecord) -> tuple[str, ...]:
    counts = (block.solves, block.forward_evaluations, block.backward_evaluations, block.accepted, block.rejected)
    measures = (block.macs / 1e6, block.forward_seconds * 1e3, block.backward_seconds * 1e3)
    return (name, *map(str, counts), *(f"{value:.1f}" for value in measures))

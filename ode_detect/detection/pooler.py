"""ROIAlign on a CPU as sums of weighted rows.

A bin of ROIAlign is the mean of bilinear samples on a grid, and so a weighted sum of cells of the feature map, in which
the weights are products of one factor per axis. With channels last a cell is a row of C numbers in one place, and the
sum is what ``F.embedding_bag`` computes, on all cores and in bfloat16 too; torchvision's kernel walks over the channels
one by one, on one core, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn


@dataclass(frozen=True)
class _Taps:
    """Cells that the bins of each box take along one axis, B bins of R boxes.

    Attributes:
        first: (R, B), the first cell.
        count: (R, B), how many cells from there.
        weights: (R, B, largest count or one more), their factors, 0 beyond the count.
    """

    first: Tensor
    count: Tensor
    weights: Tensor

    def cells(self, length: Tensor) -> Tensor:
        """(R, B, as the weights): the cells, of which there are ``length`` (R,)."""
        cells = self.first[..., None] + torch.arange(self.weights.shape[-1])
        return cells.minimum((length - 1)[:, None, None])


class RowPooler(nn.Module):
    """What a Detectron2 `ROIPooler` with ROIAlign computes, without gradients.

    Args:
        pooler: the pooler to stand in for.

    Raises:
        ValueError: it pools in another way than by ROIAlign.
    """

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        if not self.fits(pooler):
            kinds = ", ".join(sorted({type(level).__name__ for level in pooler.level_poolers}))
            raise ValueError(f"rows are summed as ROIAlign does, and this pooler is of {kinds}; keep it as it is.")
        level = pooler.level_poolers[0]
        self.pooler = pooler
        self.output_size = tuple(pooler.output_size)
        self.sampling_ratio = int(level.sampling_ratio)
        self.aligned = bool(level.aligned)
        self.scales = [float(each.spatial_scale) for each in pooler.level_poolers]

    @staticmethod
    def fits(pooler: ROIPooler) -> bool:
        """Whether a pooler pools by ROIAlign."""
        return all(type(level) is ROIAlign for level in pooler.level_poolers)

    @torch.no_grad()
    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool.

        Args:
            x: feature maps (N, C, H, W), one for each level.
            box_lists: N lists of boxes in pixels of the picture, M in all.

        Returns:
            (M, C, height, width) in the dtype of ``x``, channels last.
        """
        boxes = convert_boxes_to_pooler_format(box_lists).float()
        if len(boxes) == 0:
            return x[0].new_zeros((0, x[0].shape[1], *self.output_size))
        levels = self._levels(box_lists, len(boxes))
        heights, widths = (torch.tensor([f.shape[axis] for f in x])[levels] for axis in (-2, -1))
        scale = torch.tensor(self.scales)[levels]
        rows = self._taps(boxes[:, 2] * scale, boxes[:, 4] * scale, heights, self.output_size[0])
        columns = self._taps(boxes[:, 1] * scale, boxes[:, 3] * scale, widths, self.output_size[1])
        sizes = torch.tensor([0, *(f.shape[0] * f.shape[2] * f.shape[3] for f in x)])
        base = sizes.cumsum(0)[levels] + boxes[:, 0].long() * heights * widths
        down = (rows.cells(heights) * widths[:, None, None] + base[:, None, None]).int()
        across = columns.cells(widths).int()
        table = torch.cat([f.permute(0, 2, 3, 1).reshape(-1, f.shape[1]) for f in x])
        order, pooled = [], []
        for of, height, width in _groups(rows, columns):
            cells = down[of, :, None, :height, None] + across[of, None, :, None, :width]
            weights = rows.weights[of, :, None, :height, None] * columns.weights[of, None, :, None, :width]
            bags = cells.view(-1, height * width)
            per_sample = weights.view(-1, height * width).to(table.dtype)
            order.append(of)
            pooled.append(F.embedding_bag(bags, table, mode="sum", per_sample_weights=per_sample))
        in_order = torch.cat(pooled).view(len(boxes), -1).index_select(0, torch.cat(order).argsort())
        return in_order.view(len(boxes), *self.output_size, -1).permute(0, 3, 1, 2)

    def _levels(self, box_lists: list[Boxes], count: int) -> Tensor:
        p = self.pooler
        if len(self.scales) == 1:
            return torch.zeros(count, dtype=torch.int64)
        return assign_boxes_to_levels(box_lists, p.min_level, p.max_level, p.canonical_box_size, p.canonical_level)

    def _taps(self, low: Tensor, high: Tensor, length: Tensor, bins: int) -> _Taps:
        """The samples of each bin along one axis, gathered by cell.

        Args:
            low: (R,), where the boxes start, in cells.
            high: (R,), where they end.
            length: (R,), number of cells of the feature map.
            bins: bins of a box.
        """
        low, high = (low - 0.5, high - 0.5) if self.aligned else (low, high)
        size = high - low if self.aligned else (high - low).clamp(min=1.0)
        samples = torch.full_like(size, self.sampling_ratio) if self.sampling_ratio > 0 else (size / bins).ceil()
        step = (size / bins / samples.clamp(min=1))[:, None, None]
        number = torch.arange(max(1, int(samples.max())))
        bin_start = (low[:, None] + torch.arange(bins) * (size / bins)[:, None])[..., None]
        position = bin_start + (number + 0.5) * step
        last = (length - 1)[:, None, None]
        taken = (number < samples[:, None, None]) & (position >= -1.0) & (position <= last + 1)
        position = position.clamp(min=0.0).minimum(last)
        cell = position.long()
        share = (position - cell) * taken / samples.clamp(min=1)[:, None, None]
        rest = taken / samples.clamp(min=1)[:, None, None] - share
        # Samples that a box does not have lie beyond its own, with weight 0: they must not make its window wider.
        used = number < samples[:, None, None].clamp(min=1)
        first = cell[..., 0]
        count = ((cell + 1).minimum(last).masked_fill(~used, 0).amax(-1) - first + 1).clamp(min=1)
        window = (cell - first[..., None]).minimum(count[..., None] - 1)
        weights = torch.zeros(*first.shape, (int(count.max()) + 1) // 2 * 2)
        weights.scatter_add_(-1, window, rest)
        weights.scatter_add_(-1, (window + 1).minimum(count[..., None] - 1), share)
        return _Taps(first, count, weights)


def _groups(rows: _Taps, columns: _Taps) -> Iterator[tuple[Tensor, int, int]]:
    """Boxes whose bins are of the same size in cells, with that height and width, rounded up to even numbers."""
    heights, widths = ((taps.count.amax(-1) + 1) // 2 * 2 for taps in (rows, columns))
    widest = int(widths.max()) + 1
    keys, order = (heights * widest + widths).sort()
    sizes, counts = keys.unique_consecutive(return_counts=True)
    for size, of in zip(sizes.tolist(), order.split(counts.tolist()), strict=True):
        yield of, size // widest, size % widest

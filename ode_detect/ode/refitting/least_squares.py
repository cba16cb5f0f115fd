"""The linear end of a vector field: its last convolution and the normalisation after it, solved by least squares.

A residual branch ends in a convolution and a batch normalisation. With fixed statistics the two are one affine map of
the activations before them, so the map that comes nearest to given values is found exactly, by normal equations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POSITIONS = 256
"""Number of positions at which an end is tested for being linear."""


@dataclass(frozen=True)
class LinearEnd:
    """Where the last convolution of a field is, and the normalisation after it.

    Attributes:
        convolution: name of an `nn.Conv2d` in the field.
        norm: name of a batch normalisation with fixed statistics; "" where there is none.
    """

    convolution: str
    norm: str


@torch.no_grad()
def find_linear_end(field: nn.Module, t: float, h: Tensor) -> LinearEnd | None:
    """Return the linear end of a field in evaluation mode, or None if it has none that we know.

    The last convolution is the last one run, and what runs after it must be one batch normalisation or nothing. That
    the field is nothing but its linear end from there on is seen by computing it.

    Args:
        field: called as ``field(t, h)``.
        t: a time at which to try it.
        h: a state to try it on, (N, C, H, W).
    """
    # One picture is enough to see it.
    h = h[:1]
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: order.append(name))
        for name, module in field.named_modules()
        if isinstance(module, nn.Conv2d) or (not any(module.children()) and not isinstance(module, nn.Identity))
    ]
    try:
        field(t, h)
    finally:
        for hook in hooks:
            hook.remove()
    modules = dict(field.named_modules())
    last = max((i for i, name in enumerate(order) if isinstance(modules[name], nn.Conv2d)), default=None)
    if last is None or len(order) > last + 2:
        return None
    end = LinearEnd(order[last], order[last + 1] if len(order) == last + 2 else "")
    return end if _is_linear(field, end, t, h) else None


def common_end(fields: Sequence[nn.Module], t: float, h: Tensor) -> LinearEnd | None:
    """Return the linear end that all of the fields have; None if there is none, or if the state is no (N, C, H, W)."""
    ends = {find_linear_end(field, t, h) if h.dim() == 4 else None for field in fields}
    return ends.pop() if len(ends) == 1 else None


def _is_linear(field: nn.Module, end: LinearEnd, t: float, h: Tensor) -> bool:
    conv = convolution(field, end)
    if conv.groups != 1 or conv.stride != (1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    if end.norm:
        norm = field.get_submodule(end.norm)
        tensors = [getattr(norm, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            return False
    elif conv.bias is None:
        return False
    with activations([field], end) as seen:
        slope = field(t, h)
    # At random, since every so many positions may all lie in one column; a few, since a patch is large.
    generator = torch.Generator().manual_seed(0)
    where = torch.randperm(h[0, 0].numel(), generator=generator)[:_POSITIONS].to(h.device)
    x, y = sampled_rows(seen[0], slope, conv, where)
    return bool((x @ affine_map(field, end) - y).norm() <= 1e-3 * y.norm())


@contextmanager
def activations(fields: Sequence[nn.Module], end: LinearEnd) -> Iterator[list[Tensor]]:
    """Collect the inputs of the last convolution of each field, in the order of evaluation, while the context lasts."""
    seen: list[Tensor] = []
    hooks = [
        field.get_submodule(end.convolution).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for field in fields
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class NormalEquations:
    """Sums over evaluations of a field in pieces, whose weights are blended with known shares at each of them.

    Wanted is one affine map of shape (D, C) for each piece: D counts the patch before the convolution and a 1 for the
    bias, C the channels after it. Sums are kept on the CPU in float64: D * D numbers for each pair of pieces that is
    ever blended.
    """

    def __init__(self) -> None:
        self.count = 0
        self._yy = 0.0
        self._xx: dict[tuple[int, int], Tensor] = {}
        self._xy: dict[int, Tensor] = {}

    @property
    def indices(self) -> list[int]:
        """The pieces that were seen."""
        return sorted(self._xy)

    def add(self, x: Tensor, y: Tensor, shares: Sequence[tuple[int, float]]) -> None:
        """Add rows (P, D) and wanted values (P, C), seen where the pieces have these (index, share)."""
        xx, xy = x.T @ x, x.T @ y
        self.count += len(x)
        self._yy += float(y.square().sum())
        for k, share in shares:
            self._xy[k] = self._xy.get(k, 0.0) + share * xy
            for other, other_share in shares:
                self._xx[k, other] = self._xx.get((k, other), 0.0) + share * other_share * xx

    def solve(self, start: Mapping[int, Tensor], ridge: float) -> dict[int, Tensor]:
        """The maps nearest to the wanted values, drawn to ``start`` where the rows do not say.

        Args:
            start: for each piece, a map (D, C).
            ridge: weight of the distance from ``start``, as a share of the mean square of the rows.
        """
        xx, xy, before = self._assembled(start)
        damped = xx + ridge * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype)
        found = before + torch.linalg.solve(damped, xy - xx @ before)
        return dict(zip(self.indices, found.chunk(len(self._xy)), strict=True))

    def residual(self, maps: Mapping[int, Tensor]) -> float:
        """The sum of squared differences of these maps from the wanted values."""
        xx, xy, w = self._assembled(maps)
        return max(self._yy + float((w * (xx @ w - 2 * xy)).sum()), 0.0)

    def statistics(self, maps: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) of what the convolution alone gives, without bias, over all rows."""
        kernels = {k: torch.cat([w[:-1], torch.zeros_like(w[-1:])]) for k, w in maps.items()}
        xx, _, w = self._assembled(kernels)
        size = len(xx) // len(maps)
        # The shares of a row sum to 1, so the columns of the ones of all pieces sum to the patches as they are blended.
        mean = (w.T @ xx[:, size - 1 :: size].sum(dim=1)) / self.count
        return mean, ((w * (xx @ w)).sum(dim=0) / self.count - mean.square()).clamp(min=0)

    def _assembled(self, maps: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        order = self.indices
        none = torch.zeros_like(self._xx[order[0], order[0]])
        xx = torch.cat([torch.cat([self._xx.get((k, other), none) for other in order], dim=1) for k in order])
        return xx, torch.cat([self._xy[k] for k in order]), torch.cat([maps[k] for k in order])


def sampled_rows(hidden: Tensor, slope: Tensor, conv: nn.Conv2d, where: Tensor) -> tuple[Tensor, Tensor]:
    """Patches before a convolution, with a 1 for the bias, and values wanted after it, at some positions.

    Args:
        hidden: (N, C, H, W).
        slope: (N, C', H, W).
        conv: a convolution of C channels to C' that keeps H and W.
        where: positions of the H * W, shape (P,).

    Returns:
        Shapes (N * P, C * kernel + 1) and (N * P, C'), float64 on the CPU.
    """
    assert not isinstance(conv.padding, str)
    (up, left), (tall, wide), (down, right) = conv.padding, conv.kernel_size, conv.dilation
    # Only the patches that are asked for are made: those of a whole picture take kernel times its memory.
    padded = F.pad(hidden.detach(), (left, left, up, up))
    row = where[:, None] // slope.shape[3] + down * torch.arange(tall, device=where.device)
    column = where[:, None] % slope.shape[3] + right * torch.arange(wide, device=where.device)
    patches = padded[:, :, row[:, :, None], column[:, None, :]]
    x = patches.permute(0, 2, 1, 3, 4).flatten(2).flatten(0, 1).cpu().double()
    y = slope.detach().flatten(2)[:, :, where].transpose(1, 2).flatten(0, 1).cpu().double()
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1), y


def affine_map(field: nn.Module, end: LinearEnd) -> Tensor:
    """Return the affine map of a field's last convolution and its normalisation: (D, C), float64 on the CPU."""
    conv = convolution(field, end)
    kernel = conv.weight.detach().flatten(1).cpu().double()
    bias = torch.zeros(len(kernel)).double() if conv.bias is None else conv.bias.detach().cpu().double()
    if end.norm:
        norm: Any = field.get_submodule(end.norm)
        mean, variance, weight, shift = (
            x.detach().cpu().double() for x in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        scale = weight * (variance + norm.eps).rsqrt()
        kernel, bias = kernel * scale[:, None], (bias - mean) * scale + shift
    return torch.cat([kernel, bias[:, None]], dim=1).T


@torch.no_grad()
def set_affine_map(field: nn.Module, end: LinearEnd, wanted: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Make a field's last convolution and its normalisation an affine map.

    The statistics become those of the convolution's new output and the affine weights undo them, so that the map is the
    same in evaluation and, up to the sampling of a batch, with batch statistics in training.

    Args:
        field: the field.
        end: where.
        wanted: (D, C).
        mean: of the output of the convolution, (C,).
        variance: of the same.
    """
    conv = convolution(field, end)
    kernel, bias = wanted[:-1].T.reshape(conv.weight.shape), wanted[-1]
    conv.weight.copy_(kernel)
    if end.norm:
        norm: Any = field.get_submodule(end.norm)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(bias + mean)
        bias = torch.zeros_like(bias)
    if conv.bias is not None:
        conv.bias.copy_(bias)


def best_solution(
    options: Sequence[Sequence[nn.Module]], equations: Sequence[NormalEquations], end: LinearEnd, ridge: float
) -> tuple[int, dict[int, Tensor]]:
    """Solve the equations of each option, and return the number and the maps of the one with the smallest residual.

    Args:
        options: the pieces of each option, whose own maps the solution is held to.
        equations: those of each option.
        end: the linear end of all pieces.
        ridge: as for `NormalEquations.solve`.
    """
    solved = []
    for parts, sums in zip(options, equations, strict=True):
        maps = sums.solve({k: affine_map(parts[k], end) for k in sums.indices}, ridge)
        solved.append((sums.residual(maps), maps))
    number = min(range(len(solved)), key=lambda option: solved[option][0])
    return number, solved[number][1]


def set_solution(
    parts: Sequence[nn.Module], end: LinearEnd, equations: NormalEquations, maps: Mapping[int, Tensor]
) -> None:
    """Give the pieces their maps, with the statistics that the equations have of the convolutions' outputs."""
    mean, variance = equations.statistics(maps)
    for k, wanted in maps.items():
        set_affine_map(parts[k], end, wanted, mean, variance)


def convolution(field: nn.Module, end: LinearEnd) -> nn.Conv2d:
    """The last convolution of a field."""
    conv = field.get_submodule(end.convolution)
    assert isinstance(conv, nn.Conv2d)
    return conv

"""What the processes of a run say to each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import Tensor, nn

Value = TypeVar("Value")


class ProcessFailedError(Exception):
    """A process that was started ended with an error, which it has reported itself.

    Attributes:
        code: the exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"a process ended with exit code {code}")
        self.code = code


def started_by_torchrun() -> bool:
    """Whether this process is one of several: started by torchrun, or by `start`, which sets the same variables."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"))


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


def first_to_report() -> bool:
    """Whether this process is the first one of the run that asks: what goes wrong in all of them is reported once."""
    if not dist.is_initialized():
        return not started_by_torchrun() or os.environ["LOCAL_RANK"] == "0"
    try:
        return bool(dist.distributed_c10d._get_default_store().add("reported", 1) == 1)
    except RuntimeError:  # The process that keeps the count, the first of machine 0, has ended before.
        return os.environ["LOCAL_RANK"] == "0"


def another_is_gone(error: RuntimeError) -> bool:
    """Whether an error says that the connection to another process broke."""
    # What gloo raises has no class of its own.
    return isinstance(error, dist.DistError) or (dist.is_initialized() and "gloo/transport" in str(error))


def agreed(wish: bool) -> bool:
    """Whether any process wishes it; the same answer in all of them."""
    return any(comm.all_gather(wish))


def from_main(make: Callable[[], Value]) -> Value:
    """What the main process makes, in all of them; the others wait."""
    return comm.all_gather(make() if comm.is_main_process() else None)[0]


def averaged(values: dict[str, float]) -> dict[str, float]:
    """The mean over the processes of numbers by name, in all of them."""
    everywhere = comm.all_gather(values)
    return {name: sum(each[name] for each in everywhere) / len(everywhere) for name in values}


def average_gradients(model: nn.Module) -> None:
    """Put the mean over the processes in place of each gradient; what DistributedDataParallel does in one backward."""
    world = comm.get_world_size()
    if world == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A parameter without a gradient in all processes keeps none, so that the optimizer leaves it alone.
    used = torch.tensor([p.grad is not None for p in trained], dtype=torch.uint8, device=trained[0].device)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    gradients: list[Tensor] = []
    for parameter, has_gradient in zip(trained, used.tolist(), strict=True):
        if has_gradient:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    torch._foreach_div_(gradients, world)


def broadcast_state(model: nn.Module) -> None:
    """Give all processes the weights and statistics of the main one."""
    if comm.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def data_parallel(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Detectron2's DistributedDataParallel, on a CPU too; the model itself in one process.

    Parameters without a gradient are looked for in each iteration: a flow with fewer steps than pieces has some, and so
    has an FPN with a level that no head reads.
    """
    device_ids = None if cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
    return create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids, find_unused_parameters=True)

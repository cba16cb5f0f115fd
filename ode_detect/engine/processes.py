"""Several processes: started here or by torchrun, joined into one group, ended together."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from ode_detect.task import ConfigError

from .distributed import ProcessFailedError, started_by_torchrun
from .launch import run_tool
from .provenance import cores

# Seconds that the others have to end on their own when one process has failed.
_GRACE = 5.0


@dataclass(frozen=True)
class Layout:
    """Which processes a run has.

    Attributes:
        local: processes on this machine.
        machines: number of machines, each with as many processes.
        machine: number of this one, from 0.
        address: host where machine 0 listens.
        port: its port.
    """

    local: int
    machines: int
    machine: int
    address: str
    port: int

    @property
    def world(self) -> int:
        """Processes on all machines."""
        return self.local * self.machines


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Add Detectron2's flags for several processes, and ``--num-processes`` for CPUs."""
    group = parser.add_argument_group("several processes (or start the tool with torchrun, without these)")
    group.add_argument("--num-gpus", type=int, metavar="N", help="GPUs on each machine, a process for each (1)")
    group.add_argument("--num-processes", type=int, metavar="N", help="processes on each machine, on CPUs (1)")
    group.add_argument("--num-machines", type=int, default=1, metavar="N", help="number of machines (1)")
    group.add_argument("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0 (0)")
    group.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="tcp://HOST:PORT of machine 0; auto: a free port of this machine, if it is the only one (auto)",
    )


def layout(args: argparse.Namespace, device: str) -> Layout:
    """The processes that the flags ask for.

    Args:
        args: with the flags of `add_process_flags`.
        device: ``MODEL.DEVICE``.

    Raises:
        ConfigError: what they ask for is not there or does not fit together.
    """
    started = started_by_torchrun()
    flagged = args.num_gpus or args.num_processes or args.num_machines != 1
    if started and flagged and _STARTED_HERE not in os.environ:
        raise ConfigError(
            "torchrun says how many processes there are, and --num-gpus, --num-processes and --num-machines do so too; "
            "leave them out, or start the tool without torchrun."
        )
    if started:
        environment = {name: int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK")}
        local = environment["LOCAL_WORLD_SIZE"]
        _check_device(local, device, "LOCAL_WORLD_SIZE of torchrun")
        machines, machine = environment["WORLD_SIZE"] // local, environment["RANK"] // local
        return Layout(local, machines, machine, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return _from_flags(args, device)


def _from_flags(args: argparse.Namespace, device: str) -> Layout:
    on_cpu = device == "cpu"
    for flag in ("num_gpus", "num_processes", "num_machines"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} is 1 or more, and here it is {getattr(args, flag)}; leave it out for 1.")
    if args.num_gpus and args.num_gpus > 1 and on_cpu:
        raise ConfigError(
            f"--num-gpus {args.num_gpus} asks for GPUs, torch sees {torch.cuda.device_count()}, MODEL.DEVICE is cpu. "
            f"On CPUs say --num-processes {args.num_gpus}; on GPUs set MODEL.DEVICE cuda."
        )
    if args.num_processes and not on_cpu:
        raise ConfigError(
            f"--num-processes is for CPUs, and MODEL.DEVICE is {device}; say --num-gpus {args.num_processes}, or set "
            "MODEL.DEVICE cpu."
        )
    local = (args.num_processes if on_cpu else args.num_gpus) or 1
    _check_device(local, device, "--num-gpus")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--machine-rank is a number from 0 to --num-machines - 1, and here it is {args.machine_rank} of "
            f"{args.num_machines}; give each machine its own."
        )
    if args.dist_url == "auto":
        if args.num_machines > 1:
            raise ConfigError(
                "machines find each other by --dist-url, and here it is auto, which is for one machine; give all of "
                "them --dist-url tcp://HOST:PORT with a free port of the machine with --machine-rank 0."
            )
        return Layout(local, 1, 0, "127.0.0.1", _free_port())
    url = urlparse(args.dist_url)
    if url.scheme != "tcp" or not url.hostname or not url.port:
        raise ConfigError(f"--dist-url is tcp://HOST:PORT or auto, and not {args.dist_url}; give it so.")
    return Layout(local, args.num_machines, args.machine_rank, url.hostname, url.port)


def _check_device(local: int, device: str, source: str) -> None:
    if device == "cpu":
        return
    there = torch.cuda.device_count()
    # That there is none at all is an error when the network is built.
    if there and local > there:
        raise ConfigError(f"each GPU has one process, and {source} is {local} for {there} GPUs; give {there}.")
    if local > 1 and device != "cuda":
        raise ConfigError(f"each process takes its own GPU, and MODEL.DEVICE is {device}; set MODEL.DEVICE cuda.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(main: Callable[[list[str]], None], arguments: list[str], plan: Layout, device: str) -> None:
    """Run a tool in the processes of this machine, and wait for them.

    Ctrl-C and a kill are handed on to all of them. When one fails, the others are ended.

    Args:
        main: the tool, a function of a module; each process calls `run_tool` with it, and `join` in it.
        arguments: its command line.
        plan: the processes.
        device: ``MODEL.DEVICE``.

    Raises:
        ConfigError: the port is taken.
        ProcessFailedError: a process failed.
    """
    if plan.machine == 0:
        _check_port(plan)
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // plan.local))
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    running = mp.start_processes(_run, args=(main, arguments, plan), nprocs=plan.local, join=False)

    asked = []

    def hand_on(number: int, frame: Any) -> None:
        asked.append(number)
        for process in running.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not running.join(grace_period=_GRACE):
            pass
    except mp.ProcessExitedException as failed:
        if failed.exit_code < 0 and not asked:
            print(
                f"error: process {failed.error_index} was killed ({failed.signal_name}), and the others were ended. "
                "SIGKILL is often the system's answer to too little memory: take fewer processes, smaller pictures, or "
                "MODEL.ODE.GRADIENT checkpoint.",
                file=sys.stderr,
            )
        raise ProcessFailedError(130 if asked else failed.exit_code if failed.exit_code > 0 else 2) from None
    except mp.ProcessRaisedException as failed:
        print(failed, file=sys.stderr)
        raise ProcessFailedError(1) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(local: int, main: Callable[[list[str]], None], arguments: list[str], plan: Layout) -> None:
    os.environ |= {
        "RANK": str(plan.machine * plan.local + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(plan.world),
        "LOCAL_WORLD_SIZE": str(plan.local),
        "MASTER_ADDR": plan.address,
        "MASTER_PORT": str(plan.port),
        _STARTED_HERE: "1",
    }
    try:
        sys.exit(run_tool(main, arguments))
    except KeyboardInterrupt:  # Before the tool has begun.
        sys.exit(130)


# Set in a process that `start` started: its command line has the flags.
_STARTED_HERE = "ODE_DETECT_STARTED"


def _check_port(plan: Layout) -> None:
    try:
        with socket.create_server((plan.address, plan.port)):
            pass
    except OSError as error:
        raise ConfigError(
            f"--dist-url names a free port of machine 0, and {plan.address}:{plan.port} cannot be listened on "
            f"({error.strerror}); another run may have it, or its leftover. Give another; one machine needs none."
        ) from error


def join(plan: Layout, device: str) -> None:
    """Join the group of processes: NCCL on GPUs, gloo on CPUs."""
    if device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device != "cpu" else "gloo", init_method="env://")
    comm.create_local_process_group(plan.local)
    comm.synchronize()
    per_process = max(1, cores() // plan.local)
    if device == "cpu" and comm.is_main_process() and torch.get_num_threads() < per_process:
        print(
            f"each process computes with {torch.get_num_threads()} of {per_process} cores that it could have; "
            f"OMP_NUM_THREADS={per_process} gives it all of them.",
            file=sys.stderr,
        )


def command_line(tool: str, arguments: str) -> str:
    """How this run was started, for its records."""
    if not started_by_torchrun() or _STARTED_HERE in os.environ:
        return f"python {tool} {arguments}"
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return f"torchrun --nnodes {int(os.environ['WORLD_SIZE']) // local} --nproc-per-node {local} {tool} {arguments}"

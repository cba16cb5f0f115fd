import argparse
import socket

import pytest
import torch

from ode_detect.engine import processes
from ode_detect.task import ConfigError


def flags(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    processes.add_process_flags(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-gpus", "2"], "On CPUs say --num-processes 2"),
        (["--num-processes", "0"], "1 or more"),
        (["--num-machines", "2"], "--dist-url tcp://HOST:PORT"),
        (["--num-machines", "2", "--machine-rank", "2"], "from 0 to --num-machines - 1"),
        (["--num-machines", "2", "--dist-url", "file:///x"], "tcp://HOST:PORT or auto"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        processes.layout(flags(*arguments), "cpu")


def test_processes_are_for_cpus() -> None:
    with pytest.raises(ConfigError, match="say --num-gpus 2"):
        processes.layout(flags("--num-processes", "2"), "cuda")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="give 2"):
        processes.layout(flags("--num-gpus", "4"), "cuda")
    with pytest.raises(ConfigError, match=r"set MODEL\.DEVICE cuda"):
        processes.layout(flags("--num-gpus", "2"), "cuda:1")
    assert processes.layout(flags("--num-gpus", "2"), "cuda").world == 2


def test_machines_are_counted() -> None:
    arguments = [
        "--num-machines",
        "2",
        "--machine-rank",
        "1",
        "--dist-url",
        "tcp://node0:29500",
        "--num-processes",
        "3",
    ]
    plan = processes.layout(flags(*arguments), "cpu")
    assert (plan.world, plan.local, plan.machine, plan.address, plan.port) == (6, 3, 1, "node0", 29500)


def test_torchrun_and_flags_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    for name, value in {**environment, "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    plan = processes.layout(flags(), "cpu")
    assert (plan.machines, plan.machine, plan.local) == (2, 1, 4)
    assert processes.command_line("x.py", "--a") == "torchrun --nnodes 2 --nproc-per-node 4 x.py --a"
    with pytest.raises(ConfigError, match="leave them out"):
        processes.layout(flags("--num-processes", "2"), "cpu")


def test_a_port_that_is_taken_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        plan = processes.layout(flags("--num-processes", "2", "--dist-url", url), "cpu")
        with pytest.raises(ConfigError, match="cannot be listened on"):
            processes.start(print, [], plan, "cpu")

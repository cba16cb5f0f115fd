"""How the threads of a command wait for each other. Imports the standard library only: it must act before torch.

The threads of a layer wait for the slowest of them. GNU OpenMP, which torch's wheels for Linux bring, lets them spin
for milliseconds before they sleep. Where another process has taken the core of one thread, the others keep their cores
busy with waiting, and an iteration takes many times as long. ``results/benchmark_threads.json`` says what sleeping soon
wins and loses. Neither the number of threads nor a result depends on it.
"""

from __future__ import annotations

import os

# What GNU OpenMP reads, once, when it is loaded: how often a thread looks before it sleeps; and in words.
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SETTING = {"GOMP_SPINCOUNT": "4000"}


def set_waiting() -> None:
    """Let the threads of this process, and of those that it starts, sleep soon, unless the user has set how they wait.

    Has no effect in a process that has imported torch.
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ.update(SETTING)


def describe_waiting() -> str:
    """What commands run with, and who says so."""
    chosen = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    words = ", ".join(f"{name}={value}" for name, value in (chosen or SETTING).items())
    return f"{words} ({'of your environment' if chosen else 'set by the commands of tools/'})"

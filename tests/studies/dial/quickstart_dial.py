"""Opening the dial of the quickstart network."""

from pathlib import Path

from ode_detect.engine.config import load_config
from ode_detect.studies.dial.dial import Dial

ROOT = Path(__file__).resolve().parents[3]


QUICKSTART = ROOT / "configs" / "quickstart.yaml"


STEPS = {"steps": [1, 2], "methods": ["euler"]}


def open_dial(overrides: list[str], folder: Path, weights: str = "", *more: str) -> Dial:
    cfg = load_config(QUICKSTART, [*overrides, *more])
    return Dial(cfg, command="dial", config_file=str(QUICKSTART), weights=weights, folder=folder)

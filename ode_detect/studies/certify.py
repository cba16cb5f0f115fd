"""The certificate of a trained network, on one picture."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from ode_detect.engine.build import build_network
from ode_detect.engine.provenance import provenance
from ode_detect.engine.run import Run
from ode_detect.engine.train import fill
from ode_detect.media.files import write_text
from ode_detect.ode import ODEBlock
from ode_detect.ode.certification.model import Report, certify_model
from ode_detect.ode.observation import calls_seen
from ode_detect.task import ConfigError


def certify_run(run: Run, *, weights: str = "", size: int | None = None) -> Report:
    """Certify the flows of a run's network and write ``certificate.json`` into ``run.folder``.

    Args:
        run: config, task, and the folder to write into.
        weights: a checkpoint; "" takes what `ode_detect.engine.train.fill` takes.
        size: side in pixels of a random picture, drawn with the config's seed; None takes the first test picture.

    Raises:
        ConfigError: the network has no flow, there is no test data set, or a size below 32.
        CheckpointError: there are no weights, or they do not fill the network.
        DatasetError: the test data is not there.
        SolveError: the network cannot be solved on the picture.
    """
    batch, picture = _example(run, size)
    model = build_network(run.cfg)
    weights, _ = fill(run, model, weights)
    if not any(isinstance(module, ODEBlock) for module in model.modules()):
        raise ConfigError(
            f"a certificate is about flows, and the network of {run.config_file} has none: MODEL.ODE.ROLE is "
            f"{run.cfg.MODEL.ODE.ROLE!r}, MODEL.BACKBONE.NAME {run.cfg.MODEL.BACKBONE.NAME!r}. Set ROLE ode, and a "
            "backbone with flows (build_ode_resnet_fpn_backbone)."
        )
    certificate = certify_model(model, batch, run=_features)
    about = {
        **provenance(run.command),
        "config": run.config_file,
        "weights": weights,
        "picture": picture,
        "model_output": "feature maps of the backbone" if hasattr(model, "backbone") else "output",
    }
    content = json.dumps({**about, **certificate.to_dict()}, indent=2, allow_nan=False)
    write_text(run.folder / "certificate.json", f"{content}\n")
    return certificate


def _example(run: Run, size: int | None) -> tuple[list[dict[str, Any]], str]:
    """A batch of one picture, and what to call it."""
    cfg = run.cfg
    if size is not None:
        if size < 32:
            raise ConfigError(f"a random picture has 32 pixels a side or more, not {size}; the coarsest stride is 32.")
        generator = torch.Generator().manual_seed(max(cfg.SEED, 0))
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        return [{"image": image, "height": size, "width": size}], f"random, {size} x {size}"
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty, so there is no test picture; name a data set, or use --random 224.")
    name = cfg.DATASETS.TEST[0]
    run.task.require([name])
    batch = next(iter(run.task.test_loader(cfg, name)))[:1]
    return batch, str(batch[0].get("file_name", f"the first of {name}"))


def _features(model: nn.Module, batch: list[dict[str, Any]]) -> Any:
    """The feature maps that the heads see; a whole detector's boxes, of varying number, cannot be compared."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return model(batch)
    with calls_seen(backbone) as calls:
        model(batch)
    return [output for _, output in calls]

"""The metrics of detection, for tables and plots."""

from __future__ import annotations

from dataclasses import replace

from ode_detect.report.metrics import PRECISION_RECALL_F1, Quantity, fraction

METRICS = (
    replace(fraction("AP"), family=True),
    fraction("AP50"),
    *(fraction(name, detail="*") for name in ("AP75", "APs", "APm", "APl")),
    *(fraction(name) for name in ("mask_AP", "mask_AP50")),
    fraction("mask_AP75", detail="*"),
    *PRECISION_RECALL_F1,
    fraction("best_f1", detail="*"),
    *(fraction(name, detail="*") for name in ("AP50_2007", "AP50_2010")),
    Quantity("best_f1_threshold", detail="*"),
)

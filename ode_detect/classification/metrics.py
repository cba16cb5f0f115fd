"""The metrics of classification, for tables and plots."""

from __future__ import annotations

from ode_detect.report.metrics import PRECISION_RECALL_F1, Quantity, fraction

# A good classifier is wrong in less than one picture of a hundred: two digits of a percent.
METRICS = (
    fraction("error", digits=2, better="less"),
    fraction("top1", "top-1", digits=2),
    fraction("top1_half_step", "top-1, half the step", digits=2),
    fraction("top1_other_method", "top-1, other method", digits=2),
    fraction("top5", "top-5", digits=2),
    fraction("accuracy", digits=2),
    *PRECISION_RECALL_F1,
    fraction("ece", "ECE", digits=2, better="less"),
    # Of the test set's own pictures neither more nor fewer should be unfamiliar than were meant to be.
    fraction("unfamiliar", better="", detail="*"),
    Quantity("nll", "NLL", better="less", detail="*"),
)

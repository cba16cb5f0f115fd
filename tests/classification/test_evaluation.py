from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ode_detect.classification import answers as report
from ode_detect.classification.answers import Answers
from ode_detect.classification.evaluation import BINS, ClassificationEvaluator, build_evaluator, metrics, protocol
from ode_detect.classification.scores import ClassificationScores
from ode_detect.engine.config import add_ode_config
from ode_detect.media.errors import DatasetError

NAMES = [f"class {index}" for index in range(7)]


def some_logits(count: int = 400, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Right in about two of three pictures; class 6 does not occur, and class 5 is never predicted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes - 1, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2.0
    logits[:, 5] -= 50
    return logits, labels


def evaluated(
    logits: torch.Tensor, labels: torch.Tensor, far: torch.Tensor | None = None, batch: int = 64
) -> tuple[dict[str, float], ClassificationScores, Answers]:
    kept: list[Any] = []
    evaluator = ClassificationEvaluator(NAMES[: logits.shape[1]], lambda *found: kept.extend(found))
    evaluator.reset()
    for start in range(0, len(labels), batch):
        rows = range(start, min(start + batch, len(labels)))
        outputs = [{"logits": logits[i]} | ({} if far is None else {"far": far[i]}) for i in rows]
        evaluator.process([{"label": int(labels[i])} for i in rows], outputs)
    return evaluator.evaluate()["classification"], kept[0], kept[1]


def by_hand(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The same metrics from their definitions."""
    count = logits.shape[1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    order = np.argsort(-p, axis=1)
    said, confidence = order[:, 0], p.max(axis=1)
    means: dict[str, list[float]] = {"precision": [], "recall": [], "f1": []}
    for one in range(count):
        tp, fp, fn = (((said == one) & (labels == one)).sum(), ((said == one) & (labels != one)).sum(),
                      ((said != one) & (labels == one)).sum())  # fmt: skip
        if tp + fp + fn:
            means["precision"].append(tp / max(tp + fp, 1))
            means["recall"].append(tp / max(tp + fn, 1))
            means["f1"].append(2 * tp / (2 * tp + fp + fn))
    ece = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (confidence > low) & (confidence <= low + 1 / BINS)
        if inside.any():
            ece += inside.mean() * abs(confidence[inside].mean() - (said == labels)[inside].mean())
    return {
        "error": float((said != labels).mean()),
        "top1": float((said == labels).mean()),
        "top5": float((order[:, :5] == labels[:, None]).any(axis=1).mean()),
        **{name: float(np.mean(values)) for name, values in means.items()},
        "ece": float(ece),
        "nll": float(-np.log(p[np.arange(len(labels)), labels]).mean()),
    }


def test_metrics_are_those_of_their_definitions() -> None:
    logits, labels = some_logits()
    found, measured, _ = evaluated(logits, labels)
    expected = by_hand(logits.double().numpy(), labels.numpy())
    assert found == pytest.approx(expected, abs=2e-6)
    assert 0.4 < found["top1"] < 0.8
    assert measured.metrics == found
    confusion = np.array(measured.confusion)
    assert confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=7).tolist()
    assert np.trace(confusion) / 400 == pytest.approx(found["top1"])
    assert confusion[:, 5].sum() == 0


def test_bins_of_confidence_give_the_calibration_error() -> None:
    logits, labels = some_logits()
    # So sure that float32 says 1: they belong into the last bin.
    logits[:100] *= 100
    found, measured, _ = evaluated(logits, labels)
    assert sum(count for _, _, count in measured.reliability) == 400
    gaps = [abs(confidence - right) * count / 400 for confidence, right, count in measured.reliability]
    assert len(gaps) == BINS
    assert sum(gaps) == pytest.approx(found["ece"], abs=1e-5)


def test_five_classes_have_no_top5() -> None:
    logits, labels = some_logits()
    found, measured, answers = evaluated(logits[:, :5], labels.clamp(max=4))
    assert "top5" not in found
    assert {len(classes) for classes in answers.classes} == {5}
    assert measured.names == tuple(NAMES[:5])


def test_what_was_said_about_each_picture_is_kept_in_their_order() -> None:
    logits, labels = some_logits(10)
    far = torch.arange(10) % 5 == 0
    found, _, answers = evaluated(logits, labels, far, batch=4)
    assert found["unfamiliar"] == pytest.approx(0.2)
    assert answers.far == tuple(far.tolist())
    assert answers.labels == tuple(labels.tolist())
    assert [classes[0] for classes in answers.classes] == logits.argmax(dim=1).tolist()
    top = logits.softmax(dim=1).topk(5)
    assert answers.classes == tuple(map(tuple, top.indices.tolist()))
    assert np.array(answers.probabilities) == pytest.approx(top.values.numpy())
    assert "unfamiliar" not in evaluated(logits, labels)[0]


def test_what_was_found_is_written_by_the_report(tmp_path: Path) -> None:
    logits, labels = some_logits()
    _, measured, answers = evaluated(logits, labels, labels > 2)
    scores, said = ClassificationScores(**vars(measured)), report.Answers(**vars(answers))
    scores.write(tmp_path / "scores.json")
    said.write(tmp_path / "predictions.json")
    assert ClassificationScores.read(tmp_path / "scores.json") == scores
    assert report.Answers.read(tmp_path / "predictions.json").labels == tuple(labels.tolist())
    counted = [one for one in scores.classes if one.pictures + one.predicted]
    for name in ("precision", "recall", "f1"):
        mean = np.mean([getattr(one, name) for one in counted])
        assert mean == pytest.approx(measured.metrics[name], abs=1e-6)


def test_a_new_evaluation_forgets_the_last_one() -> None:
    logits, labels = some_logits(10)
    evaluator = ClassificationEvaluator(NAMES)
    for _ in range(2):
        evaluator.reset()
        evaluator.process([{"label": int(label)} for label in labels], [{"logits": row} for row in logits])
        assert evaluator.evaluate()["classification"] == evaluated(logits, labels)[0]


def test_pictures_of_all_processes_count_in_the_order_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = some_logits(10)
    whole = evaluated(logits, labels, labels > 2)
    parts = []
    for rows in (slice(0, 6), slice(6, 10), slice(10, 10)):  # the last process has none
        monkeypatch.setattr(comm, "gather", lambda data, dst: parts.append(data) or [data])
        evaluator = ClassificationEvaluator(NAMES)
        outputs = [{"logits": row, "far": label > 2} for row, label in zip(logits[rows], labels[rows], strict=True)]
        if outputs:
            evaluator.process([{"label": int(label)} for label in labels[rows]], outputs)
            evaluator.evaluate()
    kept: list[Any] = []
    evaluator = ClassificationEvaluator(NAMES, lambda *found: kept.extend(found))
    monkeypatch.setattr(comm, "gather", lambda data, dst: [*parts, data])
    assert (evaluator.evaluate()["classification"], *kept) == whole
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_stop(broken: float) -> None:
    logits, labels = some_logits(10)
    logits[3, 2] = broken
    with pytest.raises(FloatingPointError, match="those of 1 of 10 pictures are not"):
        evaluated(logits, labels)


@pytest.mark.parametrize("label", [7, -1, None])
def test_a_label_that_is_no_class_is_told_with_its_picture(label: int | None) -> None:
    evaluator = ClassificationEvaluator(NAMES)
    example = {} if label is None else {"label": label}
    with pytest.raises(DatasetError, match=rf"one of 7 classes, 0 to 6; that of a\.png is {label}\. Correct"):
        evaluator.process([{**example, "file_name": "a.png"}], [{"logits": torch.zeros(7)}])
    with pytest.raises(DatasetError, match="picture 0 of the test set"):
        evaluator.process([example], [{"logits": torch.zeros(7)}])


def test_without_a_picture_there_is_nothing_to_evaluate() -> None:
    with pytest.raises(DatasetError, match="the test set has none"):
        ClassificationEvaluator(NAMES).evaluate()


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    return cfg


def test_an_evaluator_takes_the_names_of_the_data_set(cfg: CfgNode) -> None:
    MetadataCatalog.pop("three_animals", None)
    MetadataCatalog.get("three_animals").thing_classes = ["cat", "dog", "hen"]
    kept: list[Any] = []
    evaluator = build_evaluator(cfg, "three_animals", lambda *found: kept.extend(found))
    evaluator.process([{"label": 1}], [{"logits": torch.tensor([0.0, 3.0, 1.0])}])
    assert metrics(evaluator.evaluate())["top1"] == 1
    assert kept[0].names == kept[1].names == ("cat", "dog", "hen")
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 4
    with pytest.raises(DatasetError, match="it has 4, and three_animals has 3"):
        build_evaluator(cfg, "three_animals")


def test_the_protocol_tells_the_share_of_familiar_pictures(cfg: CfgNode) -> None:
    assert "15 equal bins" in "; ".join(protocol(cfg))
    assert "than 0.99 of familiar pictures" in "; ".join(protocol(cfg))


def test_metrics_of_a_row_are_finite() -> None:
    assert metrics({"classification": {"top1": 0.5, "nll": float("inf")}}) == {"top1": 0.5}
    assert metrics({}) == {}

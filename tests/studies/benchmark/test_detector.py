import pytest
import torch

from ode_detect.ode import FixedStep, to_ode
from ode_detect.ode.flows import flows_of
from ode_detect.studies.benchmark import detector


@pytest.fixture(scope="module")
def case():
    (case,) = detector.cases(quick=True)
    return case


def test_stock_is_beside_both_precisions_at_full_and_half_steps(case) -> None:
    assert {name: (side.role, side.cost.get("steps")) for name, side in case.sides.items()} == {
        "stock Detectron2": ("baseline", None),
        "stock Detectron2, bfloat16 autocast": ("baseline", None),
        "optimised, float32": ("ode", 5),
        "optimised, float32, half the steps of res4": ("ode", 2),
        "optimised, bfloat16": ("ode", 5),
        "optimised, bfloat16, half the steps of res4": ("ode", 2),
    }
    assert [ratio.aim for ratio in case.ratios if ratio.quantity == "latency_ms"] == [None, None, 1 / 4, 1 / 6, None]


def test_every_side_detects(case) -> None:
    for side in case.sides.values():
        (output,) = side.run()
        assert output["instances"].image_size == (64, 64)


def test_features_in_float32_differ_by_rounding_only(case) -> None:
    differences = [case.sides[f"optimised, {p}"].metrics["feature_difference"] for p in ("float32", "bfloat16")]
    # How much these random weights enlarge the rounding of bfloat16 is what the stock detector shows.
    rounding = case.sides["stock Detectron2, bfloat16 autocast"].metrics["feature_difference"]
    assert differences[0] < 1e-4 < differences[1] < 1.5 * rounding


@torch.no_grad()
def test_the_random_detector_is_in_range_and_converts_without_loss() -> None:
    stock, batch = detector.stock_detector(quick=True)
    image = stock.preprocess_image(batch).tensor
    for features in stock.backbone.bottom_up(image).values():
        assert 0.1 < float(features.std()) < 10
    proposals, _ = stock.proposal_generator(stock.preprocess_image(batch), stock.backbone(image), None)
    assert len(proposals[0]) > 20
    ours, certificate = to_ode(stock, example=batch)
    assert certificate.lossless
    (theirs,), (same,) = stock(batch), ours(batch)
    torch.testing.assert_close(same["instances"].scores, theirs["instances"].scores, rtol=0, atol=0)


def test_building_it_leaves_the_random_numbers_of_the_caller_alone() -> None:
    before = torch.random.get_rng_state()
    detector.stock_detector(quick=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_dial_is_timed_from_full_steps_down_and_turned_back() -> None:
    (case,) = detector.dial_cases(quick=True)
    assert [side.cost["steps"] for side in case.sides.values()] == [5, 3]
    backbone = case.sides["3 steps"].run.args[0]
    outputs = {name: side.run() for name, side in case.sides.items()}
    assert not torch.equal(outputs["3 steps"]["res4"], outputs["5 steps"]["res4"])
    torch.testing.assert_close(outputs["3 steps"]["res3"], outputs["5 steps"]["res3"], rtol=0, atol=0)
    solvers = {name: flow.solver for name, flow in flows_of(backbone).items()}
    assert next(s for name, s in solvers.items() if "res4" in name) == FixedStep("euler", steps=5, projection="relu")

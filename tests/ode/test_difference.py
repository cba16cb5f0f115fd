import math

import pytest
import torch

from ode_detect.ode.difference import difference, ratio

NAN, INF = math.nan, math.inf


def test_norm_and_largest_difference_by_hand():
    found = difference([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 1.0])])
    assert (found.norm, found.largest, found.expected_norm, found.expected_largest) == (3.0, 3.0, 5.0, 4.0)
    assert found.relative_norm() == 3.0 / 5.0
    assert found.relative_largest() == 3.0 / 4.0


def test_the_difference_is_of_all_tensors_together():
    exact = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    ours = [torch.tensor([3.0, 0.3]), torch.tensor([4.4])]
    assert difference(exact, ours).relative_norm() == pytest.approx(0.5 / 5.0)
    assert difference(exact, ours).relative_largest() == pytest.approx(0.4 / 4.0)
    assert difference(exact, exact).relative_norm() == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_a_tensor_is_its_own_like_in_every_dtype(dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    found = difference([tensor], [tensor.clone()])
    assert (found.norm, found.largest, found.expected_largest) == (0.0, 0.0, 11.0)


def test_another_dtype_alone_is_no_difference_and_its_rounding_is_seen():
    exact = torch.tensor([1.0, 1.0 + 2.0**-20], dtype=torch.float64)
    assert difference([exact], [exact.float()]).largest == 0.0
    assert difference([exact], [exact.bfloat16()]).largest == 2.0**-20


def test_a_difference_that_float32_would_round_away_is_seen():
    exact = torch.tensor([1.0], dtype=torch.float64)
    assert difference([exact], [exact + 2.0**-40]).norm == 2.0**-40


def test_complex_tensors_differ_in_their_imaginary_parts_too():
    found = difference([torch.tensor([3.0 + 4.0j])], [torch.tensor([3.0 + 0.0j])])
    assert (found.norm, found.largest, found.expected_norm) == (4.0, 4.0, 5.0)


@pytest.mark.parametrize(
    ("expected", "given", "largest"),
    [
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([INF, -INF], [INF, -INF], 0.0),
        ([NAN, 1.0], [0.0, 1.0], INF),
        ([0.0, 1.0], [NAN, 1.0], INF),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([NAN, 1.0], [NAN, 3.0], 2.0),
    ],
)
def test_the_largest_difference_of_values_that_are_not_finite(expected, given, largest):
    found = difference([torch.tensor(expected)], [torch.tensor(given)])
    assert found.largest == largest
    assert math.isnan(found.norm) or found.norm == INF
    assert math.isnan(found.relative_norm()) or found.relative_norm() == INF


def test_the_scale_of_a_largest_difference_is_that_of_finite_values():
    found = difference([torch.tensor([INF, NAN, 2.0])], [torch.tensor([INF, NAN, 3.0])])
    assert found.relative_largest() == 0.5


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ([torch.ones(2)], [torch.ones(3)]),
        ([torch.ones(2)], [torch.ones(2, 1)]),
        ([torch.ones(2)], [None]),
        ([None], [torch.zeros(2)]),
        ([torch.ones(2)], []),
        ([], [torch.ones(2)]),
    ],
)
def test_what_is_on_one_side_only_is_an_infinite_difference(expected, given):
    found = difference(expected, given)
    assert found.norm == found.largest == INF
    assert found.relative_norm() == found.relative_largest() == INF


def test_nothing_is_like_nothing():
    for tensors in ([], [None], [torch.zeros(0)], [torch.zeros(())]):
        found = difference(tensors, tensors)
        assert (found.norm, found.largest, found.relative_norm(), found.relative_largest()) == (0.0, 0.0, 0.0, 0.0)


def test_what_was_expected_counts_as_the_floor_at_least():
    found = difference([torch.zeros(1, dtype=torch.float64)], [torch.full((1,), 1e-3, dtype=torch.float64)])
    assert found.relative_norm() == found.relative_largest() == INF
    assert found.relative_norm(floor=0.5) == found.relative_largest(floor=0.5) == 2e-3
    assert difference([torch.tensor([4.0])], [torch.tensor([5.0])]).relative_norm(floor=0.5) == 0.25


def test_no_graph_is_made():
    weight = torch.ones(2, requires_grad=True)
    assert difference([weight * 2], [weight * 3]).largest == 1.0


def test_a_ratio_of_nothing():
    assert ratio(0.0, 0.0) == 0.0
    assert ratio(1.0, 0.0) == INF
    assert ratio(1.0, 4.0) == 0.25

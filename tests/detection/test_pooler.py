import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from ode_detect.detection.pooler import RowPooler

SCALES = [1 / 4, 1 / 8, 1 / 16]


@pytest.fixture
def features():
    torch.manual_seed(0)
    return [torch.randn(2, 6, 96 // stride, 128 // stride) for stride in (4, 8, 16)]


def some_boxes(count: int) -> Boxes:
    """Boxes of all sizes and shapes, inside, across and outside of the picture."""
    centre = torch.rand(count, 2) * torch.tensor([128.0, 96.0])
    size = torch.exp(torch.randn(count, 2) * 1.2 + 3)
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=1)
    strange = [[-40, -30, -20, -10], [120, 90, 300, 200], [10, 10, 10, 10], [0, 0, 128, 96], [5, 5, 5.5, 80]]
    return Boxes(torch.cat([boxes, torch.tensor(strange, dtype=torch.float32)]))


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("levels", [1, 3])
def test_it_is_the_pooler_of_detectron2(levels, sampling_ratio, kind, features):
    pooler = ROIPooler(7, SCALES[:levels], sampling_ratio, kind, canonical_box_size=40, canonical_level=3)
    boxes = [some_boxes(60), some_boxes(30)]
    expected = pooler(features[:levels], boxes)
    pooled = RowPooler(pooler)(features[:levels], boxes)
    assert pooled.shape == expected.shape
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=2e-5)


def test_bfloat16_and_layout(features):
    pooler, boxes = ROIPooler(3, SCALES, 2, "ROIAlignV2"), [some_boxes(20), some_boxes(9)]
    coarse = [feature.bfloat16() for feature in features]
    pooled = RowPooler(pooler)(coarse, boxes)
    assert (pooled.dtype, pooled.shape) == (torch.bfloat16, (39, 6, 3, 3))
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled.float(), pooler(features, boxes), rtol=0.02, atol=0.03)
    last = [feature.to(memory_format=torch.channels_last) for feature in features]
    assert torch.equal(RowPooler(pooler)(last, boxes), RowPooler(pooler)(features, boxes))


def test_no_boxes(features):
    pooler = RowPooler(ROIPooler(7, SCALES, 0, "ROIAlignV2"))
    none = Boxes(torch.zeros(0, 4))
    assert pooler(features, [none, none]).shape == (0, 6, 7, 7)
    assert pooler(features, [none, some_boxes(1)]).shape == (6, 6, 7, 7)


def test_other_pooling_is_refused():
    with pytest.raises(ValueError, match="is of RoIPool; keep it"):
        RowPooler(ROIPooler(7, SCALES, 0, "ROIPool"))

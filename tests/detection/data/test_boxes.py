import numpy as np
import pytest

from ode_detect.detection.data.boxes import are_corners, box_faults, form_problems


def test_faults_agree_with_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-60, 120, (500, 4))
    sizes = rng.uniform(20, 100, (500, 2))
    faults = box_faults(boxes, sizes)
    for i, ((x, y, w, h), (width, height)) in enumerate(zip(boxes.tolist(), sizes.tolist(), strict=True)):
        corners = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        assert faults.empty[i] == (w <= 0 or h <= 0)
        if not faults.empty[i]:
            outside = corners[2] <= corners[0] or corners[3] <= corners[1]
            assert faults.outside[i] == outside
            if not outside:
                wanted = (corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1])
                assert faults.clipped[i] == pytest.approx(wanted)


def photos(count: int, seed: int = 0, size: tuple[float, float] = (640, 480)) -> tuple[np.ndarray, np.ndarray]:
    """Boxes x, y, width, height of objects of many sizes anywhere in pictures, and the pictures' sizes."""
    rng = np.random.default_rng(seed)
    sizes = np.tile(np.array(size, dtype=float), (count, 1))
    shares = rng.uniform(0.05, 0.9, (count, 2))
    first = rng.uniform(0, 1, (count, 2)) * (1 - shares)
    return np.concatenate([first, shares], axis=1) * np.tile(sizes, 2), sizes


def corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def told(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, int]:
    """The forms that boxes are said to have, and how many boxes."""
    return {p.rule.split(", ", 1)[1]: len(p.where) for p in form_problems(boxes, sizes, str)}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [1, 3, 8, 50])
def test_boxes_in_pixels_are_not_taken_for_anything_else(count: int, seed: int) -> None:
    boxes, sizes = photos(count, seed)
    assert told(boxes, sizes) == {}
    assert not are_corners(boxes, sizes)


def test_large_objects_in_pictures_of_many_sizes_are_not_taken_for_corners() -> None:
    """Each fits as corners too, and its width grows with its left edge, because both grow with the picture."""
    rng = np.random.default_rng(0)
    sizes = np.repeat(rng.uniform(100, 4000, (40, 1)), 2, axis=1)
    first = rng.uniform(0, 0.2, (40, 2))
    boxes = np.concatenate([first, 0.99 - first - rng.uniform(0, 0.05, (40, 2))], axis=1) * np.tile(sizes, 2)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert told(boxes, sizes) == {}
    assert not are_corners(boxes, sizes)
    # A few that reach over the edge are boxes that reach over the edge.
    boxes[::10, 2:] *= 1.15
    assert not are_corners(boxes, sizes)


@pytest.mark.parametrize("count", [3, 8, 50])
def test_corners_are_known_by_reaching_over_the_edge(count: int) -> None:
    boxes, sizes = photos(count, seed=1)
    assert are_corners(corners(boxes), sizes)


def test_corners_of_small_objects_in_one_part_are_suspected() -> None:
    x = np.arange(8.0)
    boxes = np.stack([2 + x, 4 + 0 * x, 22 + x, 22 + 0 * x], axis=1)
    sizes = np.full((8, 2), 96.0)
    assert not are_corners(boxes, sizes)
    assert list(told(boxes, sizes).values()) == [8]
    assert "[x0, y0, x1 - x0, y1 - y0]" in form_problems(boxes, sizes, str)[0].done


def test_shares_are_known_one_by_one_and_percentages_by_all() -> None:
    boxes, sizes = photos(10)
    shares = boxes / np.tile(sizes, 2)
    mixed = np.concatenate([shares[:2], boxes[2:]])
    assert told(shares, sizes) == {"probably shares of the picture": 10}
    assert told(mixed, sizes) == {"probably shares of the picture": 2}
    assert told(100 * shares, sizes) == {"probably percentages": 10}
    assert told(np.concatenate([100 * shares[:9], boxes[9:] + 99]), sizes) == {}
    # In pictures of 100 x 100 pixels both are the same.
    assert told(100 * shares, np.full((10, 2), 100.0)) == {}
    # Shares of corners or centres, and those that VOC XML's counting from 1 has moved.
    assert told(corners(shares), sizes) == {"probably shares of the picture": 10}
    assert told(shares + np.array([-1, -1, 1, 1]), sizes) == {"probably shares of the picture": 10}

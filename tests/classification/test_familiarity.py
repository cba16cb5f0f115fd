import numpy as np
import pytest
import torch

from ode_detect.classification.familiarity import Familiarity


@pytest.fixture(scope="module")
def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of one covariance, far from round."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    means = 5 * torch.randn(3, 4, generator=generator)
    mixing = torch.tensor([[2.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0.5, 0], [0, 0, 1, 0.1]])
    return means[labels] + torch.randn(900, 4, generator=generator) @ mixing.T, labels


def test_the_distance_is_that_of_mahalanobis(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, labels = features
    one = Familiarity(classes=3, channels=4)
    one.fit(x, labels)
    a, k = x.double().numpy(), labels.numpy()
    means = np.stack([a[k == i].mean(0) for i in range(3)])
    covariance = (a - means[k]).T @ (a - means[k]) / len(a)
    covariance += 1e-2 * covariance.diagonal().mean() * np.eye(4)
    differences = a[:, None] - means
    squares = np.einsum("nki,ij,nkj->nk", differences, np.linalg.inv(covariance), differences)
    torch.testing.assert_close(one(x).double(), torch.from_numpy(np.sqrt(squares.min(1))), rtol=1e-4, atol=1e-4)


def test_the_threshold_is_that_of_the_share(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    one = Familiarity(classes=3, channels=4)
    assert not one.fitted
    one.fit(*features)
    one.calibrate(features[0], 0.9)
    assert one.fitted
    assert float((one(features[0]) <= one.threshold).float().mean()) == pytest.approx(0.9, abs=0.002)
    assert bool((one(features[0] + 100) > one.threshold).all())
    again = Familiarity(classes=3, channels=4)
    again.load_state_dict(one.state_dict())
    assert torch.equal(again(features[0]), one(features[0]))


def test_a_class_without_pictures_is_never_the_nearest(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, four = Familiarity(classes=3, channels=4), Familiarity(classes=4, channels=4)
    one.fit(*features)
    four.fit(*features)
    assert torch.equal(four(features[0]), one(features[0]))


def test_what_is_forgotten_is_not_told(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    one = Familiarity(classes=3, channels=4)
    one.fit(*features)
    one.calibrate(features[0], 0.9)
    one.forget()
    assert not one.fitted


def test_features_that_do_not_vary_are_no_error() -> None:
    one = Familiarity(classes=2, channels=4)
    one.fit(torch.ones(6, 4), torch.tensor([0, 1] * 3))
    one.calibrate(torch.ones(6, 4), 0.99)
    assert one.fitted
    assert float(one(torch.ones(1, 4))) <= float(one.threshold)


def test_features_of_a_network_that_diverged_are_an_error_that_says_so() -> None:
    broken = torch.ones(6, 4)
    broken[2, 1] = torch.nan
    with pytest.raises(FloatingPointError, match="those of 1 of 6 are not"):
        Familiarity(classes=2, channels=4).fit(broken, torch.tensor([0, 1] * 3))


def test_no_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is none"):
        Familiarity(classes=2, channels=4).fit(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))

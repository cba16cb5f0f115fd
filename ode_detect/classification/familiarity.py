"""How far a picture is from those that a classifier was trained on, by its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Added to the spread of the features, as a share of its mean: directions in which no training picture varies must not
# make every other picture infinitely far.
_SHRINKAGE = 1e-2


class Familiarity(nn.Module):
    """The Mahalanobis distance of features to the nearest class, all classes with one covariance.

    Args:
        classes: K.
        channels: D of the features.

    Attributes:
        threshold: the distance above which a picture counts as unlike the training pictures.

    Source: Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples", on last features.
    """

    means: Tensor
    whitening: Tensor
    threshold: Tensor
    _centres: Tensor

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, channels))
        self.register_buffer("whitening", torch.zeros(channels, channels))
        self.register_buffer("threshold", torch.tensor(0.0))
        # The whitened means: with 1,000 classes to compute them each time would cost as much as a ResNet-50.
        self.register_buffer("_centres", torch.zeros(classes, channels), persistent=False)

    @property
    def fitted(self) -> bool:
        """Whether it knows any training pictures."""
        return bool(self.threshold > 0)

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Take the means of the classes and the covariance within them from training pictures.

        Args:
            features: (N, D).
            labels: (N,), in 0..K - 1; a class without a picture is infinitely far from every picture.

        Raises:
            ValueError: no picture.
            FloatingPointError: features that are not finite.
        """
        if not len(features):
            raise ValueError("the distance to training pictures needs their features, and there is none.")
        spoilt = int((~features.isfinite().all(dim=1)).sum())
        if spoilt:
            raise FloatingPointError(
                f"the features of training pictures must be finite; those of {spoilt} of {len(features)} are not. The "
                "network diverged in its last iteration, or its weights are broken."
            )
        features = features.double()
        counts = torch.bincount(labels, minlength=len(self.means))
        sums = torch.zeros_like(self.means, dtype=torch.float64).index_add_(0, labels, features)
        means = sums / counts[:, None]
        centred = features - means[labels]
        covariance = centred.T @ centred / len(features)
        ridge = _SHRINKAGE * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).eps)
        covariance.diagonal().add_(ridge)
        inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
        self.means.copy_(means.nan_to_num(nan=torch.inf))
        self.whitening.copy_(inverse.T)
        self._centres = self.means @ self.whitening

    def forget(self) -> None:
        """Know no training pictures: those of other weights say nothing about these."""
        self.threshold.zero_()

    @torch.no_grad()
    def calibrate(self, features: Tensor, share: float) -> None:
        """Choose the threshold.

        Args:
            features: of pictures like the training pictures that the network was not trained on, (N, D).
            share: of them that is to count as familiar, in (0, 1).

        Raises:
            RuntimeError: no picture.
        """
        # The smallest float keeps a degenerate network, whose distances are 0, from looking as if nothing was fitted.
        distance = torch.quantile(self(features), share)
        self.threshold.copy_(distance.clamp(min=torch.finfo(torch.float32).tiny))

    def forward(self, features: Tensor) -> Tensor:
        """Distance to the nearest class in units of the spread within classes: (N, D) -> (N,); NaN of NaN."""
        known = self._centres[self.means.isfinite().all(1)]
        # Distances of near points from their difference, not from a difference of large squares.
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(features.float() @ self.whitening, known, compute_mode=exact).amin(1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if f"{prefix}means" in state_dict:  # not when other parts of a network are loaded
            self._centres = self.means @ self.whitening

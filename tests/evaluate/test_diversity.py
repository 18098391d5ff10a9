"""Diversity against closed forms."""

import numpy as np
import pytest
import torch
from PIL import Image

from fdpo_fast.evaluate.diversity import MEASURES, OfFeatures, entropy, rmse, vendi


def flat(value):
    return Image.fromarray(np.full((8, 12, 3), value, dtype=np.uint8))


def test_rmse_is_the_mean_over_pairs():
    images = [flat(0), flat(51), flat(255)]
    assert rmse(images) == pytest.approx((51 + 255 + 204) / 3 / 255)
    assert rmse([flat(9), flat(9)]) == 0


def test_vendi_counts_different_images():
    """n orthogonal features are n images, equal ones are one, k groups of equal size are k; lengths do not count."""
    assert vendi(3 * torch.eye(5)) == pytest.approx(5)
    assert vendi(torch.ones(6, 4)) == pytest.approx(1)
    assert vendi(torch.eye(3).repeat(4, 1)) == pytest.approx(3)


def test_vendi_of_two_images_in_closed_form():
    cosine = 0.6
    eigenvalues = np.array([(1 + cosine) / 2, (1 - cosine) / 2])
    expected = np.exp(-(eigenvalues * np.log(eigenvalues)).sum())
    assert vendi(torch.tensor([[1.0, 0.0], [cosine, 0.8]])) == pytest.approx(expected)


@pytest.mark.parametrize("d", [1, 3])
def test_entropy_of_a_normal_distribution(d):
    """0.5 log(2 pi e) nats a dimension, and the logarithm of a factor more where features are larger."""
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(4000, d)))
    expected = 0.5 * np.log(2 * np.pi * np.e)
    assert entropy(features) == pytest.approx(expected, abs=0.05)
    assert entropy(2.5 * features) == pytest.approx(entropy(features) + np.log(2.5))


def test_a_function_of_the_user_makes_the_features(monkeypatch):
    measure = MEASURES["vendi"](f"{__name__}:brightness", torch.device("cpu"))
    assert isinstance(measure, OfFeatures)
    assert measure([flat(255), flat(0)]) == pytest.approx(2)


def brightness(images):
    """A direction of its own for dark and for bright images."""
    return torch.tensor([[1.0, 0.0] if np.asarray(image).mean() > 127 else [0.0, 1.0] for image in images])

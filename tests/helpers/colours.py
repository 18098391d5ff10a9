"""How colours look, to whoever sees all of them and to whoever does not."""

import numpy as np

# Machado, Oliveira and Fernandes 2009, table 1, severity 1: of linear sRGB
SEEN = {
    "all": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(rgb):
    """sRGB of 0 to 255 as light."""
    share = np.asarray(rgb) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast of WCAG 2, 1 to 21."""
    dark, light = sorted(float(linear(rgb) @ TO_XYZ[1]) for rgb in (one, other))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb, eyes="all"):
    """CIE L*a*b* of sRGB, as the eyes see it."""
    x, y, z = np.clip(SEEN[eyes] @ linear(rgb), 0, 1) @ TO_XYZ.T / WHITE
    x, y, z = (np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

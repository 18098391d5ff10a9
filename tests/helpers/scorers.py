"""Scorers as a user writes them."""

import time

import numpy as np


def brightness(images, prompts, factor=1.0):
    """A scorer of a user's."""
    return [factor * np.asarray(image).mean() for image in images]


def broken(images, prompts):
    raise KeyError("no such caption")


def short(images, prompts):
    return [1.0]


def first(images, prompts):
    """A scorer of ours."""
    return [float(sum(image.getpixel((8, 8)))) for image in images]


def second(images, prompts):
    return [float(sum(image.getpixel((16, 16)))) for image in images]


def darkness(images, prompts):
    return [-score for score in brightness(images, prompts)]


def nan(images, prompts):
    return [float("nan")] * len(images)


def flat(images, prompts):
    return [1.0] * len(images)


def patient(images, prompts):
    time.sleep(0.01 * len(images))
    return brightness(images, prompts)

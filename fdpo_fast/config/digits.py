"""What an embedded base, and the pairs that it draws, are made with."""

from __future__ import annotations

from pydantic import Field

from fdpo_fast.config.section import Section


class DigitsRecipe(Section):
    """What an embedded base is made with: its pipeline, and the stated rule that ranks the pairs it draws.

    score = correct_weight * [the judge reads the digit asked for] + stroke_weight * mean ink;
    the image with the larger score + N(0, noise^2) is preferred; a gap below `tie_below` is a tie.
    """

    vae_steps: int = Field(400, ge=1, description="steps that train the VAE")
    unet_steps: int = Field(1000, ge=1, description="steps that train the UNet of `digits`")
    flow_steps: int = Field(425, ge=1, description="steps that train the transformer of `digits-flow`")
    batch: int = Field(64, ge=1, description="images a step of both")
    pairs: int = Field(1280, ge=1, description="pairs that the base draws")
    sampling_steps: int = Field(15, ge=1, description="of each image drawn")
    guidance: float = Field(2.0, ge=0, description="classifier-free, of each image drawn")
    correct_weight: float = Field(1.0, description="in the score, of the digit being the one asked for")
    stroke_weight: float = Field(4.0, description="in the score, of the mean ink")
    noise: float = Field(0.1, ge=0, description="standard deviation of what is added to a score")
    tie_below: float = Field(0.02, ge=0, description="gap of two scores that still is a tie")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, images and noise")

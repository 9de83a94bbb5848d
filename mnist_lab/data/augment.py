"""Random changes of training images, a whole batch at once on the device that trains, each image its own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Augment:
    """Moves, turns, resizes, bends and blots images, in one resampling.

    Args:
        shift: largest shift along each axis, pixels, 0 or more, before the image is turned and resized.
        rotate: largest turn either way, degrees, 0 to 180.
        scale: largest change of size, as a fraction: 0.1 gives sizes from 0.9 to 1.1; from 0 to below 1.
        elastic: standard deviation of a smooth random displacement at 7×7 points, pixels, 0 or more (after Simard,
            Steinkraus, Platt 2003). Between the points it is interpolated: over the image it is two thirds of that.
        erase: probability that a rectangle, from a tenth to four tenths of the image's height and width, becomes 0
            (Zhong et al. 2017), in [0, 1].
    """

    def __init__(
        self, shift: float = 0.0, rotate: float = 0.0, scale: float = 0.0, elastic: float = 0.0, erase: float = 0.0
    ) -> None:
        self.shift, self.rotate, self.scale, self.elastic, self.erase = shift, rotate, scale, elastic, erase

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Float32 (B, C, H, W), background 0 → the same shape, drawn anew at each call.

        Args:
            images: the batch.
            generator: of the random numbers, on the images' device.
        """
        # The precision is the network's: places in bfloat16 would be off by half a pixel in large images.
        with torch.autocast(images.device.type, enabled=False):
            return self._changed(images, generator)

    def _changed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) → the same shape and dtype."""
        n, _, height, width = images.shape
        like: Any = {"dtype": images.dtype, "device": images.device}

        def draw(*shape: int) -> Tensor:
            """Return uniform random numbers from −1 to 1."""
            return torch.rand(shape, generator=generator, **like) * 2 - 1

        if self.shift or self.rotate or self.scale or self.elastic:
            # Of each new pixel the place in the old image, in coordinates that go from −1 to 1 along both axes.
            angle, size = draw(n) * math.radians(self.rotate), 1 + draw(n) * self.scale
            cos, sin = angle.cos() / size, angle.sin() / size
            right, down = draw(2, n) * self.shift * 2
            rows = [cos, -sin * (height / width), right / width, sin * (width / height), cos, down / height]
            across, along = self._middles(width, like), self._middles(height, like)
            grid = torch.stack(
                [across.repeat(height), along.repeat_interleave(width), torch.ones_like(across).repeat(height)]
            )
            places = (torch.stack(rows, 1).view(n, 2, 3) @ grid).view(n, 2, height, width)
            if self.elastic:
                coarse = torch.randn((n, 2, 7, 7), generator=generator, **like)
                bends = self._between(along) @ coarse @ self._between(across).T
                places[:, 0].add_(bends[:, 0], alpha=2 * self.elastic / width)
                places[:, 1].add_(bends[:, 1], alpha=2 * self.elastic / height)
            places = places.permute(0, 2, 3, 1)
            images = F.grid_sample(images, places, padding_mode="zeros", align_corners=False)
        if self.erase:
            chance, *middle_and_half = torch.rand((5, n, 1, 1, 1), generator=generator, **like)
            inside = chance < self.erase
            for axis, length in ((2, height), (3, width)):
                middle, half = middle_and_half[axis - 2] * length, (0.05 + 0.15 * middle_and_half[axis]) * length
                positions = torch.arange(length, **like).view([-1 if i == axis else 1 for i in range(4)])
                inside = inside & ((positions + 0.5 - middle).abs() <= half)
            images = images.masked_fill(inside, 0.0)
        return images

    @staticmethod
    def _middles(length: int, like: Any) -> Tensor:
        """Return the centres of `length` pixels, (length,), in coordinates from −1 to 1 at the outer edges."""
        return (torch.arange(length, **like) * 2 + 1) / length - 1

    @staticmethod
    def _between(middles: Tensor) -> Tensor:
        """Return the weights of linear interpolation between 7 points from −1 to 1: (places, 7)."""
        points = torch.linspace(-1, 1, 7, dtype=middles.dtype, device=middles.device)
        return (1 - (middles[:, None] - points).abs() * 3).clamp_min(0)

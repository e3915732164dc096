"""MXFP4: 4-bit floats (E2M1) in blocks of 32 that share a power-of-two scale (E8M0), as the published experts are stored.

Value = table[nibble] · 2^(scale − 127); byte i of a block holds element 2i in its low and 2i + 1 in its high nibble.
Source: OCP Microscaling Formats specification v1.0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mxfp4Tensor:
    """A stack of matrices [..., rows, columns], columns in groups of 32 along the input dimension."""

    blocks: np.ndarray
    """uint8 [..., rows, columns / 32, 16]"""
    scales: np.ndarray
    """uint8 [..., rows, columns / 32]"""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the decoded tensor."""
        *lead, groups = self.scales.shape
        return (*lead, groups * 32)

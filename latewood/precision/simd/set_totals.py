"""What a network takes under many sets of patterns, layer by layer."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from latewood.precision.simd.machine_costs import LayerCounts, MachineConstants, cycles, loads

__all__ = ["SetTotals"]

_SLOTS: Final = (4, 8, 16)
_UJ: Final = 1e-6


class SetTotals:
    """Sums over the layers of a network, for each of n sets of patterns.

    Args:
        number: of sets.
        constants: of the machine.
    """

    def __init__(self, number: int, constants: MachineConstants) -> None:
        self._constants = constants
        self._granule_energy = [
            elements * (constants.multiply(p) + constants.add(2 * p + 4))
            for p, elements in zip((4, 2, 1), _SLOTS, strict=True)
        ]
        self.vectors, self.promoted, self.weight_bits = (
            np.zeros(number, dtype=np.int64) for _ in range(3)
        )
        self.cycles, self.compute_uj, self.memory_uj, self.error = (
            np.zeros(number) for _ in range(4)
        )

    def add(
        self,
        layer: LayerCounts,
        vectors: NDArray[np.int64],
        g4: NDArray[np.int64],
        g2: NDArray[np.int64],
        curvature: float,
    ) -> None:
        """Adds a layer.

        Args:
            layer: its size.
            vectors: (n,) registers of one dot product.
            g4: (n,) granules of 4-bit elements in them.
            g2: (n,) granules of 2-bit elements.
            curvature: (h) of the loss.
        """
        n4, n2, n1 = layer.counts
        constants, times = self._constants, layer.outputs * layer.positions
        g1 = 8 * vectors - g4 - g2
        from2 = np.maximum(0, n2 - 8 * g2)
        from1 = np.maximum(0, n1 - 16 * g1)
        from1_to2 = np.minimum(from1, np.maximum(0, 8 * g2 - n2))
        from1_to4 = from1 - from1_to2
        bits = 4 * n4 + 2 * n2 + n1 + 2 * from2 + from1_to2 + 3 * from1_to4
        # Squares of the noise's half-width, 4^(1 - p), fall with each promotion.
        noise = n4 / 64 + n2 / 4 + n1
        noise = (
            noise - from2 * (1 / 4 - 1 / 64) - from1_to2 * (1 - 1 / 4) - from1_to4 * (1 - 1 / 64)
        )
        e4, e2, e1 = self._granule_energy
        compute = e4 * g4 + e2 * g2 + e1 * g1 + constants.add32 * vectors
        loaded = vectors * float(loads(layer.outputs, layer.positions, constants))
        self.vectors += vectors * times
        self.promoted += (from2 + from1) * layer.outputs
        self.weight_bits += bits * layer.outputs
        self.cycles += cycles(vectors, layer.outputs, layer.positions, constants)
        self.compute_uj += _UJ * times * compute
        weights = bits * float(layer.outputs) / 64 * constants.dram
        self.memory_uj += _UJ * (loaded * 2 * constants.sram + weights)
        self.error += curvature / 6 * layer.outputs * noise

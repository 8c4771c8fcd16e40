"""Published constants of crossbars and their periphery: every figure of the cost model is here.

ISAAC's, for an array of 128 x 128 cells of 2 bits and a cycle of 100 ns (Shafiee et al., "ISAAC: A
Convolutional Neural Network Accelerator with In-Situ Analog Arithmetic in Crossbars", ISCA 2016).
The same figures stand in PUMA's simulator, and those of the ADC and the DAC in MNSIM 2.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["ISAAC", "DeviceConstants"]


@dataclass(frozen=True)
class DeviceConstants:
    """What the parts of an array cost.

    Args:
        rows: of the array that the figures are of.
        columns: of it.
        cycle_ns: time in which an array reads one bit of every input, nanoseconds.
        read_pj: of reading the whole array, picojoules a cycle.
        dac_pj: of a 1-bit DAC, a row and a cycle.
        adc_pj: of a conversion of 8 bits, a column and a cycle.
        hold_pj: of a sample-and-hold, a column and a cycle.
        shift_add_pj: of shift-and-add, an array and a cycle.
        array_mm2: area of the cells, square millimetres.
        dac_mm2: of a DAC.
        adc_mm2: of the ADC of an array.
        shift_add_mm2: of shift-and-add.
    """

    rows: int
    columns: int
    cycle_ns: float
    read_pj: float
    dac_pj: float
    adc_pj: float
    hold_pj: float
    shift_add_pj: float
    array_mm2: float
    dac_mm2: float
    adc_mm2: float
    shift_add_mm2: float

    def energy_pj(self, rows: int, columns: int) -> float:
        """Energy of an array of another size for one cycle.

        Args:
            rows: of the array.
            columns: of the array.
        """
        share = rows * columns / (self.rows * self.columns)
        per_column = self.adc_pj + self.hold_pj
        return self.read_pj * share + self.dac_pj * rows + per_column * columns + self.shift_add_pj

    def area_mm2(self, rows: int, columns: int) -> float:
        """Area of an array of another size with its periphery.

        Args:
            rows: of the array.
            columns: of the array.
        """
        share = rows * columns / (self.rows * self.columns)
        periphery = self.dac_mm2 * rows + self.adc_mm2 + self.shift_add_mm2
        return self.array_mm2 * share + periphery


ISAAC: Final = DeviceConstants(
    rows=128,
    columns=128,
    cycle_ns=100.0,
    read_pj=30.0,  # 0.3 mW
    dac_pj=3.896875e-6 * 1e5,  # 3.896875 uW
    adc_pj=2.0 / 1.28,  # 2 mW at 1.28 GS/s
    hold_pj=9.7e-9 * 1e5,  # 9.7 nW
    shift_add_pj=5.0,  # 0.05 mW
    array_mm2=2.5e-5,
    dac_mm2=1.67e-7,
    adc_mm2=1.2e-3,
    shift_add_mm2=6e-5,
)
"""An array of 128 x 128 cells of 2 bits, with 1-bit DACs and an 8-bit ADC for its columns."""

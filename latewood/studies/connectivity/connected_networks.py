"""What lies on the straight line between two networks, as tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from latewood.spectra import Agreement, Connection
from latewood.terminal.tables import Row

__all__ = ["AS_THEY_ARE", "PERMUTED", "WHOLE", "Connected"]

AS_THEY_ARE, PERMUTED, WHOLE = "as they are", "permuted", "whole"
UNCHANGED = (AS_THEY_ARE, WHOLE)


@dataclass(frozen=True)
class Connected:
    """Two networks and the line between them.

    Args:
        first: what the first is called.
        second: what the second is called.
        task: the data that they were scored on.
        lines: scores along the line, by the order of the second network's channels: "as they are",
            and "permuted" if asked for.
        agreements: of the singular vectors of each weight, likewise.
        fraction: share of the singular values that truncated networks keep; None without them.
        truncated: scores of these along the line, by order as well.
    """

    first: str
    second: str
    task: str
    lines: dict[str, Connection]
    agreements: dict[str, dict[str, Agreement]]
    fraction: float | None = None
    truncated: dict[str, Connection] = field(default_factory=dict)

    def walks(self) -> Iterator[tuple[str, str, Connection]]:
        """Every line: the order of the channels, the part of the spectra, the scores."""
        for order, line in self.lines.items():
            yield order, WHOLE, line
        for order, line in self.truncated.items():
            yield order, f"top {self.fraction:g}", line

    def path_rows(self) -> list[Row]:
        """One row per position on the line, with the score of every kind there."""
        alphas = next(iter(self.lines.values())).alphas
        return [
            {"alpha": alpha}
            | {
                _column(name, order, spectra): values[position]
                for order, spectra, line in self.walks()
                for name, values in line.scores.items()
            }
            for position, alpha in enumerate(alphas)
        ]

    def barrier_rows(self) -> list[Row]:
        """One row per score, order of the channels and part of the spectra, with both barriers."""
        return [
            {
                "score": name,
                "channels": order,
                "spectra": spectra,
                "barrier": line.barrier(name),
                "between the ends": line.barrier_interior(name) if len(line.alphas) > 2 else None,
            }
            for order, spectra, line in self.walks()
            for name in line.scores
        ]

    def agreement_rows(self) -> list[Row]:
        """One row per weight; of one with several matrices the mean."""
        names = self.agreements[AS_THEY_ARE]
        return [
            {
                "weight": name,
                "random": agreement.baseline,
                **{
                    _column("agreement", order): float(agreements[name].score.mean())
                    for order, agreements in self.agreements.items()
                },
            }
            for name, agreement in names.items()
        ]

    def rows(self) -> list[Row]:
        """Everything as one long table."""
        heights = [
            _long(kind, row["score"], row["channels"], row["spectra"], row[kind])
            for row in self.barrier_rows()
            for kind in ("barrier", "between the ends")
        ]
        return [
            *(
                _long("score", name, order, spectra, value, alpha)
                for order, spectra, line in self.walks()
                for name, values in line.scores.items()
                for alpha, value in zip(line.alphas, values, strict=True)
            ),
            *heights,
            *(
                _long(kind, name, order, WHOLE, value)
                for order, agreements in self.agreements.items()
                for name, agreement in agreements.items()
                for kind, value in (
                    ("agreement", float(agreement.score.mean())),
                    ("random agreement", agreement.baseline),
                )
            ),
        ]


def _column(name: str, order: str, spectra: str = WHOLE) -> str:
    return ", ".join([name, *(part for part in (order, spectra) if part not in UNCHANGED)])


def _long(
    kind: str, name: object, order: object, spectra: object, value: object, alpha: object = None
) -> Row:
    about = {"kind": kind, "name": name, "channels": order, "spectra": spectra}
    return about | {"alpha": alpha, "value": value}

"""The potentials that gradient flow on diagonal networks minimises among all interpolants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.regimes.hypentropy import hyperbolic_map, inverse_map, scalar_potential

__all__ = ["Link", "Numbers", "finite_matrix", "numbers", "potential", "potential_gradient"]

Numbers = float | Sequence[float] | Tensor
"""One number, or a sweep over several: a sequence or a tensor of any shape."""

_SMALLEST_SCALE = 1e-290


def numbers(name: str, value: Numbers, *, least: float, open_end: bool = False) -> Tensor:
    """One number or a sweep as a float64 tensor, refused below its least.

    Args:
        name: of the argument, for errors.
        value: what was given.
        least: smallest value allowed.
        open_end: whether ``least`` itself is refused.

    Raises:
        RequestError: it is no number, not finite, or too small.
    """
    expected = f"a finite number {'above' if open_end else 'of at least'} {least:g}, or several"
    if isinstance(value, bool | str):
        raise invalid(name, value, expected)
    try:
        values = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid(name, value, expected) from error
    wrong = ~torch.isfinite(values) | (values <= least if open_end else values < least)
    if values.numel() == 0 or bool(wrong.any()):
        raise invalid(name, float(values[wrong][0]) if values.numel() else value, expected)
    return values


def finite_matrix(name: str, value: Tensor, dimensions: int) -> Tensor:
    """A tensor in float64 on the CPU, refused unless it is real, finite and not empty.

    Args:
        name: of the argument, for errors.
        value: what was given: a tensor, an array or nested lists.
        dimensions: how many it must have.

    Raises:
        RequestError: it is something else.
    """
    expected = f"finite real numbers in {dimensions} dimensions, none of them empty"
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid(name, type(value).__name__, expected) from error
    if tensor.is_complex() or tensor.ndim != dimensions or tensor.numel() == 0:
        raise invalid(name, (tuple(tensor.shape), tensor.dtype), expected)
    tensor = tensor.to("cpu", torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise invalid(name, "values that are not finite", expected)
    return tensor


@dataclass(frozen=True)
class Link:
    r"""How the predictor at the end of gradient flow follows from the dual variables, per weight.

    For depth 2 it is b = 2 k sinh(z + c), above b = k h_D(t z), with z = X^T nu.

    Args:
        depth: (m, 1), D of each of m problems; all are 2 or all are above.
        scale: (m, d), k.
        tilt: (m, d), t.
        offset: (m, d), c, zero unless the start is biased.
    """

    depth: Tensor
    scale: Tensor
    tilt: Tensor
    offset: Tensor

    @classmethod
    def of(cls, depth: Tensor, alpha: Tensor, shape: Tensor) -> Link:
        """Of the unbiased start alpha * shape, from (m, 1), (m, 1) and (m, d) or (d,)."""
        start = alpha * shape
        scale = start**depth
        if bool((scale < _SMALLEST_SCALE).any()) or not bool(torch.isfinite(scale).all()):
            raise invalid(
                "alpha", float(alpha.min()), "alpha ** depth that float64 can hold, above 1e-290"
            )
        tilt = torch.broadcast_to(shape, start.shape) ** (depth - 2)
        return cls(depth, scale, tilt, torch.zeros_like(start))

    @property
    def shallow(self) -> bool:
        """Whether the depth is 2."""
        return bool(self.depth[0, 0] == 2)

    @property
    def p(self) -> Tensor:
        """The exponent D / (D - 2) of h_D."""
        return self.depth / (self.depth - 2)

    def take(self, rows: Tensor) -> Link:
        """Some of the problems."""
        return Link(self.depth[rows], self.scale[rows], self.tilt[rows], self.offset[rows])

    def predictor(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The weights b and db/dz, both (m, d), at z, which for depths above 2 is within bounds."""
        if self.shallow:
            shifted = z + self.offset
            return 2 * self.scale * torch.sinh(shifted), 2 * self.scale * torch.cosh(shifted)
        s = z * self.tilt
        p, size = self.p, s.abs()
        beta = self.scale * hyperbolic_map(size, -torch.log1p(-size), self.depth) * torch.sign(s)
        steep = torch.exp(-(p + 1) * torch.log1p(-size)) + torch.exp(-(p + 1) * torch.log1p(size))
        return beta, self.scale * self.tilt * p * steep

    def longest_step(self, z: Tensor, step: Tensor, growth: float) -> Tensor:
        """(m,), the part of a step that changes no factor of any weight by more than e^growth."""
        if self.shallow:
            limits = growth / step.abs().clamp_min(1e-300)
        else:
            s, move = z * self.tilt, step * self.tilt
            room = torch.where(move > 0, 1 - s, 1 + s) * -torch.expm1(-growth / self.p)
            limits = room / move.abs().clamp_min(1e-300)
        return limits.amin(-1).clamp_max(1.0)

    def gradient(self, beta: Tensor) -> Tensor:
        """The gradient of the potential, (m, d): the z at which the predictor is ``beta``."""
        if self.shallow:
            return torch.asinh(beta / (2 * self.scale)) - self.offset
        depth = torch.broadcast_to(self.depth, beta.shape)
        s, _ = inverse_map((beta / self.scale).abs(), depth)
        return s * torch.sign(beta) / self.tilt

    def potential(self, beta: Tensor) -> Tensor:
        """(m,), the potential, zero at zero."""
        each = self.scale / self.tilt * scalar_potential(beta / self.scale, self.depth)
        return (each - self.offset * beta).sum(-1)

    def final_weights(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """The weights w_+ and w_- at the predictor ``beta``, both (m, d)."""
        if self.shallow:
            half = torch.asinh(beta / (2 * self.scale)) / 2
            root = self.scale.sqrt()
            return root * torch.exp(half), root * torch.exp(-half)
        depth = torch.broadcast_to(self.depth, beta.shape)
        s, x = inverse_map((beta / self.scale).abs(), depth)
        start, c = self.scale ** (1 / self.depth), 1 / (self.depth - 2)
        large, small = start * torch.exp(c * x), start * torch.exp(-c * torch.log1p(s))
        up = beta >= 0
        return torch.where(up, large, small), torch.where(up, small, large)


def potential(
    beta: Tensor, *, depth: Numbers = 2.0, alpha: Numbers, shape: Numbers = 1.0
) -> Tensor:
    r"""The potential that gradient flow on a diagonal network minimises among interpolants.

    .. math::
        Q(\beta) = \alpha^2 \sum_i w_i^2 q_2\!\left(\frac{\beta_i}{\alpha^2 w_i^2}\right)
        \;(D = 2), \qquad
        Q(\beta) = \alpha^D \sum_i w_i^2 q_D\!\left(\frac{\beta_i}{(\alpha w_i)^D}\right)
        \;(D > 2)

    for the network :math:`f(x) = \langle w_+^D - w_-^D, x \rangle` that starts at
    :math:`w_+ = w_- = \alpha w`. The scalar potentials keep full precision from tiny to huge
    ratios. The potential of D just above 2 is about (D - 2) / D times that of D = 2.

    Args:
        beta: (..., d), linear predictors.
        depth: D, any real number of at least 2; several broadcast with the leading dimensions.
        alpha: scale of the start, above 0; several likewise.
        shape: w, its shape: one number or (d,), above 0.

    Returns:
        The potentials in float64, shape of the leading dimensions and the sweep together.

    Raises:
        RequestError: a value out of range, named.

    Source: COLT 2020 (arXiv 2002.09277), theorems 1 and 3. For D > 2 and a shape other than 1, and
    for D that is no integer, the form is derived here.
    """
    values, link, sweep = _at(beta, depth, alpha, shape)
    return link.potential(values).reshape(sweep)


def potential_gradient(
    beta: Tensor, *, depth: Numbers = 2.0, alpha: Numbers, shape: Numbers = 1.0
) -> Tensor:
    r"""The gradient of ``potential`` in beta: arcsinh(beta_i / (2 alpha^2 w_i^2)) for depth 2.

    At the limit of gradient flow it lies in the row space of the data.

    Args:
        beta: (..., d), as in ``potential``.
        depth: D.
        alpha: scale of the start.
        shape: w.

    Returns:
        (..., d), float64.

    Raises:
        RequestError: a value out of range, named.
    """
    values, link, sweep = _at(beta, depth, alpha, shape)
    return link.gradient(values).reshape(*sweep, values.shape[-1])


def _at(
    beta: Tensor, depth: Numbers, alpha: Numbers, shape: Numbers
) -> tuple[Tensor, Link, torch.Size]:
    given = torch.as_tensor(beta)
    values = finite_matrix("beta", given, given.ndim) if given.ndim else given
    if values.ndim == 0:
        raise invalid("beta", tuple(values.shape), "at least one dimension")
    depths, alphas = (
        numbers("depth", depth, least=2),
        numbers("alpha", alpha, least=0, open_end=True),
    )
    weights = start_shape(shape, values.shape[-1])
    try:
        sweep = torch.broadcast_shapes(values.shape[:-1], depths.shape, alphas.shape)
    except RuntimeError as error:
        raise invalid(
            "alpha", tuple(alphas.shape), f"a shape that broadcasts with {tuple(values.shape[:-1])}"
        ) from error
    flat = values.expand(*sweep, -1).reshape(math.prod(sweep), -1)
    depth_rows = depths.expand(sweep).reshape(-1, 1)
    alpha_rows = alphas.expand(sweep).reshape(-1, 1)
    if bool((depth_rows == 2).all()) or bool((depth_rows > 2).all()):
        return flat, Link.of(depth_rows, alpha_rows, weights), sweep
    raise invalid("depth", depths.tolist(), "depths that are all 2, or all above 2")


def start_shape(shape: Numbers, size: int) -> Tensor:
    """The shape of a start as (d,), refused unless it is one positive number or d of them."""
    weights = numbers("shape", shape, least=0, open_end=True)
    if weights.ndim > 1 or weights.numel() not in (1, size):
        raise invalid("shape", tuple(weights.shape), f"one number or {size} of them")
    return weights.expand(size)

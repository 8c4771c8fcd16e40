"""The scalar functions behind the implicit bias of diagonal networks, without cancellation."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.errors import WorkError

__all__ = ["hyperbolic_map", "inverse_map", "scalar_potential"]

_MOST_ITERATIONS = 200


def scalar_potential(ratio: Tensor, depth: Tensor) -> Tensor:
    r"""The potential of one weight, of depth 2 or above.

    .. math::
        q_2(z) = 2 - \sqrt{4 + z^2} + z \operatorname{arcsinh}(z/2), \qquad
        q_D(z) = |z||s| - \tfrac{D-2}{2}\left[(1-|s|)^{-2/(D-2)} + (1+|s|)^{-2/(D-2)} - 2\right]

    with s = ``inverse_map(z)``, in forms that do not cancel. It is even, and zero at zero.

    Args:
        ratio: z, any shape, float64.
        depth: D, broadcast with it.

    Returns:
        The shape of both together; relative error below 1e-14 for \|z\| from 1e-10 to 1e10.

    Source: COLT 2020 (arXiv 2002.09277), theorems 1 and 3; the closed form for D > 2 is derived.
    """
    size, depth = torch.broadcast_tensors(ratio.abs(), depth)
    shallow = depth == 2
    two: Tensor = size * torch.asinh(size / 2) - size * (
        size / (2 + torch.hypot(size, size.new_tensor(2)))
    )
    if bool(shallow.all()):
        return two
    deep = torch.where(shallow, 3.0, depth)
    s, x = inverse_map(size, deep)
    c = 2 / (deep - 2)
    plus = c * torch.log1p(s)
    both = torch.where(s < 0.5, -c * torch.log1p(-s * s), c * (x - torch.log1p(s)))
    bracket = torch.exp(plus) * torch.expm1(both) + 4 * torch.sinh(plus / 2) ** 2
    return torch.where(shallow, two, size * s - bracket / c)


def hyperbolic_map(s: Tensor, x: Tensor, depth: Tensor) -> Tensor:
    r"""h_D(s) = (1-s)^{-p} - (1+s)^{-p} with p = D / (D - 2), D above 2.

    Args:
        s: in [0, 1).
        x: -log(1 - s), which keeps what is lost of 1 - s as s nears 1.
        depth: D, broadcast with both.
    """
    p = depth / (depth - 2)
    return torch.expm1(p * x) - torch.expm1(-p * torch.log1p(s))


def inverse_map(size: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Where ``hyperbolic_map`` takes a value, for values of at least 0, by safeguarded Newton.

    Args:
        size: the values, float64.
        depth: D above 2, of the same shape.

    Returns:
        s in [0, 1] and x = -log(1 - s), of that shape.

    Raises:
        WorkError: it does not converge, which no finite value is known to cause.
    """
    p = depth / (depth - 2)
    low, high = torch.zeros_like(size), torch.log1p(size) / p
    # For large values the upper end is nearly the answer, for small ones half of it is.
    x = torch.where(size < 1, high / 2, high)
    for _ in range(_MOST_ITERATIONS):
        s = -torch.expm1(-x)
        excess = hyperbolic_map(s, x, depth) - size
        slope = p * torch.exp(p * x) + p * torch.exp(-(p + 1) * torch.log1p(s) - x)
        high = torch.where(excess > 0, x, high)
        low = torch.where(excess > 0, low, x)
        newton = x - excess / slope
        # The bracket's ends are among the answers: for tiny values all three are neighbours.
        inside = (newton >= low) & (newton <= high)
        after = torch.where(inside, newton, (low + high) / 2)
        settled = (after - x).abs() <= 4.5e-16 * x
        x = after
        if bool(settled.all()):
            return -torch.expm1(-x), x
    # What flips between two neighbouring numbers has converged too.
    if bool(((after - x).abs() <= 1e-14 * x).all()) and bool(torch.isfinite(x).all()):
        return -torch.expm1(-x), x
    raise WorkError(f"the inverse of h_D did not converge for values up to {size.max():.3g}")

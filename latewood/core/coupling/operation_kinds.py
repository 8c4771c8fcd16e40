"""Operations by what they do to the scale and sign of activations: norms, nonlinearities, sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latewood.core.coupling.elementwise_rules import ELEMENTWISE_NAMES

__all__ = [
    "ACTIVATIONS",
    "BOUNDED",
    "ELEMENTWISE",
    "GATES",
    "MULTIPLICATIONS",
    "NORMS",
    "REDUCTIONS",
    "SELF_GATES",
    "SPLITS",
]

NORMS: Final = frozenset(
    ["batch_norm", "group_norm", "instance_norm", "layer_norm", "normalize", "rms_norm"]
)
"""Operations that divide by a measure of what they read."""

_FUNCTIONS: Final = """
    abs acos asin atan atan2 celu clamp clamp_max clamp_min clip cos cosh elu erf erfc exp exp2
    expm1 float_power gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log log10 log1p
    log2 logaddexp logit logsigmoid maximum minimum mish pow prelu reciprocal relu relu6 rpow
    rrelu rsqrt selu sigmoid silu sin sinc sinh softplus softshrink softsign special_expit sqrt
    square tan tanh tanhshrink threshold xlogy eq ge gt le lt ne sign sgn
""".split()  # noqa: SIM905

ACTIVATIONS: Final = frozenset([*_FUNCTIONS, "softmax", "log_softmax", "softmin", "logsumexp"])
"""Nonlinear functions, by the name under which the layer in front of them has them."""

BOUNDED: Final = frozenset(
    [
        "hardsigmoid",
        "hardtanh",
        "sigmoid",
        "softmax",
        "softmin",
        "softsign",
        "special_expit",
        "tanh",
        "unknown",
    ]
)
"""Functions behind which the scale of what they read is lost."""

ELEMENTWISE: Final = frozenset([*ELEMENTWISE_NAMES, "prelu"])
"""Functions that make each element from those at its place."""

MULTIPLICATIONS: Final = frozenset(
    [
        "div",
        "divide",
        "imul",
        "itruediv",
        "mul",
        "multiply",
        "rdiv",
        "rmul",
        "rtruediv",
        "true_divide",
        "truediv",
    ]
)

REDUCTIONS: Final = frozenset(
    ["linalg_vector_norm", "mean", "norm", "std", "sum", "var", "var_mean", "vector_norm"]
)
"""Operations whose result, dividing what it was made of, makes a norm."""

SPLITS: Final = frozenset(
    ["chunk", "getitem", "index_select", "narrow", "select", "split", "split_with_sizes", "unbind"]
)

SELF_GATES: Final[Mapping[frozenset[str], str]] = {
    frozenset(): "square",
    frozenset({"sigmoid"}): "silu",
    frozenset({"erf"}): "gelu",
    frozenset({"pow", "tanh"}): "gelu",
    frozenset({"square", "tanh"}): "gelu",
    frozenset({"softplus", "tanh"}): "mish",
    frozenset({"abs"}): "softsign",
    frozenset({"relu"}): "square",
}
"""What a product of an element with functions of itself is, by those functions."""

_LSTM: Final = ("sigmoid", "sigmoid", "tanh", "sigmoid")
_GRU: Final = ("sigmoid", "sigmoid", "tanh")

GATES: Final[Mapping[str, tuple[str, ...]]] = {
    f"{kind}{suffix}": functions
    for kind, functions in (
        ("lstm", _LSTM),
        ("gru", _GRU),
        ("rnn_tanh", ("tanh",)),
        ("rnn_relu", ("relu",)),
    )
    for suffix in ("", "_cell")
}
"""Functions of a recurrent layer's gates, in the order of its rows."""

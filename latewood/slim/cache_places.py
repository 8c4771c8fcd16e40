"""Places that a removed decoder block still takes in a cache of keys and values.

Generation asks the first layer of a cache how long it is, whichever layers are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Final

from torch import Tensor

__all__ = ["cached_layers", "keep_places"]

_LAYER: Final = "layer_idx"
"""What transformers calls a layer's number in the cache."""


def cached_layers(facts: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers under which a module and those inside it are in a cache, ascending.

    Args:
        facts: plain attributes by name, and namespaces with those of submodules.
    """
    return tuple(sorted(set(_numbers(facts))))


def _numbers(facts: Mapping[str, Any]) -> Iterator[int]:
    for name, value in facts.items():
        if name == _LAYER and type(value) is int:
            yield value
        elif isinstance(value, SimpleNamespace):
            yield from _numbers(vars(value))


def keep_places(layers: Iterable[int], inputs: Tensor, arguments: Iterable[Any]) -> None:
    """Has the caches among some arguments grow by the positions that a module was given.

    One key and one value of a single number a position tell the length, and that a state is there.

    Args:
        layers: numbers of the module's layers in a cache.
        inputs: what the module was given, (batch, positions, channels).
        arguments: whatever else it was given.
    """
    if inputs.ndim != 3:
        return
    for argument in arguments:
        cache = getattr(argument, "self_attention_cache", argument)
        if not callable(getattr(cache, "update", None)) or not hasattr(cache, "get_seq_length"):
            continue
        for number in layers:
            known = getattr(cache, "layers", ())
            layer = known[number] if number < len(known) else None
            states = getattr(layer, "has_previous_state", None)
            if isinstance(states, dict):
                states.update(dict.fromkeys(states, True))
            if layer is None or hasattr(layer, "keys"):
                place = inputs.new_zeros(inputs.shape[0], 1, inputs.shape[1], 1)
                cache.update(place, place, number)

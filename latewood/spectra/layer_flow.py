"""Which weights read what which others wrote, watched while the model runs once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from latewood.core.coupling import ChannelPlan, Role, trace_channels
from latewood.core.coupling.trace import layer_tensors, run_model
from latewood.core.coupling.traced_call import tensors_in
from latewood.core.modes import attributes_restored, undisturbed, unfused
from latewood.spectra.layer_pairs import LayerPair
from latewood.spectra.layer_stages import Stage, Writer, stage_of
from latewood.spectra.matrices.weights import spectral_parameters

__all__ = ["watched_pairs"]

_PRODUCTS: Final = frozenset({"matmul", "rmatmul", "mm", "bmm", "baddbmm", "addbmm", "einsum"})
_CONTRACTIONS: Final = _PRODUCTS | {
    *("linear", "bilinear", "addmm", "addmv", "mv", "tensordot", "grouped_mm", "embedding"),
    *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward"),
    *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
}
"""Operations with a weight whose output its rows make."""
_ADDITIONS: Final = frozenset({"add", "iadd", "radd", "sub", "isub", "rsub"})

Writers = frozenset[Writer]


@dataclass(frozen=True)
class _Origin:
    """Where the channels of a tensor come from.

    Args:
        writers: the weights that wrote them last.
        behind: names of all weights that it depends on.
        scores: the queries' and the keys' writers of a product that no softmax has followed yet.
    """

    writers: Writers
    behind: frozenset[str]
    scores: tuple[tuple[Writers, Writers], ...] = ()


def watched_pairs(model: nn.Module, example_inputs: Any) -> list[LayerPair]:
    """The pairs of weights with no other between them, in the order in which they were met.

    Pairs whose second reads the channels in another order than the first writes them, or among
    others, as after a concatenation, are left out, as the model's channel plan tells.

    Args:
        model: any module.
        example_inputs: see ``trace_channels``.

    Raises:
        RequestError: the example does not reach any weight.
    """
    plan = trace_channels(model, example_inputs)
    wanted = {id(selected.stored) for selected in spectral_parameters(model)}
    with parametrize.cached(), undisturbed(model), unfused(), attributes_restored(model):
        used, stages = {}, {}
        for name, (module, kind) in layer_tensors(model):
            tensor = getattr(module, kind)
            if tensor.ndim > 1 and kind not in module._buffers and _is_wanted(module, kind, wanted):
                used[name] = tensor
                stage = stage_of(model, module, name.removesuffix(kind))
                if stage is not None:
                    stages[name] = stage
        watcher = _Watcher(used, stages)
        with watcher:
            run_model(model, example_inputs)
    channels = _Channels(plan)
    met = dict.fromkeys(map(watcher.resolved, watcher.pairs))
    return [pair for candidate in met for pair in channels.meeting(candidate)]


def _is_wanted(module: nn.Module, kind: str, wanted: Set[int]) -> bool:
    if parametrize.is_parametrized(module, kind):
        return True
    return id(module.get_parameter(kind)) in wanted


class _Watcher(TorchFunctionMode):
    """Follows, through every operation, which weights wrote what a tensor holds.

    Args:
        weights: as the layers compute with them, by name.
        stages: of the weights whose layer has several.

    Attributes:
        pairs: what was met so far.
    """

    def __init__(self, weights: Mapping[str, Tensor], stages: Mapping[str, Stage]) -> None:
        super().__init__()
        self.pairs: dict[LayerPair, None] = {}
        self._names = {id(weight): name for name, weight in weights.items()}
        self._stages = stages
        self._parts = WeakIdKeyDictionary()
        self._of = WeakIdKeyDictionary()
        self._fused: set[str] = set()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        output = function(*args, **named)
        name = getattr(function, "__name__", "").strip("_")
        target = args[0] if name == "setitem" else output
        results = [tensor for tensor in tensors_in(target) if tensor.is_floating_point()]
        if not results:
            return output
        given = list(tensors_in((args, named)))
        weights = list(dict.fromkeys(n for n in map(self._weight, given) if n is not None))
        origins = [origin for tensor in given if (origin := self._of.get(tensor)) is not None]
        if weights and not origins and name not in _CONTRACTIONS:
            if len(weights) == 1:
                for result in results:
                    self._parts[result] = weights[0]
            return output
        origin = self._origin(name, args, named, weights, origins)
        if origin is not None:
            for result in results:
                self._of[result] = origin
        return output

    def resolved(self, pair: LayerPair) -> LayerPair:
        """A pair whose part is known now that all was seen: values of a fused projection."""
        if pair.part == "" and pair.outputs in self._fused and pair.inputs != pair.outputs:
            return replace(pair, part="value")
        return pair

    def _weight(self, tensor: Tensor) -> str | None:
        """The weight that a tensor is, or a part or another form of."""
        name = self._names.get(id(tensor))
        if name is None:
            name = self._parts.get(tensor)
        if name is None and tensor._base is not None:
            name = self._names.get(id(tensor._base))
        return name

    def _origin(
        self,
        name: str,
        args: tuple[Any, ...],
        named: Mapping[str, Any],
        weights: Sequence[str],
        origins: Sequence[_Origin],
    ) -> _Origin | None:
        if weights and name in _CONTRACTIONS:
            return self._read(weights, origins)
        if name == "scaled_dot_product_attention":
            return self._attended(args, named)
        if weights and name in _ADDITIONS:
            # Such as a table of positions.
            tables: Writers = frozenset((weight, "") for weight in weights)
            origins = [*origins, _Origin(tables, frozenset(weights))]
        if not origins:
            return None
        behind = frozenset().union(*(origin.behind for origin in origins))
        scores = tuple(dict.fromkeys(pair for origin in origins for pair in origin.scores))
        if name == "softmax":
            # Of the channels nothing is left: each number compares a query with a key.
            for queries, keys in scores:
                self._score(queries, keys)
            return _Origin(frozenset(), behind)
        written = [origin for origin in origins if origin.writers]
        if name in _PRODUCTS and len(written) == 2 and not weights:
            both = written[0].writers, written[1].writers
            return _Origin(frozenset(), behind, (*scores, both))
        if name in _PRODUCTS and len(origins) == 2 and len(written) == 1 and not weights:
            return _Origin(_as_values(written[0].writers), behind)
        writers = frozenset().union(*(origin.writers for origin in origins))
        if name in _ADDITIONS:
            writers = frozenset(
                writer
                for writer in writers
                if not any(
                    writer[0] in origin.behind and writer not in origin.writers
                    for origin in origins
                )
            )
        return _Origin(writers, behind, scores)

    def _read(self, weights: Sequence[str], origins: Sequence[_Origin]) -> _Origin:
        """What a layer makes of what it reads."""
        stage = self._stages.get(weights[0]) or Stage([*weights], [(w, "") for w in weights])
        for origin in origins:
            for entry in stage.entries:
                for writer, part in sorted(origin.writers):
                    self.pairs.setdefault(LayerPair(writer, entry, part))
        for pair in stage.inner:
            self.pairs.setdefault(pair)
        behind = frozenset().union(*(origin.behind for origin in origins), weights)
        return _Origin(frozenset(stage.exits), behind)

    def _attended(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> _Origin | None:
        places = (("query", 0), ("key", 1), ("value", 2), ("attn_mask", 3))
        streams = {
            name: self._of.get(args[place] if place < len(args) else named.get(name))
            for name, place in places
            if (args[place] if place < len(args) else named.get(name)) is not None
        }
        if streams.get("query") and streams.get("key"):
            self._score(streams["query"].writers, streams["key"].writers)
        behind = frozenset().union(*(stream.behind for stream in streams.values() if stream))
        values = streams.get("value")
        return _Origin(frozenset() if values is None else _as_values(values.writers), behind)

    def _score(self, queries: Writers, keys: Writers) -> None:
        for query, _ in sorted(queries):
            for key, _ in sorted(keys):
                self.pairs.setdefault(LayerPair(query, key, "query-key"))
                if query == key:
                    self._fused.add(query)


def _as_values(writers: Writers) -> Writers:
    """What attention has read as values, perhaps several times."""
    return frozenset((name, part or "value") for name, part in writers)


class _Channels:
    """The channel at each place of the axes of a plan."""

    def __init__(self, plan: ChannelPlan) -> None:
        self._at: dict[tuple[str, Role], dict[int, Tensor]] = {}
        first = 0
        for group in plan:
            for member in group.members:
                axes = self._at.setdefault((member.tensor, member.role), {})
                size = int(member.indices.max()) + 1 if member.indices.numel() else 0
                places = axes.get(member.axis, torch.empty(0, dtype=torch.long))
                if len(places) < size:
                    places = torch.cat([places, places.new_full((size - len(places),), -1)])
                channels = torch.arange(first, first + group.width)[:, None]
                places[member.indices] = channels.expand(member.indices.shape)
                axes[member.axis] = places
            first += group.width

    def meeting(self, pair: LayerPair) -> list[LayerPair]:
        """A pair if the second layer reads the channels of the first in their order.

        Two pairs where it reads products of the first's first and second half.
        """
        written = self._at.get((pair.outputs, "producer"), {})
        read = self._at.get((pair.inputs, "consumer"), {})
        if pair.part or not written or not read:
            return [pair]
        # Of a tied weight one axis is read, or written, in each of its uses; gates of a recurrence
        # and what is flattened have other sizes, and are left to what compares them.
        both = [(a, b) for a in written.values() for b in read.values()]
        axes = [(a, b) for a, b in both if len(a) in (len(b), 2 * len(b))]
        if not axes:
            return [pair]
        if any(torch.equal(a, b) for a, b in axes):
            return [pair]
        if any(torch.equal(a, b.repeat(2)) for a, b in axes):
            return [replace(pair, part="gate"), replace(pair, part="up")]
        return []

"""Tracing: where each channel sits, and what refuses to change, one small model a rule."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import (
    ChannelGroup,
    ChannelPlan,
    Resized,
    slice_channels,
    trace_channels,
    verify_plan,
)
from latewood.core.selection import select_parameters
from latewood.core.transforms import attach
from latewood.errors import RequestError, WorkError


class Model(nn.Module):
    """A module from its layers and a function of them."""

    def __init__(self, forward, **layers) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            if isinstance(layer, torch.Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs)


def traced(model, *inputs):
    """The plan, checked against the model."""
    plan = trace_channels(model, inputs)
    assert verify_plan(model, plan, inputs) <= 1e-12
    return plan


def member(plan, tensor, axis, role=None):
    (found,) = [
        each
        for group in plan
        for each in group.members
        if (each.tensor, each.axis) == (tensor, axis) and role in (None, each.role)
    ]
    return found


def axes(group, role):
    return {(each.tensor, each.axis) for each in group.having(role)}


def kinds(group):
    return {barrier.kind for barrier in group.barriers}


def test_a_chain_of_linear_layers():
    model = nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 2))
    plan = traced(model, torch.randn(1, 3))
    group = plan["0"]
    assert group.width == 5
    assert axes(group, "producer") == {("0.weight", 0)}
    assert axes(group, "consumer") == {("2.weight", 1)}
    assert axes(group, "per_channel") == {("0.bias", 0)}
    assert [each.name for each in plan.free] == ["0"]
    assert kinds(plan["2"]) == {"output"}
    assert kinds(plan["0.inputs"]) == {"input"}
    assert plan["0.inputs"].barriers[0].reason == "linear in 0 reads data of fixed size"


def test_a_residual_stream_is_one_group():
    model = Model(
        lambda m, x: m.head(m.stem(x) + m.write(F.relu(m.read(m.stem(x))))),
        stem=linear(3, 4),
        read=linear(4, 6),
        write=linear(6, 4),
        head=linear(4, 2),
    )
    plan = traced(model, torch.randn(1, 3))
    assert axes(plan["stem"], "producer") == {("stem.weight", 0), ("write.weight", 0)}
    assert axes(plan["stem"], "consumer") == {("read.weight", 1), ("head.weight", 1)}


def test_a_concatenation_keeps_the_places_of_both_sides():
    model = Model(
        lambda m, x: m.head(torch.cat([m.a(x), torch.relu(m.b(x)), m.a(x)], dim=1)),
        a=linear(3, 2),
        b=linear(3, 4),
        head=linear(8, 2),
    )
    plan = traced(model, torch.randn(1, 3))
    (first,) = plan["a"].having("consumer")
    (second,) = plan["b"].having("consumer")
    assert first.indices.tolist() == [[0, 6], [1, 7]]
    assert second.indices.tolist() == [[2], [3], [4], [5]]
    assert plan.owner("head.weight", 1) == (plan["a"], plan["b"])


def test_a_flatten_gives_each_channel_its_block_of_columns():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), linear(12, 2))
    plan = traced(model, torch.randn(1, 1, 6, 6))
    (reader,) = plan["0"].having("consumer")
    assert reader.indices.tolist() == [list(range(4 * c, 4 * c + 4)) for c in range(3)]


def test_gates_in_one_tensor_belong_to_one_channel():
    def forward(m, x):
        value, gate = m.up(x).chunk(2, dim=-1)
        return m.down(value * F.silu(gate))

    plan = traced(Model(forward, up=linear(3, 10), down=linear(5, 2)), torch.randn(1, 3))
    (rows,) = plan["up"].having("producer")
    assert rows.indices.tolist() == [[c, c + 5] for c in range(5)]


def test_a_channel_gate_reads_and_writes_the_group():
    def forward(m, x):
        features = F.relu(m.conv(x))
        gate = torch.sigmoid(m.excite(F.relu(m.squeeze(features.mean((2, 3))))))
        return m.head((features * gate[:, :, None, None]).flatten(2).mean(-1))

    model = Model(
        forward,
        conv=nn.Conv2d(1, 4, 3),
        squeeze=linear(4, 3),
        excite=linear(3, 4),
        head=linear(4, 2),
    )
    plan = traced(model, torch.randn(1, 1, 6, 6))
    assert axes(plan["conv"], "producer") == {("conv.weight", 0), ("excite.weight", 0)}
    assert axes(plan["conv"], "consumer") == {("squeeze.weight", 1), ("head.weight", 1)}


def test_a_depthwise_convolution_goes_with_its_channels():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1), nn.Flatten()
    )
    plan = traced(model, torch.randn(1, 1, 8, 8))
    (depthwise, *_) = plan["0"].having("per_channel")[1:]
    assert (depthwise.tensor, depthwise.axis) == ("1.weight", 0)
    assert depthwise.indices.tolist() == [[2 * c, 2 * c + 1] for c in range(4)]
    assert ("2.weight", 1) in axes(plan["0"], "consumer")


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_grouped_convolution_changes_by_whole_groups(layer):
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), layer(6, 9, 3, groups=3), nn.ReLU(), nn.Conv2d(9, 2, 1), nn.Flatten()
    )
    plan = traced(model, torch.randn(1, 1, 6, 6))
    assert plan["0"].width == 3
    assert member(plan, "0.weight", 0).multiplicity == 2
    assert member(plan, "1.bias", 0).multiplicity == 3
    smaller = slice_channels(model, plan, {"0": [0, 2]})
    assert (model[1].groups, model[1].in_channels, model[1].out_channels) == (2, 4, 6)
    assert smaller["0"].width == 2


def test_group_norm_changes_by_whole_groups():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1), nn.Flatten())
    plan = traced(model, torch.randn(1, 1, 6, 6))
    assert plan["0"].width == 3
    slice_channels(model, plan, {"0": [1]})
    assert (model[1].num_groups, model[1].num_channels) == (1, 2)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_over_the_channels_is_a_barrier_of_its_own_kind(norm):
    model = nn.Sequential(linear(3, 4), norm(4), linear(4, 2))
    plan = traced(model, torch.randn(1, 3))
    assert kinds(plan["0"]) == {"normalised"}
    assert ("1.weight", 0) in axes(plan["0"], "per_channel")
    with pytest.raises(RequestError, match="averages over the channels"):
        slice_channels(model, plan, {"0": [0]})
    slice_channels(model, plan, {"0": [0, 1]}, allow={"normalised"})
    assert tuple(model[1].normalized_shape) == (2,)
    assert model(torch.randn(5, 3)).shape == (5, 2)


def test_instance_and_batch_norm_are_per_channel():
    model = nn.Sequential(
        nn.Conv1d(1, 4, 3),
        nn.InstanceNorm1d(4, affine=True),
        nn.PReLU(4),
        nn.BatchNorm1d(4),
        nn.Conv1d(4, 2, 1),
    )
    plan = traced(model, torch.randn(1, 1, 9))
    vectors = {each.tensor for each in plan["0"].having("per_channel")}
    assert vectors == {
        "0.bias",
        "1.weight",
        "1.bias",
        "2.weight",
        "3.weight",
        "3.bias",
        "3.running_mean",
        "3.running_var",
    }


def test_bare_parameters_and_buffers_find_their_axis():
    def forward(m, tokens):
        x = torch.cat([m.start.expand(len(tokens), 1, -1), m.embed(tokens)], dim=1)
        x = x + m.table[: x.shape[1]] + m.fixed
        return m.head(torch.tanh(x) * m.scale)

    model = Model(
        forward,
        embed=nn.Embedding(7, 4),
        start=nn.Parameter(torch.randn(1, 1, 4)),
        table=nn.Parameter(torch.randn(9, 4)),
        fixed=torch.randn(1, 1, 4),
        scale=nn.Parameter(torch.randn(4)),
        head=linear(4, 2),
    )
    plan = traced(model, torch.randint(0, 7, (1, 5)))
    assert axes(plan["embed"], "producer") == {("embed.weight", 1)}
    assert axes(plan["embed"], "per_channel") == {
        ("start", 2),
        ("table", 1),
        ("fixed", 2),
        ("scale", 0),
    }
    assert kinds(plan["embed.inputs"]) == {"lookup"}
    slice_channels(model, plan, {"embed": [3, 0]})
    assert model.table.shape == (9, 2)
    assert model.fixed.shape == (1, 1, 2)


def test_the_gates_of_an_lstm():
    model = Model(
        lambda m, x: m.head(m.lstm(x)[0]),
        lstm=nn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True),
        head=linear(10, 2),
    )
    plan = traced(model, torch.randn(1, 4, 3))
    gates = [[c, 5 + c, 10 + c, 15 + c] for c in range(5)]
    for name in ("weight_ih_l0", "weight_hh_l1_reverse", "bias_ih_l1", "bias_hh_l0_reverse"):
        assert member(plan, f"lstm.{name}", 0).indices.tolist() == gates
    assert member(plan, "lstm.weight_hh_l0", 1).indices.tolist() == [[c] for c in range(5)]
    for tensor in ("lstm.weight_ih_l1", "head.weight"):
        assert member(plan, tensor, 1).indices.tolist() == [[c, 5 + c] for c in range(5)]
    slice_channels(model, plan, {"lstm": [0, 2]})
    assert model.lstm.hidden_size == 2


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_projected_lstm_has_two_groups():
    model = Model(
        lambda m, x: m.head(m.lstm(x)[0]),
        lstm=nn.LSTM(3, 6, num_layers=2, proj_size=4),
        head=linear(4, 2),
    )
    plan = traced(model, torch.randn(5, 1, 3))
    assert sorted(group.width for group in plan.free) == [4, 6]
    (units,) = [group for group in plan.free if group.width == 6]
    slice_channels(model, plan, {units.name: range(3)})
    assert (model.lstm.hidden_size, model.lstm.proj_size) == (3, 4)


def test_a_state_handed_over_ties_two_layers():
    def forward(m, x):
        summary, state = m.encoder(x)
        return m.head(m.decoder(summary[-1:], state)[0])

    model = Model(forward, encoder=nn.LSTM(3, 4), decoder=nn.LSTM(4, 4), head=linear(4, 2))
    plan = traced(model, torch.randn(5, 1, 3))
    assert ("decoder.weight_hh_l0", 1) in axes(plan["encoder"], "consumer")


def test_pieces_in_time_are_one_stream():
    def forward(m, x):
        return m.head(torch.cat([m.first(x[:, :1]), m.others(x[:, 1:])], dim=1).mean(1))

    model = Model(forward, first=linear(3, 4), others=linear(3, 4), head=linear(4, 2))
    plan = traced(model, torch.randn(1, 5, 3))
    assert axes(plan["first"], "producer") == {("first.weight", 0), ("others.weight", 0)}
    assert not plan["first"].barriers


@pytest.mark.parametrize(("layer", "gates"), [(nn.GRU, 3), (nn.RNN, 1)])
def test_other_recurrent_layers(layer, gates):
    model = Model(
        lambda m, x: m.head(m.rnn(x)[1][-1]), rnn=layer(3, 4, num_layers=2), head=linear(4, 2)
    )
    plan = traced(model, torch.randn(5, 1, 3))
    assert member(plan, "rnn.weight_hh_l1", 0).multiplicity == gates


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_unrolled_by_hand(cell):
    def forward(m, x):
        state = m.start(x[0])
        state = (state, state) if isinstance(m.cell, nn.LSTMCell) else state
        for step in x.unbind(0):
            state = m.cell(step, state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    model = Model(forward, start=linear(3, 4), cell=cell(3, 4), head=linear(4, 2))
    plan = traced(model, torch.randn(5, 1, 3))
    assert ("cell.weight_hh", 1) in axes(plan["start"], "consumer")
    slice_channels(model, plan, {"start": [1, 2]})
    assert model.cell.hidden_size == 2


def heads_by_hand(m, x):
    query, key, value = (
        layer(x).unflatten(-1, (m.heads, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v)
    )
    weights = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    return m.out((weights @ value).transpose(1, 2).flatten(2))


def heads_by_torch(m, x):
    query, key, value = (
        layer(x).unflatten(-1, (m.heads, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v)
    )
    return m.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("forward", [heads_by_hand, heads_by_torch])
def test_attention_changes_by_heads_and_tells_the_layer(forward):
    model = Model(forward, q=linear(3, 8), k=linear(3, 8), v=linear(3, 8), out=linear(8, 2))
    model.heads = 4
    plan = traced(model, torch.randn(1, 5, 3))
    group = plan["q"]
    assert group.width == 4
    rows = [[2 * h, 2 * h + 1] for h in range(4)]
    assert axes(group, "producer") == {("q.weight", 0), ("k.weight", 0), ("v.weight", 0)}
    assert all(each.indices.tolist() == rows for each in group.members)
    assert [(each.module, each.attribute) for each in group.resized] == [("", "heads")]
    slice_channels(model, plan, {"q": [0, 3]})
    assert model.heads == 2


def test_grouped_queries_change_by_their_key():
    def forward(m, x):
        query = m.q(x).unflatten(-1, (m.heads, -1)).transpose(1, 2)
        key, value = (
            layer(x).unflatten(-1, (m.num_key_value_heads, -1)).transpose(1, 2)
            for layer in (m.k, m.v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return m.out(mixed.transpose(1, 2).flatten(2))

    model = Model(forward, q=linear(3, 12), k=linear(3, 6), v=linear(3, 6), out=linear(12, 2))
    model.heads, model.num_key_value_heads = 6, 3
    plan = traced(model, torch.randn(1, 5, 3))
    assert plan["q"].width == 3
    assert member(plan, "q.weight", 0).multiplicity == 4
    slice_channels(model, plan, {"q": [1]})
    assert (model.heads, model.num_key_value_heads) == (2, 1)


def test_heads_that_the_code_spells_out_are_a_barrier():
    def forward(m, x):
        query, key, value = (layer(x).view(1, 5, 4, 2).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    model = Model(forward, q=linear(3, 8), k=linear(3, 8), v=linear(3, 8), out=linear(8, 2))
    plan = traced(model, torch.randn(1, 5, 3))
    assert kinds(plan["q"]) == {"fixed"}
    assert "view in the model divides channels into (1, 5, 4, 2)" in plan["q"].barriers[0].reason


def test_torchs_attention_layer_is_a_barrier_with_its_reason():
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=6, batch_first=True)
    plan = traced(model, torch.randn(1, 5, 8))
    assert [group.name for group in plan.free] == ["linear1"]
    assert "heads x head size" in plan["self_attn"].barriers[0].reason
    assert member(plan, "self_attn.in_proj_weight", 0).multiplicity == 12


FEATURES = {"a": lambda: linear(3, 6), "b": lambda: linear(6, 2)}


@pytest.mark.parametrize(
    ("divided", "resized"),
    [
        (lambda m, x: x.view(1, -1, 3), ()),
        (lambda m, x: x.unflatten(1, (m.heads, 3)), (Resized("", "heads", 1),)),
        (lambda m, x: x.view(len(x), x.shape[1] // 3, 3), ()),
    ],
)
def test_a_division_with_one_plain_number_leaves_the_other_free(divided, resized):
    model = Model(lambda m, x: m.b(divided(m, m.a(x)).flatten(1)), a=linear(3, 6), b=linear(6, 2))
    model.heads = 2
    plan = traced(model, torch.randn(1, 3))
    assert (plan["a"].width, plan["a"].resized) == (2, resized)
    assert {member.multiplicity for member in plan["a"].members} == {3}


@pytest.mark.parametrize(
    ("forward", "kind", "reason"),
    [
        (lambda m, x: m.b(m.a(x).softmax(-1)), "mixed", "softmax in the model compares channels"),
        (lambda m, x: m.b(m.a(x) / m.a(x).sum(-1, keepdim=True)), "mixed", "sum in the model red"),
        (lambda m, x: m.b(m.a(x).amax(1, True) - m.a(x)), "mixed", "amax in the model reduces"),
        (lambda m, x: m.b(torch.fft.fft(m.a(x)).real), "unknown", "no rule for fft_fft"),
        (lambda m, x: m.b(m.a(x).sort(-1)[0]), "mixed", "sort in the model compares"),
        (lambda m, x: m.b(torch.cat([m.a(x)[:, :2], m.a(x)[:, 2:]], 1)), "fixed", "by position"),
        (lambda m, x: m.b(m.a(x)[:, [1, 0, 2, 3, 4, 5]]), "fixed", "by position"),
        (lambda m, x: m.b(torch.cat(m.a(x).split([2, 4], 1), 1)), "fixed", "by position"),
        (lambda m, x: m.b(m.a(x).roll(1, -1)), "fixed", "by position"),
        (lambda m, x: m.b(m.a(x).index_select(1, torch.arange(6))), "fixed", "by position"),
        (
            lambda m, x: m.b(m.a(x).view(-1, 2, 3).flatten(1)),
            "fixed",
            "view in the model divides channels into (1, 2, 3)",
        ),
        (lambda m, x: m.b(m.a(x).unflatten(1, (m.heads, -1)).flatten(1)), "fixed", "unflatten"),
        (lambda m, x: m.b(m.a(x).reshape(1, 6, 1).reshape(1, 2, 3).view(1, -1)), "fixed", "(1, 2"),
        (lambda m, x: m.b(m.a(x) + torch.ones(6)), "fixed", "add in the model meets data of fix"),
        (lambda m, x: m.b(m.a(x) + x.repeat(1, 2)), "fixed", "meets data of fixed size"),
        (lambda m, x: m.b((torch.eye(6) @ m.a(x).T).T), "mixed", "against data of fixed size"),
        (lambda m, x: F.linear(m.a(x), m.b.weight * torch.ones(2, 6)), "unknown", "computed on"),
        (
            lambda m, x: torch.einsum("bi,oi,oi->bo", m.a(x), m.b.weight, m.b.weight),
            "unknown",
            "no rule for ein",
        ),
    ],
)
def test_what_cannot_be_followed_is_a_barrier_with_its_reason(forward, kind, reason):
    torch.manual_seed(0)
    model = Model(forward, **{name: make() for name, make in FEATURES.items()})
    model.heads = 2
    plan = trace_channels(model, torch.randn(1, 3))
    assert kind in kinds(plan["a"])
    assert any(reason in barrier.reason for barrier in plan["a"].barriers)
    assert "a" not in [group.name for group in plan.free]


def test_a_product_along_positions_holds_its_own_axes_only():
    def forward(m, x):
        tokens = m.up(x)
        return m.head((tokens.transpose(1, 2) + 0).transpose(1, 2) + mixed(m, tokens))

    def mixed(m, tokens):
        return m.across(tokens.transpose(1, 2)).transpose(1, 2)

    model = Model(forward, up=linear(3, 4), across=linear(5, 5), head=linear(4, 2))
    plan = traced(model, torch.randn(1, 5, 3))
    assert not plan["up"].barriers
    assert kinds(plan["across"]) == {"fixed"}


def test_parameters_multiplied_directly():
    model = Model(
        lambda m, x: F.relu(x @ m.first) @ m.second,
        first=nn.Parameter(torch.randn(3, 4)),
        second=nn.Parameter(torch.randn(4, 2)),
    )
    plan = traced(model, torch.randn(1, 3))
    assert axes(plan["first"], "producer") == {("first", 1)}
    assert axes(plan["first"], "consumer") == {("second", 0)}


def test_tied_weights_make_and_read_the_same_channels():
    model = Model(
        lambda m, x: F.linear(torch.tanh(m.embed(x)), m.embed.weight), embed=nn.Embedding(7, 4)
    )
    plan = traced(model, torch.randint(0, 7, (1, 3)))
    (group,) = plan.free
    assert [(each.tensor, each.axis, each.role) for each in group.members] == [
        ("embed.weight", 1, "producer"),
        ("embed.weight", 1, "consumer"),
    ]


def test_padded_shortcuts_split_the_stream():
    def forward(m, x):
        early = m.early(x)
        return m.head(F.pad(early, (1, 2)) + m.late(early))

    model = Model(forward, early=linear(3, 4), late=linear(4, 7), head=linear(7, 2))
    plan = traced(model, torch.randn(1, 3))
    assert [group.width for group in plan.free] == [4]
    assert member_of(plan["early"], "late.weight", 0).indices.flatten().tolist() == [1, 2, 3, 4]
    held = [group for group in plan if group.name.startswith("late") and group.barriers]
    assert sum(group.width for group in held) == 3


def member_of(group, tensor, axis):
    (found,) = [each for each in group.members if (each.tensor, each.axis) == (tensor, axis)]
    return found


def test_transformations_do_not_change_the_plan(mask, precision):
    model = Model(lambda m, x: m.head(m.lstm(x)[0].mean(0)), lstm=nn.LSTM(3, 4), head=linear(4, 2))
    plain = trace_channels(model, torch.randn(5, 1, 3))
    for selected in select_parameters(model):
        attach(selected.module, selected.parameter_name, mask(selected.tensor.shape))
        attach(selected.module, selected.parameter_name, precision())
    transformed = traced(model, torch.randn(5, 1, 3))
    for one, two in zip(plain, transformed, strict=True):
        assert {(m.tensor, m.axis, m.role) for m in one.members} == {
            (m.tensor, m.axis, m.role) for m in two.members
        }


def test_tracing_leaves_the_model_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), linear(64, 2)
    )
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    trace_channels(model, torch.ones(1, 1, 6, 6))
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        trace_channels(model, torch.ones(1, 1, 9, 9))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_inputs_by_position_and_by_name():
    model = Model(lambda m, x, y: m.b(m.a(x) * y), a=linear(3, 4), b=linear(4, 2))
    model.forward = lambda x, y: model.b(model.a(x) * y)
    x, y = torch.randn(1, 3), torch.ones(())
    assert len(trace_channels(model, (x, y))) == len(trace_channels(model, {"x": x, "y": y})) == 3


def test_outputs_in_containers_are_fixed():
    model = Model(lambda m, x: {"logits": [m.a(x)], "n": 3}, a=linear(3, 4))
    assert kinds(trace_channels(model, torch.randn(1, 3))["a"]) == {"output"}


def test_a_model_without_weights_is_refused():
    with pytest.raises(RequestError, match="inputs that reach a weight"):
        trace_channels(nn.ReLU(), torch.randn(1, 3))


def test_the_table_names_what_people_look_for():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), linear(48, 2))
    table = trace_channels(model, torch.randn(1, 1, 6, 6)).table()
    header, rule, *rows = table.splitlines()
    assert header.split()[:2] == ["group", "width"]
    assert set(rule) == {"-", " "}
    assert rows[0].split() == ["0", "3", "0.weight[0]", "3.weight[1]", "x16", "0.bias[0]"]
    assert rows[-1].endswith("the model's output")


def test_an_unknown_group_lists_the_names():
    plan = trace_channels(nn.Sequential(linear(3, 4), linear(4, 2)), torch.randn(1, 3))
    with pytest.raises(RequestError, match=r"group: got 'conv1'; expected one of 0, 0\.inputs, 1"):
        plan["conv1"]


def test_channels_read_once_and_twice_are_told_apart():
    model = Model(
        lambda m, x: m.b(torch.cat([m.a(x), m.a(x)[:, :2]], 1)), a=linear(3, 4), b=linear(6, 2)
    )
    plan = traced(model, torch.randn(1, 3))
    # The code takes the first two by their places; the others may come and go behind them.
    widths = [(group.width, kinds(group)) for group in plan if group.name in ("a", "a#2")]
    assert widths == [(2, {"fixed"}), (2, set())]


def test_verification_notices_a_tie_that_a_plan_misses():
    model = Model(
        lambda m, x: m.head(m.a(x) + m.b(x)), a=linear(3, 8), b=linear(3, 8), head=linear(8, 2)
    )
    plan = trace_channels(model, torch.randn(1, 3))
    tied = plan["a"]
    torn = [
        ChannelGroup(name, tied.width, tuple(m for m in tied.members if m.tensor[0] in parts))
        for name, parts in (("a", "ah"), ("b", "b"))
    ]
    assert verify_plan(model, plan, torch.randn(1, 3)) <= 1e-12
    with pytest.raises(WorkError, match="at fault: a "):
        verify_plan(model, ChannelPlan(tuple(torn)), torch.randn(1, 3))


def test_verification_names_the_group_that_the_code_depends_on():
    model = Model(
        lambda m, x: m.c(m.b(m.a(x)) / m.a.out_features),
        a=linear(3, 4),
        b=linear(4, 4),
        c=linear(4, 2),
    )
    plan = trace_channels(model, torch.randn(1, 3))
    with pytest.raises(WorkError, match=r"at fault: a \(changes by"):
        verify_plan(model, plan, torch.randn(1, 3))


def bare_norm(m, x):
    hidden = m.first(x)
    normed = torch.batch_norm(hidden, m.scale, m.shift, m.mean, m.variance, False, 0.1, 1e-5, False)
    return m.last(normed)


def test_functions_of_torch_itself_take_their_vectors_in_another_order():
    vectors = {name: nn.Parameter(torch.rand(6)) for name in ("scale", "shift")}
    buffers = {"mean": torch.randn(6), "variance": torch.rand(6) + 1}
    model = Model(bare_norm, first=linear(4, 6), last=linear(6, 2), **vectors, **buffers).eval()
    group = traced(model, torch.randn(3, 4))["first"]
    assert axes(group, "per_channel") == {
        ("first.bias", 0),
        *((name, 0) for name in (*vectors, *buffers)),
    }


def test_the_embedding_of_torch_itself_has_its_rows_looked_up():
    table = nn.Parameter(torch.randn(5, 6))
    model = Model(lambda m, x: m.last(torch.embedding(m.table, x)), last=linear(6, 2), table=table)
    plan = traced(model, torch.tensor([1, 3]))
    assert [b.kind for b in plan.owner("table", 0)[0].barriers] == ["lookup"]
    assert axes(plan.owner("table", 1)[0], "consumer") == {("last.weight", 1)}


@pytest.mark.parametrize("eps", [None, 1e-6])
def test_an_rms_norm_has_no_bias(eps):
    norm = nn.RMSNorm(6, eps=eps)
    model = Model(
        lambda m, x: m.last(F.rms_norm(m.first(x), (6,), m.norm.weight, eps)),
        first=linear(4, 6),
        norm=norm,
        last=linear(6, 2),
    )
    plan = traced(model, torch.randn(3, 4))
    assert [b.kind for b in plan["first"].barriers] == ["normalised"]


def test_an_index_add_holds_the_places_of_its_source_and_fixes_those_of_its_target():
    def run(m, x):
        branch = torch.zeros(len(x), 6, dtype=x.dtype).index_add(1, m.places, m.branch(x))
        return m.last(m.stream(x) + branch)

    model = Model(
        run,
        stream=linear(4, 6),
        branch=linear(4, 3),
        last=linear(6, 2),
        places=torch.tensor([0, 2, 5]),
    )
    inputs = torch.randn(3, 4)
    plan = trace_channels(model, inputs)
    assert axes(plan["branch"], "consumer") == {("places", 0)}
    assert not plan["branch"].barriers
    assert {b.kind for b in plan["stream"].barriers} == {"fixed"}
    assert verify_plan(model, plan, inputs) <= 1e-12
    model.branch.weight.data[1] = model.branch.bias.data[1] = 0
    before = model(inputs)
    slice_channels(model, plan, {"branch": [0, 2]})
    assert model.places.tolist() == [0, 5]
    torch.testing.assert_close(model(inputs), before)


def test_torchs_fused_encoder_is_watched_in_its_steps():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(linear(4, 8), layer, linear(8, 2)).eval()
    plan = traced(model, torch.randn(2, 3, 4))
    assert plan["1.linear1"].width == 12 and not plan["1.linear1"].barriers
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_empty_example_shows_nothing():
    with pytest.raises(RequestError, match="outputs of shapes"):
        trace_channels(
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(0, 3)
        )


def test_a_compiled_model_is_traced_as_it_is_written():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = trace_channels(torch.compile(model, backend="eager"), torch.zeros(1, 3))
    assert [group.width for group in plan.free] == [4]
    assert {member.tensor for group in plan.free for member in group.members} == {
        f"_orig_mod.{name}" for name in ("0.weight", "0.bias", "2.weight")
    }

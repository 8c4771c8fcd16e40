"""Channels followed through networks that nobody here wrote, and the ways their code is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import slice_channels, trace_channels, verify_plan
from latewood.errors import RequestError
from latewood.slim import slim

transformers = pytest.importorskip("transformers")
torchvision = pytest.importorskip("torchvision")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {**SIZES, "vocab_size": 64, "intermediate_size": 48, "max_position_embeddings": 40}
PICTURES = {**SIZES, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
EXPERTS = {**WORDS, "num_key_value_heads": 2, "num_experts_per_tok": 2}
ENCODER_DECODER = {
    **{f"{side}_{what}": n for side in ("encoder", "decoder")
       for what, n in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))},
    "vocab_size": 64, "d_model": 32, "max_position_embeddings": 40,
}  # fmt: skip


def tokens(length=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 64, (2, length), generator=generator)


def image(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def built(model, config, **sizes):
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()


def words(model, config, **sizes):
    return lambda: (built(model, config, **sizes), {"input_ids": tokens()})


def pairs(model, config, **sizes):
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(7)}
    return lambda: (built(model, config, **sizes), inputs)


def pictures(model, config, size=32, **sizes):
    return lambda: (built(model, config, **sizes), {"pixel_values": image(size)})


def shipped(name, size=64):
    def build():
        torch.manual_seed(0)
        return torchvision.models.get_model(name, weights=None).eval(), (image(size),)

    return build


# By name: how to build it, and how many groups are free at least.
NETWORKS = {
    "bert": (words("BertModel", "BertConfig", **WORDS), 4),
    "gpt2": (
        words(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=64, n_positions=40, n_embd=32, n_layer=2,
            n_head=4,
        ),
        4,
    ),
    "llama": (words("LlamaForCausalLM", "LlamaConfig", **WORDS, num_key_value_heads=2), 4),
    "qwen3": (
        words("Qwen3ForCausalLM", "Qwen3Config", **WORDS, num_key_value_heads=2, head_dim=8), 4,
    ),
    "gpt-neox": (words("GPTNeoXForCausalLM", "GPTNeoXConfig", **WORDS), 4),
    "bloom": (
        words(
            "BloomForCausalLM", "BloomConfig", vocab_size=64, hidden_size=32, n_layer=2, n_head=4
        ),
        2,
    ),
    "deberta-v2": (
        words(
            "DebertaV2Model", "DebertaV2Config", **WORDS, relative_attention=True,
            pos_att_type=["p2c", "c2p"],
        ),
        4,
    ),
    "mixtral": (words("MixtralForCausalLM", "MixtralConfig", **EXPERTS, num_local_experts=4), 4),
    "t5": (
        pairs(
            "T5ForConditionalGeneration", "T5Config", vocab_size=64, d_model=32, d_kv=8, d_ff=48,
            num_layers=2, num_heads=4,
        ),
        6,
    ),
    "bart": (pairs("BartForConditionalGeneration", "BartConfig", **ENCODER_DECODER), 5),
    "vit": (pictures("ViTForImageClassification", "ViTConfig", **PICTURES), 4),
    "beit": (
        pictures("BeitModel", "BeitConfig", **PICTURES, use_relative_position_bias=True), 4,
    ),
    "swin": (
        pictures(
            "SwinForImageClassification", "SwinConfig", image_size=32, patch_size=2, embed_dim=16,
            depths=[2, 2], num_heads=[2, 4], window_size=4,
        ),
        8,
    ),
    "levit": (
        pictures(
            "LevitForImageClassification", "LevitConfig", 64, image_size=64,
            hidden_sizes=[16, 24, 32], num_attention_heads=[2, 3, 4], depths=[1, 1, 1],
            key_dim=[8, 8, 8],
        ),
        16,
    ),
    "shufflenet": (shipped("shufflenet_v2_x0_5"), 18),
    "mobilenet": (shipped("mobilenet_v3_small"), 27),
}  # fmt: skip


PLANS = {}
"""The plan of every network that a test has traced: others need it, not another trace."""


def plan_of(name, model, inputs):
    if name not in PLANS:
        PLANS[name] = trace_channels(model, inputs)
    return PLANS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_is_right_and_leaves_channels_free(name):
    build, least = NETWORKS[name]
    model, inputs = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = PLANS[name] = trace_channels(model, inputs)
    assert verify_plan(model, plan, inputs) <= 1e-12
    assert len([group for group in plan.free if group.width > 1]) >= least
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "swin", "shufflenet", "vit"])
def test_half_of_all_free_channels_go_and_the_network_runs(name):
    model, inputs = NETWORKS[name][0]()
    plan = plan_of(name, model, inputs)
    keep = {group.name: range(-(-group.width // 2)) for group in plan.free}
    slice_channels(model, plan, keep)
    with torch.no_grad():
        outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    assert torch.isfinite(logits).all()
    assert trace_channels(model, inputs)  # a smaller network can be followed as well


class Attention(nn.Module):
    """As small language models are written by hand: the stream divided by its own shape."""

    def __init__(self, width=12, heads=3):
        super().__init__()
        self.n_head, self.n_embd = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (y.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


def test_a_size_that_the_code_takes_elsewhere_is_a_barrier():
    model = nn.Sequential(nn.Linear(5, 12), Attention(), nn.Linear(12, 2))
    plan = trace_channels(model, torch.randn(1, 4, 5))
    (heads,) = [group for group in plan if group.name == "1.c_attn"]
    assert heads.barriers and "divides channels into" in heads.barriers[0].reason
    assert verify_plan(model, plan, torch.randn(1, 4, 5)) <= 1e-12


class Counted(nn.Module):
    """Heads under a name of its own, and a size that is made of it."""

    def __init__(self):
        super().__init__()
        self.speakers, self.words = 3, 4
        self.inner = 12
        self.read, self.write = nn.Linear(5, 36), nn.Linear(12, 2)

    def forward(self, x):
        q, k, v = self.read(x).view(*x.shape[:2], 3, self.speakers, self.words).unbind(2)
        scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1)
        mixed = (scores @ v.transpose(1, 2)).transpose(1, 2)
        return self.write(mixed.reshape(*x.shape[:2], self.inner))


def test_attributes_that_count_channels_are_found_by_their_use():
    model, inputs = Counted(), torch.randn(2, 6, 5)
    plan = trace_channels(model, inputs)
    (heads,) = [group for group in plan.free if group.resized]
    assert {(each.attribute, each.per_channel) for each in heads.resized} == {
        ("speakers", 1),
        ("inner", 4),
    }
    assert verify_plan(model, plan, inputs) <= 1e-12
    slice_channels(model, plan, {heads.name: [2, 0]})
    assert (model.speakers, model.inner, model.words) == (2, 8, 4)
    assert type(model.speakers) is int
    assert model(inputs).shape == (2, 6, 2)


def test_a_relative_position_bias_belongs_to_its_heads():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = 4
            self.table = nn.Embedding(7, 4)
            self.qkv, self.out = nn.Linear(5, 48), nn.Linear(16, 2)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            places = (torch.arange(4)[:, None] - torch.arange(4)) + 3
            bias = self.table(places).permute(2, 0, 1)[None]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            return self.out(mixed.transpose(1, 2).flatten(2))

    model, inputs = Biased(), torch.randn(2, 4, 5)
    plan = trace_channels(model, inputs)
    (heads,) = plan.owner("qkv.weight", 0)
    assert ("table.weight", 1) in {(member.tensor, member.axis) for member in heads.members}
    assert heads in plan.free
    assert verify_plan(model, plan, inputs) <= 1e-12


def test_channel_shuffle_keeps_halves_together():
    class Shuffle(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            a, b = self.stem(x).chunk(2, dim=1)
            x = torch.cat([self.left(a), self.right(b)], dim=1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
            return self.head(x)

    model, inputs = Shuffle(), torch.randn(1, 3, 2, 2)
    plan = trace_channels(model, inputs)
    assert verify_plan(model, plan, inputs) <= 1e-12
    assert [group.width for group in plan.free] == [4, 4]


def test_what_a_run_keeps_for_the_next_is_forgotten():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
            self.cache, self.last = {}, None

        def forward(self, x):
            if "scale" not in self.cache:
                self.cache["scale"] = self.a.bias.abs() + 1
            self.last = x.shape[1]
            return self.b(self.a(x) * self.cache["scale"])

    model, inputs = Caching(), torch.randn(1, 3)
    plan = trace_channels(model, inputs)
    assert model.cache == {} and model.last is None
    assert verify_plan(model, plan, inputs) <= 1e-12
    model(inputs)
    # Filled before, it is data of a size that no trace can change.
    assert not any(group.name == "a" for group in trace_channels(model, inputs).free)


def test_weights_kept_in_pieces_are_a_barrier():
    model = nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 2)
    )
    plan = trace_channels(model, torch.randn(1, 3))
    assert not plan.free
    assert any("weight norm" in barrier.reason for group in plan for barrier in group.barriers)
    assert verify_plan(model, plan, torch.randn(1, 3)) == 0.0


class Branch(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real


def test_users_teach_operations_and_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.branch, self.b = nn.Linear(3, 6), Branch(), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.branch(self.a(x)))

    model, inputs = Net(), torch.randn(1, 3)
    assert any("no rule" in b.reason for b in trace_channels(model, inputs)["a"].barriers)
    same = lambda call: call.labels.of(call.positional[0])
    by_class = trace_channels(model, inputs, rules={Branch: same})
    assert [group.name for group in by_class.free] == ["a"]
    assert "forward" not in vars(model.branch)
    known = {torch.fft.fft: same, torch.Tensor.real.__get__: same}
    by_function = trace_channels(model, inputs, rules=known)
    assert not any("fft" in barrier.reason for barrier in by_function["a"].barriers)
    with pytest.raises(RequestError, match="rules: got 'linear'"):
        trace_channels(model, inputs, rules={"linear": same})


def test_users_tie_and_freeze_axes():
    model = nn.ModuleDict({"a": nn.Linear(3, 6), "b": nn.Linear(6, 2)})
    model.forward = lambda x: (model["b"](torch.relu(model["a"](x))), None)[0]
    inputs = torch.randn(1, 3)
    assert [group.name for group in trace_channels(model, inputs).free] == ["a"]
    frozen = trace_channels(model, inputs, freeze=["a.*"])
    assert not frozen.free
    assert frozen["a"].barriers[0].reason == "a.weight is frozen by 'a.*'"
    with pytest.raises(RequestError, match=r"freeze: got 'c\.\*'"):
        trace_channels(model, inputs, freeze=["c.*"])
    with pytest.raises(RequestError, match=r"tie: got .* axes of one size"):
        trace_channels(model, inputs, tie=[(("a.weight", 0), ("b.weight", 0))])
    with pytest.raises(RequestError, match=r"tie: got \('c', 0\)"):
        trace_channels(model, inputs, tie=[(("c", 0),)])


def test_tied_axes_become_one_group():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (
                nn.Linear(*s) for s in ((3, 6), (6, 2), (3, 6), (6, 2))
            )

        def forward(self, x):
            return self.b(self.a(x)) + self.d(self.c(x))

    model, inputs = Two(), torch.randn(1, 3)
    assert len(trace_channels(model, inputs).free) == 2
    (group,) = trace_channels(model, inputs, tie=[(("a.weight", 0), ("c.weight", 0))]).free
    assert {member.tensor for member in group.having("producer")} == {"a.weight", "c.weight"}


@pytest.mark.parametrize("name", ["mpnet", "gpt2", "swin", "shufflenet"])
def test_networks_that_view_what_they_transposed_become_slim(name):
    more = {"mpnet": (words("MPNetModel", "MPNetConfig", **WORDS), 3)}
    model, inputs = (NETWORKS | more)[name][0]()
    plan = plan_of(name, model, inputs)
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for group in plan.free:
            if group.width > 2:
                for member in group.having("consumer"):
                    tensors[member.tensor].index_fill_(member.axis, member.indices[1:].flatten(), 0)
    smaller = slim(model, inputs)
    count = lambda network: sum(parameter.numel() for parameter in network.parameters())
    assert count(smaller) < count(model)


class HandWrittenNorm(nn.Module):
    def __init__(self, width, centred):
        super().__init__()
        self.weight, self.centred = nn.Parameter(torch.rand(width) + 0.5), centred

    def forward(self, x):
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("centred", [False, True])
def test_norms_written_by_hand_are_norms(centred):
    model = nn.Sequential(nn.Linear(3, 6), HandWrittenNorm(6, centred), nn.Linear(6, 2))
    plan = trace_channels(model, torch.randn(2, 3))
    assert {barrier.kind for barrier in plan["0"].barriers} == {"normalised"}


def test_a_gate_of_all_channels_is_no_norm():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.gate, self.b = nn.Linear(3, 6), nn.Linear(1, 1), nn.Linear(6, 2)

        def forward(self, x):
            x = self.a(x)
            return self.b(x * self.gate(x.mean(-1, keepdim=True)))

    plan = trace_channels(Gated(), torch.randn(2, 3))
    assert "mixed" in {barrier.kind for barrier in plan["a"].barriers}


def test_the_stream_of_a_llama_is_held_by_its_norms_alone():
    model, inputs = NETWORKS["llama"][0]()
    stream = trace_channels(model, inputs)["model.embed_tokens"]
    assert {barrier.kind for barrier in stream.barriers} == {"normalised"}

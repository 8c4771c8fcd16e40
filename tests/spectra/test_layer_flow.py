"""Which layers feed which, watched on networks that nobody here wrote."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from latewood.spectra import LayerPair, SpectralProbe, infer_pairs, model_alignment

transformers = pytest.importorskip("transformers")

TOKENS = 50
TINY = {"vocab_size": TOKENS, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40}
SHORT = {"max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHARED = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def network(kind, task, **options):
    return getattr(transformers, kind + task)(getattr(transformers, kind + "Config")(**options))


def ids(**more):
    return {"input_ids": torch.randint(0, TOKENS, (1, 6)), **more}


def pairs(model, example):
    found = infer_pairs(model, example)
    # Each is a pair that can be measured.
    assert all(torch.isfinite(a.score) for a in model_alignment(model, found).values())
    return [pair.name.replace(".weight", "") for pair in found]


def attention(before, path, after):
    q, k, v, o = (f"{path}.{part}_proj" for part in "qkvo")
    return [*(f"{before}->{x}" for x in (q, k, v)), f"{q}->{k}", f"{v}[value]->{o}", *(
        f"{o}->{entry}" for entry in after
    )]  # fmt: skip


def test_llama_with_shared_keys_and_a_tied_head():
    model = network("Llama", "ForCausalLM", **TINY, **SHORT, **SHARED, tie_word_embeddings=True)
    expected: list[str] = []
    before = "model.embed_tokens"
    for layer in ("model.layers.0", "model.layers.1"):
        gate, up, down = (f"{layer}.mlp.{part}_proj" for part in ("gate", "up", "down"))
        expected += attention(before, f"{layer}.self_attn", [gate, up])
        expected += [f"{gate}->{down}", f"{up}->{down}"]
        before = down
    expected.append(f"{before}->model.embed_tokens")
    assert pairs(model, ids()) == expected


def test_mixtral_feeds_the_next_layer_through_its_experts():
    model = network("Mixtral", "ForCausalLM", **TINY, **SHORT, **SHARED, num_local_experts=3)
    expected: list[str] = []
    before = "model.embed_tokens"
    for layer in ("model.layers.0", "model.layers.1"):
        up, down = (f"{layer}.mlp.experts.{part}_proj" for part in ("gate_up", "down"))
        expected += attention(before, f"{layer}.self_attn", [f"{layer}.mlp.gate", up])
        expected += [f"{up}[gate]->{down}", f"{up}[up]->{down}"]
        before = down
    assert pairs(model, ids()) == [*expected, f"{before}->lm_head"]


def test_bert_has_its_output_projection_elsewhere():
    model = network("Bert", "ForMaskedLM", **TINY, **SHORT, num_attention_heads=2)
    found = pairs(model, ids())
    layer = "bert.encoder.layer.0"
    for pair in (
        *(f"bert.embeddings.word_embeddings->{layer}.attention.self.{x}" for x in ("query", "key")),
        f"{layer}.attention.self.query->{layer}.attention.self.key",
        f"{layer}.attention.self.value->{layer}.attention.output.dense",
        f"{layer}.output.dense->bert.encoder.layer.1.attention.self.value",
        "cls.predictions.transform.dense->bert.embeddings.word_embeddings",
    ):
        assert pair in found
    # Neither in the order of registration nor across what is between.
    assert f"{layer}.attention.self.key->{layer}.attention.self.value" not in found
    assert f"{layer}.attention.self.value->{layer}.intermediate.dense" not in found


def test_t5_reads_the_encoder_and_the_decoder():
    model = network(
        "T5", "ForConditionalGeneration", vocab_size=TOKENS, d_model=24, d_kv=12, d_ff=40,
        num_layers=1, num_heads=2, decoder_start_token_id=0,
    )  # fmt: skip
    example = ids()
    found = pairs(model, {**example, "decoder_input_ids": example["input_ids"]})
    cross = "decoder.block.0.layer.1.EncDecAttention"
    assert [pair for pair in found if f"->{cross}" in pair] == [
        f"decoder.block.0.layer.0.SelfAttention.o->{cross}.q",
        f"encoder.block.0.layer.1.DenseReluDense.wo->{cross}.k",
        f"encoder.block.0.layer.1.DenseReluDense.wo->{cross}.v",
        f"{cross}.q->{cross}.k",
        f"{cross}.v->{cross}.o",
    ]
    assert found[-1] == "decoder.block.0.layer.2.DenseReluDense.wo->shared"


def test_parallel_blocks_of_gpt_neox_and_rows_by_head():
    model = network("GPTNeoX", "ForCausalLM", **TINY, **SHORT, num_attention_heads=2)
    first, second = (f"gpt_neox.layers.{i}" for i in (0, 1))
    fused, dense = f"{first}.attention.query_key_value", f"{first}.attention.dense"
    up, down = f"{first}.mlp.dense_h_to_4h", f"{first}.mlp.dense_4h_to_h"
    found = pairs(model, ids())
    assert found[:7] == [
        f"gpt_neox.embed_in->{fused}",
        f"{fused}[query->key]",
        f"{fused}[value]->{dense}",
        f"gpt_neox.embed_in->{up}",
        f"{up}->{down}",
        f"{dense}->{second}.attention.query_key_value",
        f"{down}->{second}.attention.query_key_value",
    ]
    # Head by head: 12 rows of queries, 12 of keys, 12 of values.
    weight = model.gpt_neox.layers[0].attention.query_key_value.weight
    query, key, _ = weight.unflatten(0, (2, 3, 12)).unbind(1)
    left = [torch.linalg.svd(part.double(), full_matrices=False).U for part in (query, key)]
    score = (left[0].mT @ left[1]).abs().diagonal(dim1=-2, dim2=-1)[:, :10].mean()
    pair = LayerPair(f"{fused}.weight", f"{fused}.weight", "query-key")
    measured = model_alignment(model, [pair])[pair.name].score
    assert measured.item() == pytest.approx(score.item(), abs=1e-5)


class Residual(nn.Module):
    """Registered in another order than it runs, with a way around and one by multiplication."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.second = nn.Linear(12, 8)
        self.first = nn.Linear(8, 12)
        self.entry = nn.Linear(5, 8)
        self.idle = nn.Linear(8, 8)

    def forward(self, x):
        x = self.entry(x)
        x += self.second(torch.relu(self.first(x)))
        return self.head(x)


def test_the_order_of_the_run_counts():
    assert pairs(Residual(), torch.zeros(2, 5)) == [
        "entry->first",
        "first->second",
        "second->head",
    ]


def test_weights_under_transformations_and_a_probe_that_runs_the_model():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    model, x = Residual(), torch.zeros(2, 5)
    parametrize.register_parametrization(model.first, "weight", Half())
    assert pairs(model, x) == ["entry->first", "first->second", "second->head"]
    probe = SpectralProbe(model, every=1, pairs="auto", example_inputs=x)
    (observation,) = probe.observe(0)
    names = [name for name in observation.values if name.startswith("alignment/")]
    assert names == [f"alignment/{pair.name}" for pair in infer_pairs(model, x)]


def test_channels_in_another_order_are_no_pair():
    class Shuffled(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            return self[1](x[:, [1, 2, 3, 0]])

    assert pairs(Shuffled(nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(1, 4)) == []


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.tokens = nn.Embedding(9, 6)
        self.rnn = kind(6, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 9)

    def forward(self, tokens):
        return self.head(self.rnn(self.tokens(tokens))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_seen_as_their_names_say(kind):
    model = Recurrent(kind)
    watched = infer_pairs(model, torch.zeros(1, 3, dtype=torch.long))
    assert LayerPair("rnn.weight_ih_l0", "rnn.weight_hh_l0") in watched
    assert LayerPair("rnn.weight_hh_l1_reverse", "head.weight", "backward") in watched
    with pytest.warns(UserWarning):
        assert set(watched) == set(infer_pairs(model))


class Attending(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.entry = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.entry(x)
        keys = x[..., : self.attention.kdim]
        return self.head(x + self.attention(x, keys, x)[0])


def test_the_attention_of_torch():
    x = torch.zeros(1, 3, 5)
    assert pairs(Attending(), x) == [
        "entry->attention.in_proj_weight",
        "attention.in_proj_weight[query->key]",
        "attention.in_proj_weight[value]->attention.out_proj",
        "attention.out_proj->head",
    ]
    apart = pairs(Attending(kdim=3), x)
    assert "entry->attention.v_proj_weight" in apart
    assert "entry->attention.k_proj_weight" not in apart


def test_watching_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert pairs(model, torch.zeros(2, 4)) == ["0->3"]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_a_guess_from_names_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer_pairs(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))))
        infer_pairs(Residual(), torch.zeros(2, 5))
    with pytest.warns(UserWarning, match="example_inputs"):
        infer_pairs(Residual())


@pytest.mark.parametrize(
    ("kind", "task", "options"),
    [
        ("Llama", "ForCausalLM", SHARED),
        ("Mixtral", "ForCausalLM", SHARED | {"num_local_experts": 3}),
        ("Bert", "ForSequenceClassification", {"num_attention_heads": 2}),
    ],
)
def test_names_tell_attention_gates_and_experts_too(kind, task, options):
    model = network(kind, task, **TINY, **SHORT, **options)
    with pytest.warns(UserWarning, match="registered"):
        guessed = infer_pairs(model)
    watched = {pair for pair in infer_pairs(model, ids()) if ".mlp.gate.weight" not in pair.name}
    assert set(guessed) == watched

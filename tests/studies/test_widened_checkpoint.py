"""Checkpoints of the transformers library, widened and read again by the library itself."""

import json

import pytest
import torch
import transformers

from latewood.cli import main
from latewood.errors import RequestError
from latewood.studies.widened_checkpoint import widen_checkpoint


def llama():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2():
    # Its attention does not compute with the number of heads, only with their size.
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24,
        image_size=16, patch_size=8,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


@pytest.fixture
def saved(tmp_path):
    def save(model):
        torch.manual_seed(0)
        model.eval().save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "tokenizer.json").write_text("{}")
        return tmp_path / "model"

    return save


def test_all_widths_of_a_language_model(saved, tmp_path):
    model = llama()
    folder = saved(model)
    done = widen_checkpoint(folder, out=tmp_path / "wider", times=2.0)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wider")
    assert type(again) is type(model)
    tokens = torch.randint(2, 50, (2, 6))
    with torch.no_grad():
        difference = (again(tokens).logits - model(tokens).logits).abs().max()
    assert float(difference) < 1e-5 and done.error < 1e-5
    config = again.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 4)
    assert (config.intermediate_size, config.hidden_size) == (48, 32)
    assert {row["number"]: (row["was"], row["is"]) for row in done.numbers} == {
        "num_attention_heads": (4, 8),
        "num_key_value_heads": (2, 4),
        "intermediate_size": (24, 48),
        # Zeros beside the stream halve its mean square, to which this is added.
        "hidden_size": (16, 32),
        "rms_norm_eps": (1e-6, 5e-7),
    }
    assert (tmp_path / "wider" / "tokenizer.json").exists()
    # It trains on: the copies of a pair do not stay alike.
    again(tokens, labels=tokens).loss.backward()
    assert again.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_heads_that_only_their_size_tells(saved, tmp_path):
    model = gpt2()
    done = widen_checkpoint(saved(model), out=tmp_path / "wider", times=2.0)
    assert done.left_out == []
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "wider")
    assert (again.config.n_head, again.config.n_embd) == (8, 32)
    tokens = torch.randint(2, 50, (2, 6))
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits)


def test_what_no_configuration_describes_is_left_and_said(saved, tmp_path):
    # Without the stream there is no number for the heads alone.
    stream = ("vit.embeddings.*",)
    done = widen_checkpoint(saved(vit()), out=tmp_path / "wider", times=1.5, exclude=stream)
    assert len(done.left_out) == 1 and "attention" in done.left_out[0]
    assert [row["number"] for row in done.numbers] == ["intermediate_size"]
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "wider")
    assert again.config.intermediate_size == 36


def test_the_command_widens_by_name_and_prints_what_it_did(saved, tmp_path, capsys):
    folder = saved(llama())
    words = ["grow", "widen", str(folder), "--width", "model.layers.0.mlp.gate_proj=32"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "model.layers.0.mlp.gate_proj" in shown and "intermediate_size" in shown
    config = json.loads((tmp_path / "model-wider" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_attention_heads"]) == (32, 4)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"model.layers.0.mlp.gate_proj": 31}, "got 31; expected a width from 24 in steps of 2"),
        ({"model.layers.0.mlp.gate_proj": 20}, "got 20; expected a width from 24"),
        ({"no.such.layer": 32}, "widths: got 'no.such.layer'; expected a group"),
        ({"lm_head": 52}, "lm_head: its channels cannot change"),
    ],
)
def test_widths_that_cannot_be_are_refused(saved, tmp_path, widths, message):
    with pytest.raises(RequestError, match=message):
        widen_checkpoint(saved(llama()), out=tmp_path / "wider", widths=widths)
    assert not (tmp_path / "wider").exists()


def test_folders_of_something_else_are_refused(saved, tmp_path):
    with pytest.raises(RequestError, match="expected the folder of a model of the transformers"):
        widen_checkpoint(tmp_path, out=tmp_path / "wider")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(RequestError, match=r"is a timm model \(resnet50\), .*growth\.widen"):
        widen_checkpoint(tmp_path, out=tmp_path / "wider")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(RequestError, match=r"config\.json has no model_type"):
        widen_checkpoint(tmp_path, out=tmp_path / "wider")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["Nothing"]}')
    with pytest.raises(RequestError, match="there are no safetensors"):
        widen_checkpoint(tmp_path, out=tmp_path / "wider")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RequestError, match="an architecture of transformers, not Nothing"):
        widen_checkpoint(tmp_path, out=tmp_path / "wider")
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
    )
    with pytest.raises(RequestError, match="cannot be loaded"):
        widen_checkpoint(tmp_path, out=tmp_path / "wider")

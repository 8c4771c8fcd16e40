"""Architectures with random weights, as their authors wrote them, in tiny configurations."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks import _handwritten_models as handwritten

__all__ = [
    "ARCHITECTURES",
    "BERT",
    "EXPERTS",
    "GPT",
    "GROUPED",
    "HEADS_OF_8",
    "IMAGE",
    "MANY_EXPERTS",
    "PEERS",
    "PYRAMID",
    "SEQUENCE",
    "SMALL",
    "SOUND",
    "STAGES",
    "T5",
    "TEXT_TOWER",
    "VOCABULARY",
    "Architecture",
    "add_transformers",
    "declare_missing_operators",
    "draw_constants",
    "image",
    "normal",
    "pixels",
    "sound",
    "text",
    "text_and_pixels",
    "two_texts",
]

PEERS: Final = ("transformers", "torchvision")

Inputs = dict[str, Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class Architecture:
    """A network that is tried.

    Args:
        family: what it is used for.
        peer: the package it comes from; "" if it is written out here.
        make: draws the model, in evaluation mode, and makes inputs of it.
    """

    family: str
    peer: str
    make: Callable[[], tuple[nn.Module, Inputs]]


ARCHITECTURES: Final[dict[str, Architecture]] = {}
"""All architectures by name, family after family."""

VOCABULARY: Final = 64


@functools.cache
def declare_missing_operators() -> torch.library.Library | None:
    """Lets torchvision be imported beside a build of torch that its compiled operators do not fit.

    Two of its modules stop at operators for boxes that are then unknown; declared, not defined,
    they let everything else work.
    """
    package = find_spec("torchvision")
    if package is None or package.origin is None:
        return None
    with contextlib.suppress(OSError):
        for path in Path(package.origin).parent.glob("_C*.so"):
            torch.ops.load_library(path)
            return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def draw_constants(model: nn.Module) -> None:
    """Moves every parameter and statistic that starts as one number: at 0 it would hide a branch.

    Args:
        model: that was just built; changed in place.
    """
    generator = torch.Generator().manual_seed(0)
    buffers = (item for item in model.named_buffers() if "running" in item[0])
    with torch.no_grad():
        for _, tensor in (*model.named_parameters(), *buffers):
            # Layer scales of 1e-6 hide a branch as well.
            if tensor.numel() and bool((tensor - tensor.flatten()[0]).abs().max() == 0):
                # At least 0.4 from 0 where it was 1, as variances and scales are.
                drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_((1.2 * drawn - 0.6).to(tensor))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _tokens(length: int = 12) -> Tensor:
    return torch.randint(3, VOCABULARY, (2, length), generator=_generator())


def normal(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=_generator())


def image(side: int = 32) -> Tensor:
    return normal(3, side, side)


def text() -> Inputs:
    return {"input_ids": _tokens()}


def sound() -> Inputs:
    return {"input_values": normal(1600)}


def two_texts() -> Inputs:
    return {"input_ids": _tokens(), "decoder_input_ids": _tokens(7)}


def pixels(side: int = 32) -> Callable[[], Inputs]:
    return lambda: {"pixel_values": image(side)}


def text_and_pixels() -> Inputs:
    return {"input_ids": _tokens(), "pixel_values": image()}


def add_transformers(
    family: str, name: str, classes: str, inputs: Callable[[], Inputs], *tables: Mapping[str, Any]
) -> None:
    """Adds a model of transformers: "Name" + "ForTask" stands for NameForTask and NameConfig.

    Args:
        family: of the architecture.
        name: of the architecture.
        classes: of the model; the configuration's class follows behind a slash if it is another.
        inputs: makes them.
        tables: arguments of the configuration; later ones win.
    """
    stem, _, task = classes.partition("+")
    task, _, config = task.partition("/")
    settings = {key: value for table in tables for key, value in table.items()}

    def make() -> tuple[nn.Module, Inputs]:
        declare_missing_operators()
        package = importlib.import_module("transformers")
        configuration = getattr(package, config or f"{stem}Config")(**settings)
        return getattr(package, stem + task)(configuration).eval(), inputs()

    ARCHITECTURES[name] = Architecture(family, "transformers", make)


def _torchvision(family: str, name: str, side: int = 64, **settings: Any) -> None:
    def make() -> tuple[nn.Module, Inputs]:
        declare_missing_operators()
        models = importlib.import_module("torchvision.models")
        arguments = {"weights": None, **settings}
        return models.get_model(name, **arguments).eval(), (image(side),)

    ARCHITECTURES[f"torchvision {name}"] = Architecture(family, "torchvision", make)


def _torchvision_class(
    family: str, name: str, path: str, side: int, settings: Mapping[str, Any]
) -> None:
    """Adds a network of torchvision that only its class makes small enough."""

    def make() -> tuple[nn.Module, Inputs]:
        declare_missing_operators()
        module, _, function = path.rpartition(".")
        build = getattr(importlib.import_module(f"torchvision.models.{module}"), function)
        return build(**settings).eval(), (image(side),)

    ARCHITECTURES[f"torchvision {name}"] = Architecture(family, "torchvision", make)


def _handwritten(family: str, name: str, make: Callable[[], nn.Module], inputs: Tensor) -> None:
    ARCHITECTURES[name] = Architecture(family, "", lambda: (make().eval(), (inputs,)))


SMALL: Final = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
BERT: Final = {**SMALL, "max_position_embeddings": 40}
GROUPED: Final = {**BERT, "num_key_value_heads": 2}
"""Two heads of queries share a head of keys and values."""
HEADS_OF_8: Final = {**GROUPED, "head_dim": 8}
GPT: Final = {
    "vocab_size": VOCABULARY,
    "n_positions": 40,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}
SEQUENCE: Final = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
T5: Final = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
}
IMAGE: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
STAGES: Final = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}
PYRAMID: Final = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
}
TEXT_TOWER: Final = {**BERT, "eos_token_id": 2}
SOUND: Final = {
    **SMALL,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    # In training it masks spans of time, of which a short sound has few.
    "mask_time_length": 2,
}
EXPERTS: Final = {"num_local_experts": 4, "num_experts_per_tok": 2}
MANY_EXPERTS: Final = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}

for _name, _classes, *_tables in (
    ("bert", "Bert+Model", BERT),
    ("bert classifier", "Bert+ForSequenceClassification", BERT),
    ("roberta", "Roberta+Model", BERT),
    ("electra", "Electra+Model", BERT, {"embedding_size": 16}),
    ("albert", "Albert+Model", BERT, {"embedding_size": 16}),
    (
        "distilbert",
        "DistilBert+Model",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 40,
        },
    ),
    (
        "deberta v2",
        "DebertaV2+Model",
        BERT,
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    ("mpnet", "MPNet+Model", BERT),
    ("modernbert", "ModernBert+Model", BERT, {"pad_token_id": 0}),
    ("xlnet", "XLNet+Model", T5, {"n_layer": 2, "n_head": 4, "d_inner": 48}),
    ("fnet", "FNet+Model", BERT),
    ("squeezebert", "SqueezeBert+Model", BERT, {"embedding_size": 32}),
    (
        "mobilebert",
        "MobileBert+Model",
        BERT,
        {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
):
    add_transformers("text encoder", _name, _classes, text, *_tables)

for _name, _classes, *_tables in (
    ("gpt2", "GPT2+LMHeadModel", GPT),
    (
        "gpt neo",
        "GPTNeo+ForCausalLM",
        BERT,
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    ("gpt neox", "GPTNeoX+ForCausalLM", BERT),
    ("gptj", "GPTJ+ForCausalLM", GPT, {"rotary_dim": 4}),
    ("opt", "OPT+ForCausalLM", BERT, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ("bloom", "Bloom+ForCausalLM", {**GPT, "hidden_size": 32}),
    ("falcon", "Falcon+ForCausalLM", SMALL),
    ("llama", "Llama+ForCausalLM", GROUPED),
    ("mistral", "Mistral+ForCausalLM", GROUPED),
    ("qwen2", "Qwen2+ForCausalLM", GROUPED),
    ("qwen3", "Qwen3+ForCausalLM", HEADS_OF_8),
    ("gemma", "Gemma+ForCausalLM", HEADS_OF_8),
    ("gemma2", "Gemma2+ForCausalLM", HEADS_OF_8),
    ("gemma3", "Gemma3+ForCausalLM/Gemma3TextConfig", HEADS_OF_8),
    ("phi", "Phi+ForCausalLM", BERT),
    # Where attention and norms hold much, the MLP is as wide as in the released networks.
    ("phi3", "Phi3+ForCausalLM", GROUPED, {"pad_token_id": 0, "intermediate_size": 88}),
    ("stablelm", "StableLm+ForCausalLM", GROUPED),
    ("olmo2", "Olmo2+ForCausalLM", GROUPED, {"intermediate_size": 88}),
    ("cohere", "Cohere+ForCausalLM", GROUPED),
    ("granite", "Granite+ForCausalLM", GROUPED),
    ("mixtral", "Mixtral+ForCausalLM", GROUPED, EXPERTS),
    (
        "mixtral, experts in a loop",
        "Mixtral+ForCausalLM",
        GROUPED,
        EXPERTS,
        {"experts_implementation": "eager"},
    ),
    (
        "qwen2 moe",
        "Qwen2Moe+ForCausalLM",
        GROUPED,
        MANY_EXPERTS,
        {"shared_expert_intermediate_size": 24, "experts_implementation": "eager"},
    ),
    (
        "olmoe",
        "Olmoe+ForCausalLM",
        GROUPED,
        MANY_EXPERTS,
        {"experts_implementation": "eager"},
    ),
    (
        "deepseek v2",
        "DeepseekV2+ForCausalLM",
        BERT,
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "experts_implementation": "eager",
        },
    ),
):
    add_transformers("language model", _name, _classes, text, *_tables)

for _name, _classes, *_tables in (
    ("mamba", "Mamba+ForCausalLM", SMALL, {"state_size": 4}),
    (
        "mamba2",
        "Mamba2+ForCausalLM",
        SMALL,
        {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    ),
    (
        "rwkv",
        "Rwkv+ForCausalLM",
        SMALL,
        {"attention_hidden_size": 32, "intermediate_size": 128},
    ),
):
    add_transformers("state space", _name, _classes, text, *_tables)

for _name, _classes, *_tables in (
    ("t5", "T5+ForConditionalGeneration", T5),
    (
        "flan t5",
        "T5+ForConditionalGeneration",
        T5,
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    ("bart", "Bart+ForConditionalGeneration", SEQUENCE),
    ("marian", "Marian+MTModel", SEQUENCE),
):
    add_transformers("encoder-decoder", _name, _classes, two_texts, *_tables)

for _name, _classes, _side, *_tables in (
    ("vit", "ViT+ForImageClassification", 32, IMAGE),
    ("deit", "DeiT+Model", 32, IMAGE),
    ("beit", "Beit+Model", 32, IMAGE, {"use_relative_position_bias": True}),
    ("dinov2", "Dinov2+Model", 32, IMAGE, {"mlp_ratio": 2}),
    (
        "swin",
        "Swin+ForImageClassification",
        32,
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    ("pvt v2", "PvtV2+ForImageClassification", 64, PYRAMID),
    (
        "levit",
        "Levit+ForImageClassification",
        64,
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    (
        "mobilevit",
        "MobileViT+ForImageClassification",
        64,
        {
            "hidden_sizes": [32, 40, 48],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
            "num_attention_heads": 4,
        },
    ),
):
    add_transformers("vision transformer", _name, _classes, pixels(_side), *_tables)

add_transformers(
    "vision transformer",
    "vit mae",
    "ViTMAE+Model",
    # Without noise of the caller's it draws which patches it masks.
    lambda: {"pixel_values": image(), "noise": normal(16)},
    IMAGE,
)
add_transformers(
    "text and vision",
    "clip",
    "CLIP+Model",
    text_and_pixels,
    {"text_config": TEXT_TOWER, "vision_config": IMAGE, "projection_dim": 16},
)
add_transformers(
    "text and vision",
    "blip",
    "Blip+Model",
    text_and_pixels,
    {
        "text_config": {
            **TEXT_TOWER,
            "encoder_hidden_size": 32,
            "projection_dim": 16,
            "intermediate_size": 128,
        },
        "vision_config": {**IMAGE, "intermediate_size": 128},
        "projection_dim": 16,
    },
)

for _name, _classes, _side, *_tables in (
    ("convnext", "ConvNext+ForImageClassification", 32, STAGES),
    ("convnextv2", "ConvNextV2+ForImageClassification", 32, STAGES),
    ("resnet", "ResNet+ForImageClassification", 32, STAGES, {"embedding_size": 8}),
    (
        "regnet",
        "RegNet+ForImageClassification",
        32,
        STAGES,
        {"embedding_size": 8, "groups_width": 8},
    ),
    ("mobilenet v2", "MobileNetV2+ForImageClassification", 32, {"depth_multiplier": 0.35}),
    ("poolformer", "PoolFormer+ForImageClassification", 64, PYRAMID),
):
    add_transformers("convolutional", _name, _classes, pixels(_side), *_tables)

add_transformers(
    "detection and segmentation",
    "segformer",
    "Segformer+ForSemanticSegmentation",
    pixels(64),
    PYRAMID,
    {"decoder_hidden_size": 16},
)
add_transformers(
    "detection and segmentation",
    "yolos",
    "Yolos+ForObjectDetection",
    pixels(),
    IMAGE,
    {"image_size": [32, 32], "num_detection_tokens": 4},
)
add_transformers(
    "detection and segmentation",
    "detr",
    "Detr+ForObjectDetection",
    pixels(64),
    SEQUENCE,
    {
        "use_timm_backbone": False,
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            **STAGES,
            "out_features": ["stage4"],
        },
        "encoder_layers": 1,
        "decoder_layers": 1,
        "num_queries": 5,
    },
)
add_transformers(
    "speech",
    "whisper",
    "Whisper+ForConditionalGeneration",
    lambda: {"input_features": normal(8, 60), "decoder_input_ids": _tokens(7)},
    SEQUENCE,
    {"num_mel_bins": 8, "max_source_positions": 30, "max_target_positions": 40},
)
for _name, _classes in (("wav2vec2", "Wav2Vec2+ForCTC"), ("hubert", "Hubert+Model")):
    add_transformers("speech", _name, _classes, sound, SOUND)
add_transformers(
    "speech",
    "audio spectrogram transformer",
    "AST+Model",
    lambda: {"input_values": normal(32, 16)},
    IMAGE,
    {"max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
)

for _name in (
    *("resnet18", "resnet50", "resnext50_32x4d", "densenet121", "squeezenet1_1"),
    *("mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5"),
    *("efficientnet_b0", "regnet_y_400mf"),
):
    _torchvision("convolutional", _name)
for _name, _side in (("googlenet", 64), ("inception_v3", 128)):
    _torchvision("convolutional", _name, _side, aux_logits=False, init_weights=False)
_SWIN: Final = {
    "patch_size": [4, 4],
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": [4, 4],
    "num_classes": 10,
}
_torchvision_class("vision transformer", "swin", "swin_transformer.SwinTransformer", 64, _SWIN)
_torchvision_class(
    "vision transformer",
    "vit",
    "vision_transformer.VisionTransformer",
    32,
    {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 32,
        "mlp_dim": 128,
        "num_classes": 10,
    },
)
_torchvision_class(
    "vision transformer",
    "maxvit",
    "maxvit.MaxVit",
    64,
    {
        "input_size": (64, 64),
        "stem_channels": 16,
        "partition_size": 4,
        "block_channels": [16, 32],
        "block_layers": [1, 1],
        "head_dim": 8,
        "stochastic_depth_prob": 0.0,
        "num_classes": 10,
    },
)
for _name in ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
    _torchvision("detection and segmentation", _name, weights_backbone=None)

for _name, _model in (
    ("gpt of views and transposes", handwritten.ViewGpt),
    ("decoder with alibi and rms norms", handwritten.AlibiDecoder),
    ("decoder with an expert a token", handwritten.ExpertDecoder),
):
    _handwritten("language model", _name, _model, _tokens())
_handwritten("encoder-decoder", "torch.nn.Transformer", handwritten.TorchTransformer, _tokens())
_handwritten("speech", "gru over a spectrogram", handwritten.SpeechGru, normal(20, 16))
_handwritten("speech", "wavenet", handwritten.WaveNet, normal(1, 64))
_handwritten("convolutional", "mlp mixer", handwritten.Mixer, image())
_handwritten("convolutional", "channel shuffle", handwritten.ChannelShuffle, image())
_handwritten("convolutional", "sub-pixel super-resolution", handwritten.SubPixel, image(16))
_handwritten("detection and segmentation", "u-net", handwritten.SmallUNet, image())
_handwritten("detection and segmentation", "feature pyramid", handwritten.FeaturePyramid, image())

"""More networks of transformers and torchvision, of families that the first list has none of."""

from __future__ import annotations

import importlib
from typing import Any, Final

import torch
from torch import nn

from benchmarks import _architectures as first
from benchmarks._architectures import (
    ARCHITECTURES,
    Architecture,
    add_transformers,
    declare_missing_operators,
)

__all__ = ["ARCHITECTURES"]

_EAGER: Final = {"experts_implementation": "eager"}
_LATENT: Final = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_SCAN: Final = {"mamba_d_state": 4, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 4}
_CONVOLUTIONS: Final = {"model_type": "convnext", **first.STAGES}
_RESNET: Final = {
    "use_timm_backbone": False,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        **first.STAGES,
        "out_features": ["stage4"],
    },
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_queries": 5,
}
_SMALL_SWIN: Final = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_LAYERS: Final = {
    f"{side}_{what}": number
    for side in ("encoder", "decoder")
    for what, number in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 128))
}


def _video() -> dict[str, Any]:
    return {"pixel_values": first.normal(2, 3, 32, 32)}


def _series() -> dict[str, Any]:
    return {
        "past_values": first.normal(16),
        "past_time_features": first.normal(16, 1),
        "past_observed_mask": torch.ones(2, 16),
        "future_values": first.normal(4),
        "future_time_features": first.normal(4, 1),
    }


for _name, _classes, *_tables in (
    ("esm", "Esm+Model", {"pad_token_id": 1, "position_embedding_type": "rotary"}),
    ("bigbird", "BigBird+Model", {"attention_type": "original_full"}),
    ("rembert", "RemBert+Model", {"input_embedding_size": 16, "output_embedding_size": 16}),
    ("roformer", "RoFormer+Model", {"embedding_size": 32}),
    (
        "canine",
        "Canine+Model",
        {
            "num_hash_buckets": 64,
            "local_transformer_stride": 4,
            "upsampling_kernel_size": 2,
            "downsampling_rate": 2,
        },
    ),
    ("tapas", "Tapas+Model", {"type_vocab_sizes": [3, 4, 4, 2, 4, 4, 4]}),
    ("layoutlm", "LayoutLM+Model", {"max_2d_position_embeddings": 16}),
    ("megatron bert", "MegatronBert+Model"),
    ("deberta", "Deberta+Model", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    ("i-bert", "IBert+Model"),
    ("nomic bert", "NomicBert+Model"),
):
    add_transformers("text encoder", _name, _classes, first.text, first.BERT, *_tables)
add_transformers(
    "text encoder",
    "reformer",
    "Reformer+Model",
    first.text,
    {
        "vocab_size": first.VOCABULARY,
        "attn_layers": ["local", "local"],
        "hidden_size": 32,
        "attention_head_size": 8,
        "num_attention_heads": 4,
        "feed_forward_size": 128,
        "axial_pos_embds": False,
        "max_position_embeddings": 40,
        "local_attn_chunk_length": 6,
    },
)

for _name, _classes, *_tables in (
    ("jamba", "Jamba+ForCausalLM", {
        "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4,
        "mamba_dt_rank": 4, **_EAGER,
    }),
    ("granite hybrid", "GraniteMoeHybrid+ForCausalLM", {
        "layer_types": ["mamba", "attention"], "num_local_experts": 0,
        "shared_intermediate_size": 128, **_SCAN,
    }),
    ("nemotron", "Nemotron+ForCausalLM"),
    ("starcoder2", "Starcoder2+ForCausalLM"),
    ("phimoe", "Phimoe+ForCausalLM", first.EXPERTS, _EAGER),
    ("granite moe", "GraniteMoe+ForCausalLM", first.EXPERTS, _EAGER),
    ("olmo", "Olmo+ForCausalLM"),
    ("smollm3", "SmolLM3+ForCausalLM", {"pad_token_id": 0}),
    ("lfm2", "Lfm2+ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    ("nanochat", "NanoChat+ForCausalLM"),
    ("apertus", "Apertus+ForCausalLM"),
):  # fmt: skip
    add_transformers("language model", _name, _classes, first.text, first.GROUPED, *_tables)

for _name, _classes, *_tables in (
    ("gemma4", "Gemma4+ForCausalLM/Gemma4TextConfig", {
        "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0, "global_head_dim": 8,
    }),
    ("glm", "Glm+ForCausalLM", {"pad_token_id": 0}),
    ("glm4", "Glm4+ForCausalLM", {"pad_token_id": 0}),
    ("qwen3 moe", "Qwen3Moe+ForCausalLM", first.MANY_EXPERTS, _EAGER),
    ("qwen3 next", "Qwen3Next+ForCausalLM", first.MANY_EXPERTS, _EAGER, {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 24,
    }),
    ("exaone4", "Exaone4+ForCausalLM", {"sliding_window": 8}),
    ("cohere2", "Cohere2+ForCausalLM"),
    ("helium", "Helium+ForCausalLM"),
):  # fmt: skip
    add_transformers("language model", _name, _classes, first.text, first.HEADS_OF_8, *_tables)

for _name, _classes, *_tables in (
    ("gpt bigcode", "GPTBigCode+ForCausalLM", first.GPT),
    ("codegen", "CodeGen+ForCausalLM", first.GPT, {"rotary_dim": 4}),
    ("openai gpt", "OpenAIGPT+LMHeadModel", first.GPT),
    ("image gpt", "ImageGPT+Model", first.GPT),
    ("ctrl", "CTRL+Model", first.GPT, {"dff": 128}),
    ("mpt", "Mpt+ForCausalLM", {
        "vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40,
    }),
    ("biogpt", "BioGpt+ForCausalLM", first.BERT),
    ("xglm", "XGLM+ForCausalLM", {
        "vocab_size": 64, "d_model": 32, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4,
        "max_position_embeddings": 40,
    }),
    ("modernbert decoder", "ModernBertDecoder+ForCausalLM", first.BERT, {"pad_token_id": 0}),
    ("falcon with alibi", "Falcon+ForCausalLM", first.SMALL, {"alibi": True}),
    ("falcon mamba", "FalconMamba+ForCausalLM", first.SMALL, {"state_size": 4}),
):  # fmt: skip
    add_transformers("language model", _name, _classes, first.text, *_tables)

for _name, _classes in (
    ("pegasus", "Pegasus"), ("mbart", "MBart"), ("m2m100", "M2M100"), ("plbart", "PLBart"),
    ("blenderbot", "Blenderbot"), ("mvp", "Mvp"),
):  # fmt: skip
    add_transformers(
        "encoder-decoder",
        _name,
        f"{_classes}+ForConditionalGeneration",
        first.two_texts,
        first.SEQUENCE,
    )
for _name, _classes, *_tables in (
    ("longt5", "LongT5", {"local_radius": 4}),
    ("mt5", "MT5"),
    ("umt5", "UMT5"),
):
    _model = f"{_classes}+ForConditionalGeneration"
    add_transformers("encoder-decoder", _name, _model, first.two_texts, first.T5, *_tables)

for _name, _classes, _side, *_tables in (
    ("siglip vision", "Siglip+VisionModel/SiglipVisionConfig", 32, first.IMAGE),
    ("i-jepa", "IJepa+Model", 32, first.IMAGE),
    ("dinov3", "DINOv3ViT+Model", 32, first.IMAGE),
    ("swin v2", "Swinv2+ForImageClassification", 32, {
        "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4,
    }),
    ("focalnet", "FocalNet+ForImageClassification", 32, {
        "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1],
        "focal_levels": [2, 2], "focal_windows": [3, 3], "hidden_sizes": [16, 32],
    }),
    ("hiera", "Hiera+ForImageClassification", 32, {
        "image_size": [32, 32], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2],
        "masked_unit_size": [2, 2], "query_stride": [2, 2], "num_query_pool": 1,
    }),
    ("swiftformer", "SwiftFormer+ForImageClassification", 32, {
        "image_size": 32, "embed_dims": [16, 24, 32, 40], "depths": [1, 1, 1, 1],
    }),
    ("mobilevit v2", "MobileViTV2+ForImageClassification", 64, {
        "width_multiplier": 0.25, "image_size": 64,
    }),
):  # fmt: skip
    add_transformers("vision transformer", _name, _classes, first.pixels(_side), *_tables)

for _name, _classes in (("video mae", "VideoMAE"), ("vivit", "Vivit")):
    _tubes: Any = 1 if _classes == "VideoMAE" else [1, 8, 8]
    add_transformers(
        "video", _name, f"{_classes}+Model", _video, first.IMAGE,
        {"num_frames": 2, "tubelet_size": _tubes},
    )  # fmt: skip

add_transformers(
    "text and vision", "siglip", "Siglip+Model", first.text_and_pixels,
    {"text_config": first.TEXT_TOWER, "vision_config": first.IMAGE},
)  # fmt: skip
add_transformers(
    "text and vision", "owl-vit", "OwlViT+Model", first.text_and_pixels,
    {"text_config": first.TEXT_TOWER, "vision_config": first.IMAGE, "projection_dim": 16},
)  # fmt: skip

for _name, _classes, _side, *_tables in (
    ("mobilenet v1", "MobileNetV1+ForImageClassification", 32, {"depth_multiplier": 0.25}),
    ("textnet", "TextNet+ForImageClassification", 64, {
        "hidden_sizes": [8, 8, 16, 24, 32], "stem_out_channels": 8,
    }),
    ("superpoint", "SuperPoint+ForKeypointDetection", 64, {
        "encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
        "descriptor_decoder_dim": 16,
    }),
):  # fmt: skip
    add_transformers("convolutional", _name, _classes, first.pixels(_side), *_tables)

for _name, _classes, *_tables in (
    ("glpn", "GLPN+ForDepthEstimation", first.PYRAMID, {"decoder_hidden_size": 8}),
    ("upernet", "UperNet+ForSemanticSegmentation", {
        "backbone_config": {**_CONVOLUTIONS, "out_features": [f"stage{n}" for n in range(1, 5)]},
        "hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 32,
    }),
    ("conditional detr", "ConditionalDetr+ForObjectDetection", first.SEQUENCE, _RESNET),
    ("table transformer", "TableTransformer+ForObjectDetection", first.SEQUENCE, _RESNET),
    ("maskformer", "MaskFormer+ForInstanceSegmentation", {
        "backbone_config": _SMALL_SWIN,
        "decoder_config": {
            "model_type": "detr", "d_model": 32, "num_queries": 5, **_LAYERS,
        },
        "fpn_feature_size": 32, "mask_feature_size": 32,
    }),
):  # fmt: skip
    add_transformers("detection and segmentation", _name, _classes, first.pixels(64), *_tables)

for _name, _classes, *_tables in (
    ("unispeech", "UniSpeech+Model"),
    ("unispeech sat", "UniSpeechSat+Model"),
    ("sew", "SEW+Model", {"conv_dim": [16] * 13, "squeeze_factor": 2}),
    ("wav2vec2 conformer", "Wav2Vec2Conformer+Model"),
):
    add_transformers("speech", _name, _classes, first.sound, first.SOUND, *_tables)

for _name, _classes in (("informer", "Informer"), ("time series", "TimeSeriesTransformer")):
    add_transformers(
        "time series", _name, f"{_classes}+Model", _series,
        {
            "prediction_length": 4, "context_length": 9, "lags_sequence": [*range(1, 8)],
            "num_time_features": 1, "d_model": 32, **_LAYERS,
        },
    )  # fmt: skip
add_transformers(
    "time series", "patchtst", "PatchTST+ForPrediction",
    lambda: {"past_values": first.normal(16, 3)},
    {
        "num_input_channels": 3, "context_length": 16, "patch_length": 4, "patch_stride": 4,
        "d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128,
        "prediction_length": 4,
    },
)  # fmt: skip
add_transformers(
    "time series", "perceiver", "Perceiver+Model", lambda: {"inputs": first.normal(12, 16)},
    {
        "num_latents": 8, "d_latents": 32, "d_model": 16, "num_blocks": 1,
        "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
)  # fmt: skip


def _swin_v2() -> tuple[nn.Module, Any]:
    declare_missing_operators()
    swin = importlib.import_module("torchvision.models.swin_transformer")
    model = swin.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10,
        block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2,
    )  # fmt: skip
    return model.eval(), (first.image(64),)


def _convnext() -> tuple[nn.Module, Any]:
    declare_missing_operators()
    convnext = importlib.import_module("torchvision.models.convnext")
    stages = [convnext.CNBlockConfig(16, 24, 1), convnext.CNBlockConfig(24, 32, 2)]
    return convnext.ConvNeXt(stages, num_classes=10).eval(), (first.image(64),)


ARCHITECTURES["torchvision swin v2"] = Architecture("vision transformer", "torchvision", _swin_v2)
ARCHITECTURES["torchvision convnext"] = Architecture("convolutional", "torchvision", _convnext)

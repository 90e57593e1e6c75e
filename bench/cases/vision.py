"""Configs of tiny models that see: their language models' changes of BASE under "text"."""

from __future__ import annotations

from bench.cases.texts import GEMMA3, GEMMA4E, MINISTRAL, QWEN35, SHARED, H, Spec

MROPE = {"rope_type": "default", "rope_theta": 1e6}
# three blocks: the converter takes the parts of a projector for blocks, too
SIGLIP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
PIXTRAL = {**SIGLIP, "model_type": "pixtral", "head_dim": 32}
QWEN_VISION = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": H,
}
QWEN_TOKENS = {
    "image_token_id": 2040,
    "video_token_id": 2041,
    "vision_start_token_id": 2042,
    "vision_end_token_id": 2043,
}
PLACES = {**QWEN_VISION, "num_position_embeddings": 64}
# what the converter reads of an image processor
PROCESSOR = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 14,
    "min_pixels": 3136,
    "max_pixels": 12544,
}
SEEING: dict[str, Spec] = {
    "gemma3_vision": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text": GEMMA3,
            "vision_config": {**SIGLIP, "vision_use_head": False},
            "mm_tokens_per_image": 4,
            "image_token_index": 2040,
            "boi_token_index": 2041,
            "eoi_token_index": 2042,
        },
    ),
    "gemma4_vision": (
        "Gemma4ForConditionalGeneration",
        "Gemma4Config",
        {
            "text": GEMMA4E,
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "position_embedding_size": 64,
            },
            "audio_config": None,
            "image_token_id": 5,
        },
    ),
    "mistral3_vision": (
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {
            "text": {"head_dim": 64, "sliding_window": None, "model_type": "mistral"},
            "vision_config": PIXTRAL,
            "image_token_index": 10,
        },
    ),
    "ministral3": (
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {
            "text": {**MINISTRAL, "model_type": "ministral3"},
            "vision_config": PIXTRAL,
            "image_token_index": 10,
        },
    ),
    "qwen25_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text": {"rope_parameters": {**MROPE, "mrope_section": [8, 12, 12]}},
            "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [0]},
            "tie_word_embeddings": False,
            **QWEN_TOKENS,
        },
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {
            "text": {
                "head_dim": 64,
                "rope_parameters": {
                    **MROPE,
                    "mrope_section": [12, 10, 10],
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {**PLACES, "deepstack_visual_indexes": [0]},
            "tie_word_embeddings": False,
            **QWEN_TOKENS,
        },
    ),
    "qwen35": (
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        {"text": QWEN35, "vision_config": PLACES, **QWEN_TOKENS},
    ),
    "qwen35_moe": (
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3_5MoeConfig",
        {"text": {**QWEN35, **SHARED}, "vision_config": PLACES, **QWEN_TOKENS},
    ),
    "llama4": (
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        {
            "text": {
                "num_hidden_layers": 4,
                "intermediate_size": 256,
                "intermediate_size_mlp": 512,
                "head_dim": 64,
                "num_local_experts": 4,
                "num_experts_per_tok": 1,
                "interleave_moe_layer_step": 2,
                "attention_chunk_size": 8192,
                "pad_token_id": 0,
            },
            "vision_config": {
                **SIGLIP,
                "intermediate_size": 256,
                "vision_output_dim": 64,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
            },
            "image_token_index": 2040,
            "boi_token_index": 2041,
            "eoi_token_index": 2042,
        },
    ),
}

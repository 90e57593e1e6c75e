"""Configs of tiny language models: what each changes of BASE."""

from __future__ import annotations

from typing import Any

V, H = 2112, 256  # 2048 tokens, and special ones
BASE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
SLIDING = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention", "full_attention"]
GEMMA = {"head_dim": 64, "sliding_window": 64, "num_hidden_layers": 6, "pad_token_id": 3}
GEMMA3 = {**GEMMA, "query_pre_attn_scalar": 64}
GEMMA4 = {
    **GEMMA,
    "global_head_dim": 128,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": V,
    "tie_word_embeddings": True,
    "layer_types": SLIDING,
}
GEMMA4E = {**GEMMA4, "hidden_size_per_layer_input": 32, "num_kv_shared_layers": 2}
# llama.cpp takes Gemma 3n to have 10 sparse layers, and 20 with keys and values of their own, as
# those published have
GEMMA3N = {
    **GEMMA,
    "num_hidden_layers": 22,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": V,
    "laurel_rank": 64,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
    "layer_types": [*(["sliding_attention"] * 4), "full_attention"] * 4
    + ["sliding_attention", "full_attention"],
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 256}
LINEAR = {
    "num_hidden_layers": 4,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "tie_word_embeddings": False,
}
QWEN35 = {
    **LINEAR,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.5,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "n_shared_experts": 1,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "n_group": 1,
    "topk_group": 1,
}
YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 256,
}
MINISTRAL = {
    "head_dim": 64,
    "sliding_window": None,
    "rope_parameters": {
        **YARN,
        "rope_theta": 1e6,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}
GPT_OSS = {
    "intermediate_size": 256,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 64,
    "sliding_window": 64,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        **YARN,
        "rope_theta": 150000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
}
NO_WINDOW = {"sliding_window": None, "pad_token_id": 0}
PHI = {**NO_WINDOW, "original_max_position_embeddings": 512}
Spec = tuple[str, str, dict[str, Any]]
# name -> class, config class, what its config changes of BASE
SPEAKING: dict[str, Spec] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "arcee": ("ArceeForCausalLM", "ArceeConfig", {}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": None, "head_dim": 128}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"tie_word_embeddings": True, "head_dim": 128}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GEMMA3, "num_hidden_layers": 2}),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3),
    "gemma3n_text": ("Gemma3nForCausalLM", "Gemma3nTextConfig", GEMMA3N),
    "gemma4_text": ("Gemma4ForCausalLM", "Gemma4TextConfig", GEMMA4),
    "gemma4_e_text": ("Gemma4ForCausalLM", "Gemma4TextConfig", GEMMA4E),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 256,
            "sliding_window": None,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**EXPERTS, "head_dim": 64, "norm_topk_prob": True},
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        "OlmoeConfig",
        {**EXPERTS, "intermediate_size": 256, "num_key_value_heads": 4},
    ),
    "qwen3_next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", {**LINEAR, **SHARED}),
    "qwen35_text": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", QWEN35),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", PHI),
    "phi4_mini": ("Phi3ForCausalLM", "Phi3Config", {**PHI, "tie_word_embeddings": True}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", GPT_OSS),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        "DeepseekV2Config",
        # llama.cpp takes 27 layers for V2-Lite, which has no q_lora_rank
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "head_dim": 32,
            "num_hidden_layers": 27,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {**DEEPSEEK, "q_lora_rank": 128},
    ),
    "deepseek_dense": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {**DEEPSEEK, "q_lora_rank": 128, "first_k_dense_replace": 2},
    ),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "first_k_dense_replace": 1,
            "head_dim": 64,
            "n_group": 1,
            "topk_group": 1,
            "pad_token_id": 2,
            "use_qk_norm": True,
        },
    ),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            "tie_word_embeddings": True,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.015625,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "smollm3": (
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {}),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", {"num_hidden_layers": 4, "sliding_window": 64}),
    "lfm2": (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
            "block_ff_dim": 512,
            "pad_token_id": 0,
        },
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"state_size": 16, "pad_token_id": 0}),
    "mamba2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {"state_size": 64, "num_heads": 8, "head_dim": 64, "n_groups": 1, "pad_token_id": 0},
    ),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", NO_WINDOW),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": H, "n_layer": 2, "n_head": 4}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {"ffn_dim": 512, "word_embed_proj_dim": H, "pad_token_id": 0},
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"n_layer": 2, "n_head": 4, "pad_token_id": 0}),
    "falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        {"num_kv_heads": 1, "multi_query": True, "parallel_attn": True, "bias": False},
    ),
    "hunyuan": (
        "HunYuanDenseV1ForCausalLM",
        "HunYuanDenseV1Config",
        {"head_dim": 64, "pad_token_id": 0, "tie_word_embeddings": True},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": H, "d_ff": 512, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "bert": ("BertModel", "BertConfig", {}),
}

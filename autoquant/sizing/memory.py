"""What a model takes of memory beside its weights, computed from config.json as llama.cpp does:
for models that its converter does not take, or where it is not installed. Where a header of a GGUF
file can be made, llama.cpp itself is asked (``asked``).

The layouts are those of src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp
and llama-hparams.cpp of the pinned llama.cpp; tests compare both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autoquant.core.errors import InputError

KvType = Literal["f16", "q8_0", "q4_0"]
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")
KV_BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}  # a block of 32: 64, 34, 18 bytes (ggml-common.h)
PAD = 256  # llama.cpp makes so many cells at a time
MICRO_BATCH = 512  # tokens that are computed together (llama-server -ub)
# how configs name one thing
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
WIDTH = ("hidden_size", "n_embd", "d_model")
LENGTH = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
ATTENDING = ("full_attention", "attention", "global_attention", "hybrid", "global")
SLIDING = ("sliding_attention", "chunked_attention", "local_attention", "sliding")
# model_type -> every so many layers one attends to all, where published configs do not say it
EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma3n_text": 5, "cohere2": 4}
NEMOTRON = {"M": "mamba", "*": "attention", "-": "none", "E": "none"}


@dataclass(frozen=True)
class Beside:
    """Bytes that a model takes beside its weights: ``cache`` is that of keys and values, ``state``
    that of layers which have a recurrent one instead, ``compute`` what is held between operations.
    ``asked``: llama.cpp itself has said them; else they are computed. ``tower`` is the file of what
    a model sees or hears with (mmproj).
    """

    cache: int
    state: int
    compute: int
    asked: bool = False
    tower: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.cache + self.state + self.compute + self.tower


def beside(config: Mapping[str, Any], context: int, kv_type: str = "f16") -> Beside:
    """Of one sequence of ``context`` tokens; ``kv_type`` is that of keys and values. Raises
    InputError for a config without the sizes that this follows from.
    """
    inner = _language(config)
    kinds = layer_kinds(inner)
    cells = -(-context // PAD) * PAD
    window = int(inner.get("sliding_window") or inner.get("attention_chunk_size") or 0)
    near = min(cells, -(-(window + MICRO_BATCH) // PAD) * PAD) if window else cells
    own = inner.get("per_layer_config") or {}  # what single layers have of their own
    values = state = 0
    for i, kind in enumerate(kinds):
        layer = {**inner, **own.get(str(i), {})}
        if kind in ATTENDING:
            values += cells * _values(layer, full=True)
        elif kind in SLIDING:
            values += near * _values(layer, full=False)
        if kind not in (*ATTENDING, *SLIDING) or kind == "hybrid":
            state += 4 * _state(layer, kind)  # float32
    seen = {n for n, some in ((cells, ATTENDING), (near, SLIDING)) if {*kinds} & {*some}}
    return Beside(int(values * KV_BITS[kv_type] / 8), state, _compute(inner, sum(seen)))


def context_limit(config: Mapping[str, Any]) -> int | None:
    """The longest context that a config allows, in tokens; None if it sets no limit (as of models
    with a recurrent state only).
    """
    inner = _language(config)
    return next((int(inner[name]) for name in LENGTH if inner.get(name)), None)


def layer_kinds(inner: Mapping[str, Any]) -> list[str]:
    """Of each layer how it sees earlier tokens, in the words of transformers' ``layer_types``;
    "none" for one that takes another's keys and values, or sees only its own token.
    """
    n = _size(inner, LAYERS, "layers")
    kinds = list(inner.get("layer_types") or inner.get("layers_block_type") or ())
    if pattern := inner.get("hybrid_override_pattern"):
        kinds = [NEMOTRON.get(letter, "none") for letter in pattern]
    kinds = kinds or _by_rule(inner, n)
    shared = int(inner.get("num_kv_shared_layers") or 0)
    return [*kinds[: n - shared], *["none"] * shared]


def _by_rule(inner: Mapping[str, Any], n: int) -> list[str]:
    """The kinds of layers of a config that does not list them."""
    kind = str(inner.get("model_type", ""))
    if "mamba" in kind:
        return ["mamba"] * n
    if every := inner.get("full_attention_interval"):
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(n)]
    if (every := inner.get("attn_layer_period")) is not None:  # Jamba
        first = int(inner.get("attn_layer_offset") or 0)
        return ["attention" if i % every == first else "mamba" for i in range(n)]
    if every := inner.get("sliding_window_pattern") or EVERY.get(kind):
        return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(n)]
    return ["full_attention"] * n  # Mistral's window too: llama.cpp keeps all of it


def _values(inner: Mapping[str, Any], *, full: bool) -> int:
    """Numbers that a layer keeps of a token. With multi-head latent attention (MLA) those are the
    latent ones and the rotated part of the key.
    """
    if rank := inner.get("kv_lora_rank"):
        return int(rank) + int(inner.get("qk_rope_head_dim") or 0)
    heads = _size(inner, HEADS, "attention heads")
    kept = inner.get("num_key_value_heads") or inner.get("num_kv_heads") or inner.get("n_head_kv")
    if kept is None or (inner.get("multi_query") and not inner.get("new_decoder_architecture")):
        kept = 1 if inner.get("multi_query") else heads
    width = inner.get("head_dim") or _size(inner, WIDTH, "width") // heads
    if full:  # Gemma 4's layers that see everything have other sizes
        kept = inner.get("num_global_key_value_heads") or kept
        width = inner.get("global_head_dim") or width
    return 2 * int(kept) * int(width)


def _state(inner: Mapping[str, Any], kind: str) -> int:
    """Numbers of a layer's recurrent state: the last inputs of its convolution, and its memory."""
    if kind == "linear_attention" and inner.get("linear_num_value_heads"):
        key = int(inner["linear_num_key_heads"]) * int(inner["linear_key_head_dim"])
        value = int(inner["linear_num_value_heads"]) * int(inner["linear_value_head_dim"])
        last = int(inner["linear_conv_kernel_dim"]) - 1
        return last * (2 * key + value) + value * int(inner["linear_key_head_dim"])
    if kind == "conv":  # LFM2
        last = int(inner.get("conv_L_cache") or 3) - 1
        return last * _size(inner, WIDTH, "width")
    if kind in ("mamba", "mamba2", "hybrid"):
        return _mamba(inner)
    return 0


def _mamba(inner: Mapping[str, Any]) -> int:
    """The same of Mamba, and of Mamba 2, which has heads."""
    width = _size(inner, WIDTH, "width")
    heads = inner.get("mamba_n_heads") or inner.get("mamba_num_heads") or inner.get("num_heads")
    each = inner.get("mamba_d_head") or inner.get("mamba_head_dim") or inner.get("head_dim")
    expand = inner.get("mamba_expand") or inner.get("expand") or 2
    channels = inner.get("intermediate_size") if "mamba" in str(inner.get("model_type")) else None
    channels = int(heads) * int(each) if heads and each else int(channels or expand * width)
    size = int(
        inner.get("mamba_d_state") or inner.get("ssm_state_size") or inner.get("state_size") or 16
    )
    last = int(inner.get("mamba_d_conv") or inner.get("conv_kernel") or 4) - 1
    groups = int(inner.get("mamba_n_groups") or inner.get("n_groups") or 1) if heads else 0
    return last * (channels + 2 * groups * size) + channels * size


def _compute(inner: Mapping[str, Any], cells: int) -> int:
    """About what is held between operations for 512 tokens: the masks of attention in 16 bits, in
    float32 some four vectors as wide as the model and three as its feed-forward part (fitted to
    what llama.cpp says of Llama-3.1-8B's shapes: 124 MiB), and one token's logits.
    """
    width = _size(inner, WIDTH, "width")
    inside = inner.get("intermediate_size") or inner.get("n_inner") or 4 * width
    inside = max(inside) if isinstance(inside, list) else int(inside)
    if experts := inner.get("num_experts_per_tok"):
        inside = max(int(inner.get("moe_intermediate_size") or inside) * int(experts), inside)
    vectors = 4 * width + 3 * inside
    return (
        4 * MICRO_BATCH * vectors + 2 * MICRO_BATCH * cells + 4 * int(inner.get("vocab_size") or 0)
    )


def _language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    inner = config.get("text_config") or config.get("llm_config")
    return inner if isinstance(inner, dict) else config


def _size(inner: Mapping[str, Any], names: tuple[str, ...], what: str) -> int:
    """A size by one of its names."""
    for name in names:
        if isinstance(inner.get(name), int):
            return int(inner[name])
    raise InputError(
        f"config.json has no number of {what} ({', '.join(names)}), so what the model takes of"
        " memory is not known. Download config.json again"
    )

"""Which of transformers' classes a config is for. Imports transformers: runs in workers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
GENERATES, SEES = "AutoModelForCausalLM", "AutoModelForImageTextToText"


def config_of(folder: str) -> Any:
    """A folder's config without its quantization block; no code of the model's own is run."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def kind_of(config: Any) -> tuple[str, str]:
    """The Auto class that loads a model of this config to generate text, and its own class; the
    first is empty if there is none.
    """
    from transformers.models.auto import modeling_auto as auto

    named = str((config.architectures or [""])[0])
    if getattr(config, "is_encoder_decoder", False):
        return "", named
    encoders = _names(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, config.model_type)
    if encoders and not getattr(config, "is_decoder", False):
        return "", named
    sees = _names(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, config.model_type)
    sees += _names(auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, config.model_type)
    generates = _names(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, config.model_type)
    for mapping, classes in ((GENERATES, generates), (SEES, sees)):
        if named in classes:
            both = mapping == GENERATES and named in sees
            return (SEES if both else mapping), named
    # a bare model or one with another head: what is missing will be named
    return (GENERATES, generates[0]) if generates else (SEES, sees[0]) if sees else ("", named)


def class_of(config: Any) -> Any:
    """The class itself."""
    import transformers

    return getattr(transformers, kind_of(config)[1])


def _names(mapping: Any, model_type: str) -> list[str]:
    names = dict(mapping).get(model_type, ())
    return [names] if isinstance(names, str) else list(names)


def match(kind: str, config: Any, shapes: Mapping[str, Sequence[int]]) -> tuple[Any, Any, Any]:
    """A model without data, what its loading says, and which tensor makes which parameter.

    transformers itself matches the names: it is handed tensors without data, and says what it
    missed, what it left over and what has another shape. So prefixes, renamed and merged tensors
    (experts) are matched as they will be when the model is loaded. Which tensors make which
    parameter is learned by listening to its add_tensor (transformers 5.15 to 5.23 call it for each
    tensor that is taken), in this process alone.
    """
    import torch
    import transformers
    from transformers.core_model_loading import WeightTransform

    taken: dict[str, str] = {}
    add = WeightTransform.add_tensor

    def noted(self: Any, target: str, name: str, *rest: Any, **named: Any) -> Any:
        taken[name] = target
        return add(self, target, name, *rest, **named)

    with torch.device("meta"):
        state = {name: torch.empty(tuple(shape)) for name, shape in shapes.items()}
    WeightTransform.add_tensor = noted
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map="meta",
            dtype=torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        WeightTransform.add_tensor = add
    return model, info, taken


def transposed(experts: Any) -> bool:
    """Whether a module of experts has its matrices as [experts, inputs, outputs] (Llama 4, GPT-OSS)
    and not as [experts, outputs, inputs].
    """
    said = getattr(experts, "is_transposed", None)
    if said is not None:
        return bool(said)
    width = getattr(experts, "hidden_size", getattr(experts, "hidden_dim", 0))
    shape = experts.gate_up_proj.shape if hasattr(experts, "gate_up_proj") else (0, 0, 0)
    return bool(shape[1] == width != shape[2])


def interleaved(experts: Any) -> bool:
    """Whether gate and up projections take turns in one matrix (GPT-OSS), instead of one after the
    other.
    """
    return not getattr(experts, "is_concatenated", True)


def with_fused_experts(
    kind: str, config: Any, state: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A state whose experts lie one by one, as a model takes it that has them in one tensor and
    whose checkpoints do too (Llama 4, GPT-OSS): transformers does not join them. Also which tensor
    makes which parameter.
    """
    import torch

    model, info, taken = match(kind, config, {name: one.shape for name, one in state.items()})
    groups: dict[str, dict[str, dict[int, Any]]] = {}
    missed = [name for name in map(str, info["missing_keys"]) if ".experts." in name]
    for name in list(state) if missed else ():
        if found := EXPERT.fullmatch(name):
            one = groups.setdefault(found[1], {}).setdefault(found[3], {})
            one[int(found[2])] = state.pop(name)
    owner = next((one for one in model.modules() if hasattr(one, "gate_up_proj")), None)
    for base, halves in groups.items():
        gate, up, down = (
            torch.stack([halves[half][i] for i in sorted(halves[half])])
            for half in ("gate_proj", "up_proj", "down_proj")
        )
        if interleaved(owner):
            joined = torch.stack([gate, up], dim=2).flatten(1, 2)
        else:
            joined = torch.cat([gate, up], dim=1)
        for name, whole in (("gate_up_proj", joined), ("down_proj", down)):
            whole = whole.transpose(1, 2).contiguous() if transposed(owner) else whole
            state[f"{base}.{name}"] = whole
    if groups:
        taken = match(kind, config, {name: one.shape for name, one in state.items()})[2]
    return state, taken

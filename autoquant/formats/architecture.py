"""Which of transformers' classes a config is for. Imports transformers: runs in workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoquant.core.errors import CheckFailed

NAMED = 3  # tensors named in an error
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


@dataclass
class Maker:
    """What makes a parameter: transformers' transform, and the tensors that it takes, with the
    pattern by which it knows each.
    """

    transform: Any
    tensors: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Match:
    """A ``model`` without data, what its loading says (``info``), which parameter each tensor goes
    into (``taken``; where a transform makes several, its first), and the ``makers`` of these.
    """

    model: Any
    info: Mapping[str, Any]
    taken: dict[str, str]
    makers: dict[str, Maker]


def match(kind: str, config: Any, shapes: Mapping[str, Sequence[int]]) -> Match:
    """How a model's parameters are made of a checkpoint's tensors.

    transformers itself matches the names: it is handed tensors without data, and says what it
    missed, what it left over and what has another shape. So prefixes, renamed and merged tensors
    (experts) are matched as they will be when the model is loaded. Which tensors make which
    parameter is learned by listening to its add_tensor (transformers 5.15 to 5.23 call it for each
    tensor that is taken), in this process alone. Raises CheckFailed where tensors cannot be merged
    because one is missing or of another shape: transformers does not say which.
    """
    import torch
    import transformers
    from transformers.core_model_loading import WeightTransform

    taken: dict[str, str] = {}
    makers: dict[str, Maker] = {}
    add = WeightTransform.add_tensor

    def noted(self: Any, target: str, name: str, pattern: str, *rest: Any, **named: Any) -> Any:
        taken[name] = target
        makers.setdefault(target, Maker(self)).tensors.append((name, pattern))
        return add(self, target, name, pattern, *rest, **named)

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
    except RuntimeError as error:
        odd = [target for target, maker in makers.items() if _uneven(maker, shapes)]
        if not odd:
            raise
        raise CheckFailed(
            f"tensors missing or of another shape: {', '.join(odd[:NAMED])}"
        ) from error
    finally:
        WeightTransform.add_tensor = add
    return Match(model, info, taken, makers)


def _uneven(maker: Maker, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the tensors that are merged into a parameter are not of one number and shape for each
    pattern, as experts are.
    """
    of: dict[str, list[tuple[int, ...]]] = {}
    for name, pattern in maker.tensors:
        of.setdefault(pattern, []).append(tuple(shapes[name]))
    alike = all(len(set(every)) == 1 for every in of.values())
    return not alike or len({len(every) for every in of.values()}) > 1

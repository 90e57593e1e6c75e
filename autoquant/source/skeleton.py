"""A model without its weights, as transformers builds it from config.json: which tensors it needs,
and which of a checkpoint's it takes (see formats.architecture.match). Imports transformers: runs in
workers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoquant.core.errors import InputError
from autoquant.formats.architecture import config_of, kind_of, match
from autoquant.formats.experts import interleaved, transposed
from autoquant.source.headers import Header, headers_of, read_json

# the last part of a gate's name in mixtures of experts; gates stay as they are, for a wrong choice
# of experts costs more than their few bits save
GATES = ("gate", "router", "shared_expert_gate", "wg", "gate_weight")
# what state-space mixers (which have a parameter A_log or A) call as an ordinary layer; their other
# matrices are read past it by their own code, where a quantized layer has none
CALLED = ("in_proj",)
# inputs; matrices of fewer stay as they are (Gemma 3n's coefficients have 4): a group of weights
# cannot be larger, and their scales would take more than they save
NARROW = 16


def build(folder: str, weights: list[str]) -> dict[str, Any]:
    """What transformers makes of a folder.

    Returns ``why`` (not empty: transformers does not build it, and its reason), and if it does:
    ``kind`` (the class), ``auto`` (the Auto class that loads it; empty for what generates no text),
    ``missing`` (parameters that no tensor gives), ``misshapen`` ([tensor, its shape, the shape
    expected]), ``unused`` (tensors that are not taken), ``layers`` (see :func:`_layers`),
    ``towers`` (parts that see or hear), ``unread`` (layers of state-space mixers that stay as they
    are), ``narrow`` (those of fewer than NARROW inputs), ``plain`` (the linear layers that are none
    of ``layers``, by both names), ``tied`` (tensors that config.json ties to others which are there
    too), ``prefix`` (what the files' names lack at the beginning), ``rows`` (of the input
    embeddings). Beside them ``tokenizer`` (see :func:`_tokenizer`).
    """
    import transformers

    transformers.logging.set_verbosity(50)
    return {**_built(folder, weights), "tokenizer": _tokenizer(folder)}


def _built(folder: str, weights: list[str]) -> dict[str, Any]:
    headers = headers_of(Path(folder), weights)
    config = read_json(Path(folder) / "config.json")
    try:
        refuse_unknown(str(config.get("model_type")))
        config = config_of(folder)
        auto, kind = kind_of(config)
        if not auto:
            return {"why": "", "kind": kind, "auto": ""}
        return {"why": "", "kind": kind, "auto": auto, **_match(kind, config, headers)}
    except InputError as error:
        return {"why": str(error)}
    except Exception as error:  # noqa: BLE001
        # whatever transformers or a model's own module raises means that it is not built
        return {"why": f"does not build this model ({in_one_line(error)})"}


def refuse_unknown(model_type: str) -> None:
    """Refuse an architecture that transformers does not know, in words that follow its name."""
    import difflib

    from transformers import CONFIG_MAPPING

    known = list(CONFIG_MAPPING)
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=5, cutoff=0.4)
        raise InputError(
            f"does not know the architecture {model_type!r}; nearest of {len(known)} it knows:"
            f" {', '.join(near) or 'none'}"
        )


def _tokenizer(folder: str) -> dict[str, Any]:
    """A folder's tokenizer: ``why`` (not empty: it does not load), and the ``token`` with the
    largest ``id``.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        own = _own_tokens(Path(folder))
        known = sorted(tokenizer.get_vocab().items(), key=lambda one: -one[1])
        token, largest = next((one for one in known if own(one[0])), known[0])
    except Exception as error:  # noqa: BLE001
        # each tokenizer library has exceptions of its own; its words go to the user
        return {"why": in_one_line(error), "token": "", "id": -1}
    return {"why": "", "token": str(token), "id": int(largest)}


def _own_tokens(folder: Path) -> Callable[[str], bool]:
    """Whether a token stands in the tokenizer's files: transformers adds some that a kind of
    tokenizer usually has (Gemma's <mask>), which the model has no row for.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return lambda token: True
    data = read_json(path)
    vocabulary = (data.get("model") or {}).get("vocab") or ()
    names = {one if isinstance(one, str) else one[0] for one in vocabulary}
    names |= {str(one.get("content")) for one in data.get("added_tokens") or ()}
    beside = "".join(
        (folder / name).read_text(encoding="utf-8", errors="replace")
        for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
        if (folder / name).is_file()
    )
    return lambda token: token in names or json.dumps(token) in beside


def in_one_line(error: BaseException) -> str:
    """An exception as somebody may read it who did not write the library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def _match(kind: str, config: Any, headers: dict[str, Header]) -> dict[str, Any]:
    """What transformers says when it loads tensors without data."""
    import torch

    shapes = {name: shape for name, (_, shape) in headers.items()}
    matched = match(kind, config, shapes)
    model, info, taken = matched.model, matched.info, matched.taken
    by_parameter = defaultdict(list)
    for name, target in taken.items():
        by_parameter[target].append(name)
    embeddings = model.get_input_embeddings()
    layers, unread, narrow = _layers(model, by_parameter)
    quantized = {layer["module"] for layer in layers}
    plain = [
        name
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.Linear) and name not in quantized
    ]
    # runtimes look for them by the names in the files or by those of the modules
    plain += [
        by_parameter[f"{name}.weight"][0].removesuffix(".weight")
        for name in plain
        if f"{name}.weight" in by_parameter
    ]
    tied = [
        tensor
        for target, origin in (model.all_tied_weights_keys or {}).items()
        if origin in by_parameter
        for tensor in by_parameter.get(target, ())
    ]
    return {
        "missing": sorted(map(str, info["missing_keys"])),
        "misshapen": [
            [(by_parameter.get(key) or [key])[0], list(found), list(wanted)]
            for key, found, wanted in sorted(info["mismatched_keys"])
        ],
        "unused": sorted(set(headers) - set(taken)),
        "layers": layers,
        "towers": towers(model),
        "unread": unread,
        "narrow": narrow,
        "plain": sorted(set(plain)),
        "tied": tied,
        "prefix": _prefix(model, by_parameter),
        "rows": int(embeddings.weight.shape[0]) if embeddings is not None else 0,
    }


def _prefix(model: Any, by_parameter: dict[str, list[str]]) -> str:
    """What a checkpoint saved from the bare model lacks before its names ("model."), or nothing."""
    embeddings = model.get_input_embeddings()
    name = next((f"{n}.weight" for n, one in model.named_modules() if one is embeddings), "")
    prefix = f"{model.base_model_prefix}."
    lacks = name.startswith(prefix) and by_parameter.get(name) == [name.removeprefix(prefix)]
    return prefix if lacks else ""


def _decoder(model: Any) -> tuple[str, Any]:
    """The part that models language, and its name."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else model
    name = next((name for name, one in model.named_modules() if one is found), "")
    return name, found


def blocks(model: Any) -> tuple[str, ...]:
    """The names of the language model's lists of blocks."""
    import torch

    prefix, decoder = _decoder(model)
    lists: list[str] = []
    for name, module in decoder.named_modules(prefix=prefix):
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, torch.nn.ModuleList) and not inside:
            lists.append(name)
    heard = towers(model)
    return tuple(one for one in lists if not any(one.startswith(f"{t}.") for t in heard))


def towers(model: Any) -> list[str]:
    """Parts that see or hear: those beside the language model that have parameters, but for the
    output head.
    """
    prefix, _ = _decoder(model)
    head = model.get_output_embeddings()
    towers = []
    for name, module in model.named_children():
        parts = [(name, module)]
        if prefix.startswith(f"{name}."):
            parts = [(f"{name}.{one}", below) for one, below in module.named_children()]
        towers += [
            one
            for one, below in parts
            if one != prefix
            and not prefix.startswith(f"{one}.")
            and below is not head
            and prefix
            and any(True for _ in below.parameters())
        ]
    return towers


def _layers(
    model: Any, by_parameter: dict[str, list[str]]
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """The language model's matrices that can be quantized, block by block, those of state-space
    mixers that cannot, and those that are too narrow to be.

    Each is ``module`` (its name in the model, without ".weight"), ``tensors`` (in the files, those
    that make it), ``shape`` ([outputs, inputs], of experts [experts, …]), ``expert``, and of
    experts that one tensor holds whether it is ``transposed`` and ``interleaved`` (see
    formats.architecture).
    """
    import torch

    inside = tuple(f"{name}." for name in blocks(model))
    modules = dict(model.named_modules())
    found, unread, narrow = [], [], []
    for name, parameter in model.named_parameters():
        path, _, last = name.rpartition(".")
        if not name.startswith(inside) or name not in by_parameter:
            continue
        owner = modules[path]
        expert = "experts" in path.split(".") or "Experts" in type(owner).__name__
        if parameter.ndim == 3 and expert:
            found.append(_layer(name, by_parameter[name], parameter, owner))
        elif last == "weight" and isinstance(owner, torch.nn.Linear) and parameter.ndim == 2:
            own = path.rpartition(".")[2]
            if own in GATES:
                continue
            if _state_space(modules[path.rpartition(".")[0]]) and own not in CALLED:
                unread.append(path)
                continue
            if parameter.shape[1] < NARROW:
                narrow.append(path)
                continue
            found.append(_layer(path, by_parameter[name], parameter))
    return found, unread, narrow


def _layer(module: str, tensors: list[str], parameter: Any, experts: Any = None) -> dict[str, Any]:
    return {
        "module": module,
        "tensors": sorted(tensors, key=natural),
        "shape": list(parameter.shape),
        "expert": experts is not None,
        "transposed": experts is not None and transposed(experts),
        "interleaved": experts is not None and interleaved(experts),
    }


def natural(name: str) -> list[Any]:
    """A key that sorts experts.2 before experts.10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _state_space(mixer: Any) -> bool:
    """Whether a module is a state-space mixer that reads its layers' weights past the layers."""
    own = {name for name, _ in mixer.named_parameters(recurse=False)}
    return bool(own & {"A_log", "A"}) and not hasattr(mixer, "in_proj_qkvz") and "D" in own

"""Sources that are GGUF files: which file of several, and what its head says of the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoquant.core import cards, gguf_head
from autoquant.core.errors import InputError
from autoquant.core.gguf_head import SHARD, Head
from autoquant.core.records import Source

# what is taken without being asked for, best first: nothing, or hardly anything, is lost already
FREELY = ("BF16", "F32", "F16", "Q8_0")
# what a model sees or hears with; llama.cpp's tools look for that name
MMPROJ = re.compile(r"(^|/)mmproj|mmproj[^/]*\.gguf$", re.IGNORECASE)
# files that lie beside a model's: vision towers, importance matrices, adapters, drafts; they are
# taken if they are named, and described as what they are
BESIDE = re.compile(
    MMPROJ.pattern + r"|(^|[-_./])imatrix\.gguf$|(^|/)(lora|mtp|draft)[-_.]",
    re.IGNORECASE,
)
TYPE = re.compile(
    r"(?:^|[-_./])((?:BF16|FP?16|FP?32|MXFP4(?:_MOE)?|I?Q\d_[A-Z0-9]+(?:_[A-Z]+)*|TQ\d_0))"
    r"(?=$|[-_./])",
    re.IGNORECASE,
)
# numbers of general.file_type (llama.h, enum llama_ftype)
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
}
TOWERS = ("F16", "BF16", "Q8_0", "F32")
NAMED = 8  # files named in an error
NAMELESS = ("", "model", "ggml-model")


def type_in(name: str) -> str:
    """The type that a file's name ends with; empty if it names none."""
    found = TYPE.findall(SHARD.sub("", name).removesuffix(".gguf"))
    return found[-1].upper().replace("FP16", "F16").replace("FP32", "F32") if found else ""


def choose(names: Sequence[str], tag: str, where: str) -> list[str]:
    """The file of a model, or all of its shards, among the files of a folder or repository:
    ``tag`` is a file's name, folder, type (Q8_0) or part of the name; without one, the best that
    was not quantized below Q8_0. Raises InputError.
    """
    models = [name for name in names if name.lower().endswith(".gguf")]
    models = [name for name in models if name == tag or not BESIDE.search(name)]
    first = sorted({gguf_head.shards(name)[0] for name in models})
    if tag:
        inside = f"{tag.rstrip('/')}/"  # a folder's
        fits = [n for n in first if tag in gguf_head.shards(n) or n.startswith(inside)]
        fits = fits or [name for name in first if type_in(name) == tag.upper()]
        fits = fits or [name for name in first if tag.lower() in name.lower()]
    else:
        fits = first if len(first) == 1 else []
        for kind in FREELY:
            fits = fits or [name for name in first if type_in(name) == kind]
    if len(fits) != 1:
        named = sorted(fits or first)
        listed = ", ".join(named[:NAMED]) + (" …" if len(named) > NAMED else "")
        what = "has several GGUF files" + (f" of the type {tag}" if tag else "")
        if not fits:
            what = f"has no GGUF file called {tag}, nor one of that type"
            what = what if tag else f"has no GGUF file of the types {', '.join(FREELY)}"
        example = named[0] if named else "FILE.gguf"
        # a folder's files have paths of their own
        how = f"{where}/{example}" if Path(where).is_absolute() else f"{where}:{example}"
        raise InputError(f"{where} {what}; it has: {listed or 'none'}. Name one: {how}")
    return whole(fits[0], names, where)


def with_tower(names: Sequence[str], tag: str, where: str) -> list[str]:
    """:func:`choose`, and after them the file of what the model sees or hears with, if there is
    one: of several the F16 one, as llama.cpp's converter makes it.
    """
    chosen = choose(names, tag, where)
    if MMPROJ.search(chosen[0]):
        return chosen
    beside = sorted(name for name in names if MMPROJ.search(name) and name.endswith(".gguf"))
    ranked = [name for kind in (*TOWERS, "") for name in beside if kind in ("", type_in(name))]
    return chosen + ranked[:1]


def whole(name: str, names: Sequence[str], where: str) -> list[str]:
    """A file and, if it is a shard, all others. Raises InputError if one is not among ``names``."""
    shards = gguf_head.shards(name)
    lost = [one for one in shards if one not in names]
    if lost:
        raise InputError(f"{where} lacks {lost[0]}, one of {len(shards)} shards; download it too")
    return shards


def heads(folder: Path, names: Sequence[str]) -> list[Head]:
    """The heads of a model's files. Raises InputError naming the file."""
    found = []
    for name in names:
        try:
            found.append(gguf_head.read(folder / name))
        except gguf_head.Unsupported as error:
            raise InputError(
                f"{folder / name}: {error}, which llama.cpp reads no more. Take another file, or"
                " the checkpoint that it was made of"
            ) from None
        except ValueError as error:
            raise InputError(
                f"{folder / name} is no whole GGUF file: {error}. Download it again"
            ) from None
    return found


def describe(folder: Path, names: Sequence[str], id: str, tag: str = "") -> Source:
    """A Source from the heads of its files, and the card beside them, unless a ``tag`` names the
    very file: then whatever lies beside it is not known to be of it. The last of ``names`` may be
    an mmproj file.
    """
    mmproj = names[-1] if len(names) > 1 and MMPROJ.search(names[-1]) else ""
    names = names[:-1] if mmproj else names
    found = heads(folder, names)
    values, tensors = found[0].values, [one for head in found for one in head.tensors.values()]
    architecture = str(values.get("general.architecture", ""))
    if not architecture or not tensors:
        raise InputError(f"{folder / names[0]} holds no model: it names no architecture")
    if values.get("general.type", "model") != "model":
        raise InputError(
            f"{folder / names[0]} holds no whole model but an {values['general.type']}; name the"
            " model's own file"
        )
    if "tokenizer.ggml.tokens" not in values:
        raise InputError(
            f"{folder / names[0]} has no tokenizer (tokenizer.ggml.tokens), without which llama.cpp"
            " runs no text; make the file anew from the model's own checkpoint"
        )
    elements = [_elements(one.shape) for one in tensors]
    most = Counter[str]()
    for one, count in zip(tensors, elements, strict=True):
        most[one.type] += count
    kind = FILE_TYPES.get(values.get("general.file_type", -1), "") or most.most_common(1)[0][0]
    if kind in FREELY and most.most_common(1)[0][0] not in FREELY:
        kind = most.most_common(1)[0][0]  # the key is wrong, or an early converter's
    causal = values.get(f"{architecture}.attention.causal", True)
    if not causal or architecture.startswith("t5"):
        raise InputError(
            f"{folder / names[0]} is an encoder ({architecture}), which is no causal language"
            " model: it does not continue a text. AutoQuant quantizes models that do"
        )
    card = {} if tag else cards.read(folder)[0]
    return Source(
        id=id,
        folder=folder,
        revision=None,
        architecture=architecture,
        parameters=sum(elements),
        largest_tensor=max(elements),
        dtype=kind,
        bytes=sum((folder / name).stat().st_size for name in names),
        weights=tuple(names),
        pickle=False,
        license=card.get("license") or values.get("general.license"),
        language=tuple(card.get("language", ())),
        base_model=next(iter(card.get("base_model", ())), None) or _base(values),
        chat_template="tokenizer.chat_template" in values,
        vocab_size=int(values["tokenizer.ggml.tokens"]),
        context=int(values.get(f"{architecture}.context_length") or 2048),
        quantized=None,
        license_name=card.get("license_name") or values.get("general.license.name"),
        license_link=card.get("license_link") or values.get("general.license.link"),
        gguf=names[0],
        tag=tag,
        mmproj=mmproj,
    )


def _elements(shape: Sequence[int]) -> int:
    product = 1
    for one in shape:
        product *= one
    return product


def _base(values: dict[str, Any]) -> str | None:
    """The model that a file says it was made of, as owner/name."""
    url = str(values.get("general.base_model.0.repo_url", ""))
    match = re.search(r"huggingface\.co/([^/?#]+/[^/?#]+)", url)
    return match[1] if match else None


def id_of(name: str, folder: str) -> str:
    """A model's name, from its file's: without the shard's number and the type; or the ``folder``'s
    where a converter has named the file.
    """
    stem = SHARD.sub("", Path(name).name).removesuffix(".gguf")
    kind = type_in(stem)
    written = kind.replace("F16", "FP?16").replace("F32", "FP?32").replace("BFP?", "BF")
    own = re.sub(rf"[-_.]?{written}$", "", stem, flags=re.IGNORECASE) if kind else stem
    return folder if own.lower() in NAMELESS else own

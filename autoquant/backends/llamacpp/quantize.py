"""What llama.cpp's quantizing would do: a dry run on a header."""

from __future__ import annotations

import ctypes as C
import re
from typing import Any

import gguf
import llama_cpp.llama_cpp as L

from autoquant.backends.llamacpp.imatrix import read_imatrix, refuse_other_models, uncovered
from autoquant.backends.llamacpp.library import BUFFER, said, why
from autoquant.backends.llamacpp.types import TYPES, UNQUANTIZED
from autoquant.core.errors import InputError
from autoquant.formats.gguf import Header
from autoquant.runtime import trace

_TENSOR_LINE = re.compile(
    r"^\[\s*(\d+)/\s*(\d+)\]\s+(\S+)\s+- \[(.*?)\], type =\s+(\w+),.*?size"
    r" =.*?MiB(?:\s*\((\w+)\))?\s*$"
)

_FALLBACK_LINE = re.compile(
    r"warning: (\S+)\s+- ncols.*required for type\s+(\w+)\).*falling back to\s+(\w+)"
)


def _tensor_type(name: str) -> int:
    return int(gguf.GGMLQuantizationType[name.upper()])


def params_of(
    type: str,
    *,
    threads: int,
    imatrix: str,
    output_type: str,
    embedding_type: str,
    overrides: list[str],
    pure: bool,
    dry_run: bool,
) -> tuple[Any, list[Any]]:
    """llama_model_quantize_params, and what must be kept alive while they are used."""
    params = L.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure, params.dry_run, params.max_buf_size = (
        TYPES[type].number,
        threads,
        pure,
        dry_run,
        BUFFER,
    )
    params.allow_requantize = True  # whether it may be was asked before
    keep: list[Any] = []
    if output_type:
        params.output_tensor_type = _tensor_type(output_type)
    if embedding_type:
        params.token_embedding_type = _tensor_type(embedding_type)
    if overrides:
        rules = (L.llama_model_tensor_override * (len(overrides) + 1))()
        for rule, text in zip(rules, overrides, strict=False):
            pattern, _, kind = text.rpartition("=")
            rule.pattern, rule.type = pattern.encode(), _tensor_type(kind)
        params.tt_overrides = C.cast(rules, type_of(params, "tt_overrides"))
        keep.append(rules)
    if imatrix:
        entries = [(name.encode(), values) for name, values in read_imatrix(imatrix).items()]
        table = (L.llama_model_imatrix_data * (len(entries) + 1))()
        for row, (name, values) in zip(table, entries, strict=False):
            row.name, row.data, row.size = (
                name,
                values.ctypes.data_as(C.POINTER(C.c_float)),
                values.size,
            )
        params.imatrix = C.cast(table, type_of(params, "imatrix"))
        keep += [entries, table]
    return params, keep


def type_of(struct: Any, name: str) -> Any:
    """The ctypes type of a structure's field."""
    return dict(struct._fields_)[name]


def dry_run(
    header: str,
    types: list[str],
    *,
    imatrix: bool = False,
    output_type: str = "",
    embedding_type: str = "",
    overrides: list[str] | None = None,
    pure: bool = False,
) -> list[dict[str, Any]]:
    """What each type will be for this model, exactly, from a header-only GGUF (no weight is read;
    about 20 ms a type).

    ``imatrix`` says whether there will be one: llama.cpp mixes some types differently then. Raises
    InputError for an override that matches no tensor. Returns a dict a type: ``bytes`` (the whole
    file's), ``converted_bytes`` (if the converter writes it), ``bits_per_weight``,
    ``needs_imatrix``, ``tensors`` (name -> ggml type), ``order`` (their names in the file) and
    ``fallbacks`` (name -> [asked, got]).
    """
    known = Header(header)
    elements = sum(tensor.elements for tensor in known.tensors.values())
    for rule in overrides or ():
        pattern = rule.rpartition("=")[0]
        if not any(re.search(pattern, name) for name in known.tensors):
            raise InputError(
                f"tensor_types: {pattern!r} matches none of the model's tensors; some of them:"
                f" {', '.join([*known.tensors][:12])} …"
            )
    plans: list[dict[str, Any]] = []
    for type in types:
        said.lines.clear()
        params, _keep = params_of(
            type,
            threads=1,
            imatrix="",
            output_type=output_type,
            embedding_type=embedding_type,
            overrides=overrides or [],
            pure=pure,
            dry_run=True,
        )
        if imatrix and TYPES[type].imatrix != "no":
            one = (C.c_float * 1)(1.0)
            stub = (L.llama_model_imatrix_data * 2)()
            stub[0].name, stub[0].data, stub[0].size = b"stub", C.cast(one, C.POINTER(C.c_float)), 1
            params.imatrix = C.cast(stub, type_of(params, "imatrix"))
        with trace.library(f"dry run {type}"):
            status = L.llama_model_quantize(header.encode(), b"", C.byref(params))
        if status != 0:
            plans.append({"type": type, "impossible": why()})
            continue
        needs = any("will require an imatrix" in line for line in said.lines)
        if needs and not imatrix:  # the file can only be made with one: plan that
            (again,) = dry_run(
                header,
                [type],
                imatrix=True,
                output_type=output_type,
                embedding_type=embedding_type,
                overrides=overrides,
                pure=pure,
            )
            plans.append({**again, "needs_imatrix": True})
            continue
        tensors = {name: tensor.type for name, tensor in known.tensors.items()}
        order = []
        for match in filter(None, map(_TENSOR_LINE.match, said.lines)):
            order.append(match[3])
            if match[6]:
                tensors[match[3]] = gguf.GGMLQuantizationType[match[6].upper()].name
        data = 0
        stored = 0
        for name, kind in tensors.items():
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
            n = known.tensors[name].elements // block * size
            stored += n
            data += -(-n // known.alignment) * known.alignment
        fallbacks = {
            m[1]: [m[2].upper(), m[3].upper()] for m in map(_FALLBACK_LINE.search, said.lines) if m
        }
        plans.append(
            {
                "type": type,
                "bytes": known.quantized_offset() + data,
                "converted_bytes": known.data_offset + data,
                "bits_per_weight": stored * 8 / elements,
                "needs_imatrix": needs,
                "tensors": tensors,
                "order": order,
                "fallbacks": fallbacks,
            }
        )
    return plans


def plans(
    header: str, types: list[str], *, imatrix: bool, imatrix_file: str, **mixing: Any
) -> list[dict[str, Any]]:
    """:func:`dry_run`; a given importance matrix is refused if it is another model's, or lacks what
    a type needs.
    """
    if imatrix_file:
        refuse_other_models(imatrix_file, header)
    found = dry_run(header, types, imatrix=imatrix, **mixing)
    if imatrix_file:
        refuse_uncovered(found, imatrix_file, header)
    return found


NEEDING = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")  # in llama.cpp, always


def refuse_uncovered(plans: list[dict[str, Any]], imatrix: str, header: str) -> None:
    """Refuse a type that needs an importance matrix for a tensor which a given one does not have;
    note for the others how many matrices it lacks. Norms and other vectors are not counted.
    """
    known = Header(header).tensors
    lacking = set(uncovered(imatrix, known))
    for plan in plans:
        if "impossible" in plan or TYPES[plan["type"]].imatrix == "no":
            continue
        quantized = [
            name
            for name, kind in plan["tensors"].items()
            if kind not in UNQUANTIZED and name.startswith("blk.")
        ]
        without = [name for name in quantized if name in lacking]
        needed = [name for name in without if plan["tensors"][name] in NEEDING]
        if needed or (plan["needs_imatrix"] and without):
            first = (needed or without)[0]
            raise InputError(
                f"imatrix: {imatrix} has nothing for {len(needed or without)} of"
                f" {len(quantized)} matrices, such as {first}, which {plan['type']} needs. Make one"
                " on the whole model: imatrix='builtin'"
            )
        plan["uncovered"] = len(without)

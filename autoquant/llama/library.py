"""llama.cpp's C API: dry run, quantize, importance matrix, log-probabilities, tokens, a short
generation.

Every function here loads native code that may abort the process, so they run in workers
(:func:`autoquant.process.call`), with the converter's gguf-py on the path.
"""

from __future__ import annotations

import ctypes as C
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as L
import numpy as np
import numpy.typing as npt

from autoquant import trace
from autoquant.core.errors import InputError, ProcessFailed
from autoquant.llama.header import Header, function
from autoquant.llama.types import TYPES
from autoquant.worker import Report

CONTEXT = 512  # tokens a chunk, as llama.cpp's perplexity and imatrix tools use
# bytes of one worker's row buffers while quantizing; more does not make it faster
BUFFER = 128 << 20
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


class _Log(threading.local):
    """llama.cpp's log of one thread: types are quantized in threads, each reads its own lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.partial = ""
        self.on_line: Callable[[str], None] | None = None


_said = _Log()


@L.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: Any) -> None:
    """Gather llama.cpp's log: it comes in pieces of lines, on the thread that made the call."""
    *whole, _said.partial = (_said.partial + text.decode("utf-8", "replace")).split("\n")
    for line in whole:
        _said.lines.append(line)
        sys.stderr.write(line + "\n")
        if _said.on_line is not None:
            _said.on_line(line)


L.llama_log_set(_log, C.c_void_p(0))
L.llama_backend_init()


def _why() -> str:
    """What llama.cpp last complained of."""
    wanted = [
        line
        for line in _said.lines[-40:]
        if re.search(r"fail|error|invalid|unknown|requires|missing|not ", line, re.IGNORECASE)
    ]
    return " | ".join(line.strip() for line in (wanted or _said.lines)[-3:])


# --- quantize -------------------------------------------------------------------------------------

_TENSOR_LINE = re.compile(
    r"^\[\s*(\d+)/\s*(\d+)\]\s+(\S+)\s+- \[(.*?)\], type =\s+(\w+),.*?size"
    r" =.*?MiB(?:\s*\((\w+)\))?\s*$"
)
_FALLBACK_LINE = re.compile(
    r"warning: (\S+)\s+- ncols.*required for type\s+(\w+)\).*falling back to\s+(\w+)"
)


def _tensor_type(name: str) -> int:
    return int(gguf.GGMLQuantizationType[name.upper()])


def _params(
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
    file's), ``bits_per_weight``, ``needs_imatrix``, ``tensors`` (name -> ggml type) and
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
        _said.lines.clear()
        params, _keep = _params(
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
            plans.append({"type": type, "impossible": _why()})
            continue
        needs = any("will require an imatrix" in line for line in _said.lines)
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
        for match in filter(None, map(_TENSOR_LINE.match, _said.lines)):
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
            m[1]: [m[2].upper(), m[3].upper()] for m in map(_FALLBACK_LINE.search, _said.lines) if m
        }
        plans.append(
            {
                "type": type,
                "bytes": known.data_offset + data,
                "bits_per_weight": stored * 8 / elements,
                "needs_imatrix": needs,
                "tensors": tensors,
                "fallbacks": fallbacks,
            }
        )
    return plans


def quantize(
    source: str,
    target: str,
    type: str,
    *,
    threads: int,
    imatrix: str = "",
    output_type: str = "",
    embedding_type: str = "",
    overrides: list[str] | None = None,
    pure: bool = False,
    report: Report | None = None,
) -> None:
    """Quantize a GGUF file. Writes ``target`` (not atomically: give a temporary name). Memory:
    BUFFER bytes and the pages being read.
    """

    def on_line(line: str) -> None:
        match = _TENSOR_LINE.match(line)
        if match and report is not None:
            report(int(match[1]), int(match[2]))

    params, _keep = _params(
        type,
        threads=threads,
        imatrix=imatrix,
        output_type=output_type,
        embedding_type=embedding_type,
        overrides=overrides or [],
        pure=pure,
        dry_run=False,
    )
    _said.lines.clear()
    _said.on_line = on_line
    with trace.library(f"quantize {type}"):
        status = L.llama_model_quantize(source.encode(), target.encode(), C.byref(params))
    _said.on_line = None
    if status != 0:
        room = os.statvfs(Path(target).parent)
        if room.f_bavail * room.f_frsize < 1 << 20:
            raise InputError(
                f"no space left on the disk while writing {type} into {Path(target).parent}. Free"
                " some space and run again; finished steps are kept."
            )
        raise ProcessFailed(f"llama.cpp could not quantize to {type}: {_why()}")


# --- run a model ----------------------------------------------------------------------------------


class Model:
    """A GGUF file opened for running.

    ``repack`` lets llama.cpp keep a second copy of the weights in memory, rearranged for the
    processor: faster for long runs, but then the model must fit. ``callback`` is a
    ggml_backend_sched_eval_callback.
    """

    def __init__(
        self,
        path: str,
        *,
        threads: int,
        context: int = CONTEXT,
        vocab_only: bool = False,
        repack: bool = True,
        callback: Any = None,
    ) -> None:
        params = L.llama_model_default_params()
        params.vocab_only = vocab_only
        params.use_extra_bufts = repack
        with trace.library("load"):
            self.model = L.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise ProcessFailed(f"llama.cpp cannot open {path}: {_why()}")
        self.vocab = L.llama_model_get_vocab(self.model)
        self.n_vocab = int(L.llama_vocab_n_tokens(self.vocab))
        self.context = context
        self._callback = callback
        self.handle = None
        if not vocab_only:
            settings = L.llama_context_default_params()
            settings.n_ctx = settings.n_batch = settings.n_ubatch = context
            settings.n_threads = settings.n_threads_batch = threads
            if hasattr(settings, "n_outputs_max"):
                settings.n_outputs_max = context
            if callback is not None:
                settings.cb_eval = callback
            with trace.library("load"):
                self.handle = L.llama_init_from_model(self.model, settings)
            if not self.handle:
                raise ProcessFailed(f"llama.cpp cannot make a context for {path}: {_why()}")
            self._batch = L.llama_batch_init(context, 0, 1)

    def tokenize(self, text: str, *, special: bool) -> Ints:
        """Token ids; ``special`` adds BOS/EOS as the model wants. Special tokens written in the
        text stay text.
        """
        raw = text.encode()
        room = (L.llama_token * (len(raw) + 16))()
        n = L.llama_tokenize(self.vocab, raw, len(raw), room, len(room), special, False)
        if n < 0:
            raise ProcessFailed(
                f"llama.cpp needs room for {-n} tokens where {len(room)} were expected"
            )
        return np.ctypeslib.as_array(room)[:n].astype(np.int32)

    def decode(self, tokens: Ints, first_output: int, *, start: int = 0) -> Floats:
        """Run tokens at positions ``start``…; the logits of positions ``first_output``… of them,
        [n, vocab], valid until the next call.
        """
        if start == 0:
            L.llama_memory_clear(L.llama_get_memory(self.handle), True)
        batch, n = self._batch, len(tokens)
        batch.n_tokens = n
        for i in range(n):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = (
                int(tokens[i]),
                start + i,
                1,
                0,
            )
            batch.logits[i] = i >= first_output
        with trace.library("decode"):
            status = L.llama_decode(self.handle, batch)
            if status != 0:
                raise ProcessFailed(
                    f"llama.cpp could not run the model (llama_decode: {status}): {_why()}"
                )
            logits = L.llama_get_logits(self.handle)  # waits for the computation
        return np.ctypeslib.as_array(logits, shape=(n - first_output, self.n_vocab))


def tokens_of(path: str, text: str) -> list[int]:
    """A text's token ids by the GGUF file's own tokenizer, without special tokens."""
    return [
        int(token)
        for token in Model(path, threads=1, vocab_only=True).tokenize(text, special=False)
    ]


def generate(path: str, *, threads: int, prompt: str, n: int) -> list[int]:
    """``n`` greedily chosen token ids after the prompt."""
    # the file is mapped: no memory of the model's size is taken
    model = Model(path, threads=threads, context=128, repack=False)
    tokens = model.tokenize(prompt, special=True)[-64:]
    if len(tokens) == 0:
        raise ProcessFailed(f"{path}: the prompt {prompt!r} has no tokens")
    out: list[int] = []
    position = 0
    for _ in range(n):
        logits = model.decode(tokens, len(tokens) - 1, start=position)
        position += len(tokens)
        out.append(int(logits[-1].argmax()))
        tokens = np.array(out[-1:], dtype=np.int32)
    return out


def log_softmax_chunks(
    path: str, chunks: list[list[int]], *, threads: int, repack: bool = True
) -> Iterator[Floats]:
    """For each chunk of token ids: the logits of its second half that predict a next token, [len/2
    - 1, vocab].
    """
    model = Model(path, threads=threads, context=len(chunks[0]), repack=repack)
    for chunk in chunks:
        half = len(chunk) // 2
        yield model.decode(np.asarray(chunk, dtype=np.int32), half)[:-1]


# --- importance matrix ----------------------------------------------------------------------------


class _Tensor(C.Structure):
    """ggml_tensor of the pinned llama.cpp (ggml.h); :func:`_looks_right` tests the layout against
    the library at run time.
    """


_Tensor._fields_ = [
    ("type", C.c_int),
    ("buffer", C.c_void_p),
    ("ne", C.c_int64 * 4),
    ("nb", C.c_size_t * 4),
    ("op", C.c_int),
    ("op_params", C.c_int32 * 16),
    ("flags", C.c_int32),
    ("src", C.POINTER(_Tensor) * 10),
    ("view_src", C.c_void_p),
    ("view_offs", C.c_size_t),
    ("data", C.c_void_p),
    ("name", C.c_char * 64),
    ("extra", C.c_void_p),
    ("padding", C.c_char * 8),
]


def _looks_right(pointer: Any) -> bool:
    tensor = C.cast(pointer, C.POINTER(_Tensor)).contents
    return bool(
        function("ggml_get_name", C.c_char_p, C.c_void_p)(pointer) == tensor.name
        and function("ggml_nelements", C.c_int64, C.c_void_p)(pointer) == int(np.prod(tensor.ne))
    )


def _read(tensor: _Tensor) -> npt.NDArray[Any]:
    """A copy of a tensor's values (float32 or int32) as [ne3, ne2, ne1, ne0], wherever its buffer
    lives.
    """
    n = function("ggml_nbytes", C.c_size_t, C.c_void_p)(C.addressof(tensor))
    raw = np.empty(n, dtype=np.uint8)
    function("ggml_backend_tensor_get", None, C.c_void_p, C.c_void_p, C.c_size_t, C.c_size_t)(
        C.addressof(tensor), raw.ctypes.data, 0, n
    )
    return np.ndarray(
        tuple(tensor.ne)[::-1],
        dtype=np.float32 if tensor.type == 0 else np.int32,
        buffer=raw,
        strides=tuple(tensor.nb)[::-1],
    )


class _Collector:
    """Sums of squared activations entering each weight matrix: what llama.cpp calls an importance
    matrix.

    Same rules as llama.cpp's imatrix tool (tools/imatrix/imatrix.cpp): matrices of the blocks only,
    batches of at least 16 tokens, one row of sums an expert for mixtures of experts.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Floats] = {}
        self.counts: dict[str, Floats] = {}
        self.error: str | None = None
        op_name = function("ggml_op_name", C.c_char_p, C.c_int)
        names = {op_name(i): i for i in range(90)}
        self._dense, self._experts = names[b"MUL_MAT"], names[b"MUL_MAT_ID"]
        self._checked = False

    def __call__(self, pointer: Any, ask: bool, _: Any) -> bool:
        try:
            return self._look(pointer, ask)
        except Exception as error:  # noqa: BLE001 (ctypes would print and drop it: kept for the caller, who raises)
            self.error = f"{type(error).__name__}: {error}"
            return False

    def _look(self, pointer: Any, ask: bool) -> bool:
        if not self._checked:
            if not _looks_right(pointer):
                raise ProcessFailed(
                    "ggml_tensor's layout is not the one this release knows; the installed"
                    " llama-cpp-python is another version"
                )
            self._checked = True
        tensor = C.cast(pointer, C.POINTER(_Tensor)).contents
        if tensor.op not in (self._dense, self._experts):
            return not ask
        weight, inputs = tensor.src[0].contents, tensor.src[1].contents
        name = weight.name.decode().split("#")[1] if b"#" in weight.name else weight.name.decode()
        if ask:
            return bool(
                tensor.op == self._experts
                or (inputs.ne[1] >= 16 and inputs.type == 0 and name.startswith("blk."))
            )
        values = _read(inputs)
        experts, width = int(weight.ne[2] * weight.ne[3]), int(inputs.ne[0])
        if name not in self.sums:
            self.sums[name] = np.zeros((experts, width), dtype=np.float32)
            self.counts[name] = np.zeros(
                experts if tensor.op == self._experts else 1, dtype=np.float32
            )
        sums, counts = self.sums[name], self.counts[name]
        if tensor.op == self._experts:
            # [tokens, used or 1, width], [tokens, used]
            rows, ids = values[0], _read(tensor.src[2].contents)[0, 0]
            for used in range(ids.shape[1]):
                picked = rows[:, used % rows.shape[1]]
                for expert in np.unique(ids[:, used]):
                    chosen = picked[ids[:, used] == expert]
                    sums[expert] += np.einsum("ij,ij->j", chosen, chosen)
                    counts[expert] += len(chosen)
        else:
            for i3 in range(values.shape[0]):
                for i2 in range(values.shape[1]):
                    sums[(i3 % int(weight.ne[3])) * int(weight.ne[2]) + i2 % int(weight.ne[2])] += (
                        np.einsum("ij,ij->j", values[i3, i2], values[i3, i2])
                    )
            counts += values.shape[0] * values.shape[1] * values.shape[2] // experts
        return True


def collect_imatrix(
    model: str,
    text: str,
    target: str,
    *,
    dataset: str,
    chunks: int,
    threads: int,
    context: int = CONTEXT,
    ids: list[list[int]] | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Collect an importance matrix on a text and write it in llama.cpp's GGUF imatrix format.

    The text is cut into chunks as llama.cpp's tool does it; or ``ids`` are the chunks, ready-made
    token ids of ``context`` each, which are run as they are. Returns ``chunks`` really used and
    ``tensors``. Raises InputError if the text has less than one chunk of ``context`` tokens.
    """
    collector = _Collector()
    callback = L.ggml_backend_sched_eval_callback(collector)
    runner = Model(model, threads=threads, context=context, callback=callback)
    if ids:
        parts = [np.asarray(sample, dtype=np.int32) for sample in ids]
    else:
        tokens = runner.tokenize(text, special=True)
        if len(tokens) < context:
            raise InputError(
                f"imatrix: {dataset} has {len(tokens)} tokens; at least {context} are needed, and"
                " 50,000 are sensible"
            )
        parts = [
            tokens[i * context : (i + 1) * context].copy()
            for i in range(min(chunks, len(tokens) // context))
        ]
        if L.llama_vocab_get_add_bos(runner.vocab):
            for chunk in parts:
                chunk[0] = L.llama_vocab_bos(runner.vocab)
    n = len(parts)
    for i, chunk in enumerate(parts):
        # outputs everywhere, or the last block would be run for the last token only
        runner.decode(chunk, 0)
        if collector.error:
            raise ProcessFailed(f"collecting the importance matrix failed: {collector.error}")
        if report is not None:
            report(i + 1, n)
    if not collector.sums:
        raise ProcessFailed(
            "the importance matrix is empty: llama.cpp ran no matrix of the model's blocks through"
            " the callback"
        )
    broken = [name for name, values in collector.sums.items() if not np.isfinite(values).all()]
    if broken:
        raise ProcessFailed(
            f"the importance matrix has values that are not finite for {broken[0]}: the model"
            " itself computes NaN or Inf on this text"
        )
    writer = gguf.GGUFWriter(target, arch="llama")
    # an imatrix file has none; its general.type tells what it is
    writer.kv_data[0].pop("general.architecture")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", n)
    writer.add_uint32("imatrix.chunk_size", context)
    for name in sorted(collector.sums):
        counts = collector.counts[name]
        writer.add_tensor(f"{name}.in_sum2", collector.sums[name].reshape(len(counts), -1))
        writer.add_tensor(f"{name}.counts", counts.reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"chunks": n, "tensors": len(collector.sums)}


def read_imatrix(path: str) -> dict[str, Floats]:
    """Mean squared activations from a GGUF imatrix: tensor name -> [experts * width]. Experts never
    seen count as 1.

    Raises InputError if the file is no GGUF imatrix.
    """
    try:
        header = Header(path)
    except ValueError:
        raise InputError(
            f"imatrix: {path} is no GGUF file. llama.cpp's older .dat format: convert it with"
            " `llama-imatrix --in-file old.dat -o new.gguf`"
        ) from None
    if header.get("general.type") != "imatrix":
        raise InputError(f"imatrix: {path} is a GGUF file, but no importance matrix")
    data = {name: header.values(tensor) for name, tensor in header.tensors.items()}
    out: dict[str, Floats] = {}
    for name in data:
        if name.endswith(".in_sum2"):
            base = name.removesuffix(".in_sum2")
            sums = data[name].reshape(-1)
            counts = data[f"{base}.counts"].reshape(-1)
            per_count = sums.reshape(len(counts), -1)
            mean = np.where(counts[:, None] > 0, per_count / np.maximum(counts[:, None], 1), 1.0)
            out[base] = np.ascontiguousarray(mean.reshape(-1), dtype=np.float32)
    if not out:
        raise InputError(f"imatrix: {path} holds no entries")
    return out


def refuse_other_models(imatrix: str, header: str) -> None:
    """Raise InputError if an importance matrix was made for another model than the header's."""
    entries, tensors = read_imatrix(imatrix), Header(header).tensors
    for name, values in entries.items():
        if name not in tensors:
            raise InputError(
                f"imatrix: {imatrix} was made for another model: it has {name}, which this model"
                " has not"
            )
        width = tensors[name].shape[0] * tensors[name].shape[2]
        if values.size != width:
            raise InputError(
                f"imatrix: {imatrix} was made for another model: {name} has {values.size} values"
                f" there, {width} here"
            )

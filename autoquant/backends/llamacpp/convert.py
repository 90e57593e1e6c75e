"""Hugging Face folder -> GGUF with llama.cpp's own converter, planned first. Runs in a worker
process.

One process imports torch and transformers once and does, in this order: look the architecture and
the tokenizer up, write a header-only file (no weight is read), dry-run every asked type on it,
compare token ids, refuse what cannot work or does not fit, and only then write the weights.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import given, hooks
from autoquant.backends.llamacpp.pieces import staged
from autoquant.backends.llamacpp.tokens import (
    TOKENIZER_SAMPLE,
    compare_tokens,
    end_generation,
    pre_tokenizers,
    refuse_unknown_pre_tokenizer,
)
from autoquant.backends.llamacpp.types import nearest, refuse
from autoquant.backends.llamacpp.writing import write_header
from autoquant.core.errors import AutoQuantError, InputError, ProcessFailed
from autoquant.runtime import trace
from autoquant.runtime.worker import Emit, Report


class Stop(Exception):
    """Raised inside the converter when only the plan was wanted."""


class FirstError(logging.Handler):
    """Remembers the converter's error messages: some of its failures are a log line and
    sys.exit(1).
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages.append(record.getMessage())


def convert(
    model: str,
    converter: str,
    header: str,
    *,
    outtype: str,
    name: str,
    pre_tokenizer: str,
    sample: str,
    types: list[str],
    dry: dict[str, Any],
    room: int | None,
    need: dict[str, int],
    imatrix: bool,
    imatrix_file: str = "",
    taking: dict[str, Any] | None = None,
    one_pass: dict[str, Any] | None = None,
    streamed: dict[str, Any] | None = None,
    report: Report | None = None,
    emit: Emit | None = None,
) -> dict[str, Any]:
    """Plan, and with ``one_pass`` make the types straight from the model (see :func:`_types`).

    ``outtype`` is the type that the converter takes (f32, f16, bf16, q8_0). ``header`` is where the
    header-only file is left. ``imatrix_file`` is a given importance matrix.
    ``room`` are the free bytes, ``need`` the bytes needed beside the types (``{"other": …,
    "intermediate": 0 or 1}``). Returns ``plans`` (see :func:`quantize.dry_run`),
    ``intermediate`` (bytes of the converted file), ``tokens`` ("" or how the token ids differ),
    ``ends`` ("" or which tokens end no generation any more).
    ``taking`` says which tensors to take, see :class:`hooks.Taking`. With ``streamed``
    (``{"made": …}``, see reading.Reading) there is ``kept`` too, see arriving.kept_at_most.

    Raises InputError for an unknown architecture or pre-tokenizer, a type that cannot be, needs an
    imatrix or does not fit.
    """
    # imports of torch and transformers make millions of objects that stay: looking through them
    # takes a sixth of the time
    gc.disable()
    sys.path.insert(0, converter)
    with trace.library("import the converter and torch"):
        import convert_hf_to_gguf as script
        from conversion import TEXT_MODEL_MAP, base
        from gguf.metadata import Metadata

    errors = FirstError()
    logging.getLogger("hf-to-gguf").addHandler(errors)
    result: dict[str, Any] = {}
    hooks.read_everything(base, Metadata, hooks.Taking(**(taking or {})), name)

    staging = tempfile.TemporaryDirectory(dir=Path(header).parent)
    folder, space = staged(model, Path(staging.name))

    def write(self: Any) -> None:
        self.set_vocab = hooks.vocabulary(self)
        origins = given.watch(self)
        with trace.library("convert: prepare"):
            self.prepare_tensors()
            self.prepare_metadata(vocab_only=False)
        hooks.complete_fields(self.gguf_writer, space)

        def written() -> None:
            result["intermediate"] = write_header(self.gguf_writer, Path(header))

        written()
        try:
            result["ends"] = end_generation(model, header, self.gguf_writer, written)
        except ProcessFailed as error:
            raise _in_words(error, pre_tokenizer, pre_tokenizers(base)) from None
        _judge(
            model,
            header,
            types=types,
            dry=dry,
            room=room,
            need=need,
            imatrix=imatrix,
            imatrix_file=imatrix_file,
            assumed=pre_tokenizer,
            sample=sample,
            result=result,
            known=lambda: pre_tokenizers(base),
        )
        if streamed is not None:
            from autoquant.backends.llamacpp import arriving
            from autoquant.backends.llamacpp.reading import Reading

            reading = Reading(Path(model), None, streamed["made"])
            with contextlib.suppress(ProcessFailed):  # which a run says if it is to be streamed
                result["kept"] = arriving.kept_at_most(
                    {one for leaf in arriving.leaves_of(info.tensor) for one in reading.spans(leaf)}
                    for info in self.gguf_writer.tensors[0].values()
                )
        if one_pass is None or emit is None:
            raise Stop
        gc.enable()
        _types(self.gguf_writer, header, origins, result, one_pass, report, emit)

    base.ModelBase.write = write
    if pre_tokenizer:
        base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre_tokenizer
    sys.argv = [
        "convert_hf_to_gguf.py",
        str(folder),
        "--outfile",
        f"{header}.none",  # nothing is written there
        "--outtype",
        outtype,
        "--model-name",
        name,
    ]
    try:
        script.main()
    except Stop:
        pass
    except NotImplementedError as error:
        if "pre-tokenizer" in str(error):
            raise InputError(
                refuse_unknown_pre_tokenizer(model, name, pre_tokenizers(base))
            ) from None
        raise ProcessFailed(f"llama.cpp's converter does not support this model: {error}") from None
    except SystemExit:
        said = " ".join(errors.messages) or "no reason given"
        match = re.search(r"Model (\S+) is not supported", said)
        if match:
            raise InputError(
                f"llama.cpp's converter does not know the architecture {match[1]!r}; nearest of the"
                f" {len(TEXT_MODEL_MAP)} it knows:"
                f" {', '.join(nearest(match[1], tuple(TEXT_MODEL_MAP)))}"
            ) from None
        raise ProcessFailed(f"llama.cpp's converter gave up: {said}") from None
    except AutoQuantError:
        raise
    except Exception as error:
        # a full disk, by the system's number or as NumPy says it
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if full or re.search(r"requested and \d+ written", str(error)):
            raise
        # whatever the converter stumbles over in config or tokenizer files; the traceback is in the
        # log
        logging.getLogger(__name__).exception("converter failed")
        said = str(error).strip() or "it gave no reason"
        raise ProcessFailed(
            f"llama.cpp's converter failed on {name}: {type(error).__name__}: {said}. The traceback"
            " is in the run's log"
        ) from None
    finally:
        staging.cleanup()
    return result


def _types(
    writer: Any,
    header: str,
    origins: given.Origins,
    found: dict[str, Any],
    asked: dict[str, Any],
    report: Report | None,
    emit: Emit,
) -> None:
    """Make the types, emit ``{"made": …}`` with what was ``found`` before, and verify them, see
    check.verify_all. ``asked`` has ``jobs`` (see targets.Target), ``arriving``
    (where the checkpoint's files arrive; empty: they are there) with ``spare`` (see
    arriving.Arriving), ``made`` (of a model whose tensors are made as they are read, see
    reading.Reading), ``needs`` (the bytes that will be written and stay, if not all do),
    ``sending`` (what happens to shards, see shards.Shards), and the arguments of one_pass.OnePass.
    """
    # as late as this: they load llama.cpp
    from autoquant.backends.llamacpp import check
    from autoquant.backends.llamacpp.arriving import Arriving, leaves_of
    from autoquant.backends.llamacpp.one_pass import OnePass
    from autoquant.backends.llamacpp.reading import Reading
    from autoquant.backends.llamacpp.shards import TAKEN, Shards

    asked = dict(asked)
    folder, spare, made = asked.pop("arriving"), asked.pop("spare"), asked.pop("made")
    sending, needs = asked.pop("sending"), asked.pop("needs")
    planned = {plan["type"]: plan for plan in found["plans"]}
    jobs = []
    for job in asked.pop("jobs"):
        plan = job.get("plan") or planned.get(job["type"], {})
        if job["ready"] and plan:
            plan = {**plan, "bytes": plan["converted_bytes"]}
        jobs.append({**job, "plan": plan})
    tensors = writer.tensors[0]
    with trace.library("quantize types"):
        one_pass = OnePass(header, jobs, **asked)
        order = one_pass.order()
        if folder:
            arriving = Arriving(
                folder, emit, spare=spare, needs=needs or one_pass.to_write(), made=made
            )
            turns = partial(
                arriving.in_turn, {name: leaves_of(tensors[name].tensor) for name in order}
            )
        else:
            turns = partial(_at_once, order)
            if made:
                Reading(Path(made["files"]), None, made)
        rows = given.of_converter(one_pass.head, tensors, origins)
        shards = Shards.of(sending, header, emit)
        one_pass.write(turns, rows, origins.names, report, shards)
    emit({"made": {name: one for name, one in found.items() if name != "plans"}})
    check.verify_all(
        header,
        jobs,
        one_pass.hashes(),
        cores=asked["threads"],
        emit=emit,
        taken=sending == TAKEN,
    )


def _at_once(names: list[str], settle: Callable[[], None]) -> Iterator[str]:
    return iter(names)


def _judge(
    model: str,
    header: str,
    *,
    types: list[str],
    dry: dict[str, Any],
    room: int | None,
    need: dict[str, int],
    imatrix: bool,
    imatrix_file: str,
    assumed: str,
    sample: str,
    result: dict[str, Any],
    known: Callable[[], list[str]],
) -> None:
    """Dry-run the types and compare token ids; refuse what cannot work. Fills ``result``."""
    from autoquant.backends.llamacpp import quantize

    plans = quantize.plans(header, types, imatrix=imatrix, imatrix_file=imatrix_file, **dry)
    result["plans"] = plans
    try:
        result["tokens"] = compare_tokens(model, header, TOKENIZER_SAMPLE + sample)
    except ProcessFailed as error:
        raise _in_words(error, assumed, known()) from None
    if assumed and result["tokens"]:
        raise InputError(
            f"pre_tokenizer: {assumed!r} is not right for this model: {result['tokens']}. Try"
            f" another: {', '.join(known()[:12])} …"
        )
    if room is not None:
        refuse(
            plans,
            intermediate=need["intermediate"] * result["intermediate"],
            other=need["other"],
            room=room,
            imatrix=imatrix,
        )


def _in_words(error: ProcessFailed, assumed: str, known: list[str]) -> Exception:
    """What llama.cpp says of a file that it cannot open; of a pre-tokenizer that it does not have,
    what there is.
    """
    if not assumed or "pre-tokenizer" not in str(error):
        return error
    return InputError(
        f"pre_tokenizer: llama.cpp has none called {assumed!r}; it has:"
        f" {', '.join(nearest(assumed, tuple(known)) or known)}"
    )

"""GGUF with llama.cpp: any number of types in one pass over a model, each of them checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from autoquant import calibration
from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.types import TYPES, UNQUANTIZED, file_type, parse
from autoquant.core.bundled import CALIBRATION, MODELS
from autoquant.core.errors import InputError
from autoquant.core.journal import RunFolder
from autoquant.core.options import MethodOptions
from autoquant.core.plans import Plan
from autoquant.core.records import Artifact, RunRecord, Snapshot, Source
from autoquant.core.texts import parts
from autoquant.evaluate.planning import known
from autoquant.methods.base import ComparisonVariants, Method, Output
from autoquant.methods.gguf import (
    about,
    adapter_only,
    planning,
    requantize,
    sensitivity,
    sizes,
    streaming,
)
from autoquant.methods.gguf.measured import Measured
from autoquant.methods.gguf.options import FISHER, MEASURE, GgufOptions
from autoquant.methods.gguf.work import Work
from autoquant.source import fetch, fetch_adapter, remote, structure


class Gguf(Method[GgufOptions]):
    """GGUF."""

    name: ClassVar[str] = "gguf"
    title: ClassVar[str] = "GGUF (llama.cpp)"
    summary: ClassVar[str] = (
        "one file that runs on CPUs and GPUs with llama.cpp, Ollama, LM Studio; 1.1 to 16 bits"
    )
    Options: ClassVar[type[MethodOptions]] = GgufOptions
    start: ClassVar[str] = "llama-server -m {path}"
    many_types: ClassVar[bool] = True
    notebook_defaults: ClassVar[Mapping[str, Any]] = {"imatrix": "builtin"}
    take_when: ClassVar[str] = "you are in doubt, or run it on a CPU, a Mac or with Ollama"
    bits: ClassVar[str] = "1.1 to 16, some thirty types"
    requires_calibration: ClassVar[str] = "optional (importance matrix)"
    runs_on: ClassVar[tuple[str, ...]] = ("cpu",)
    gpu_to_run: ClassVar[str] = "no"
    runtimes: ClassVar[str] = "llama.cpp, Ollama, LM Studio"
    extra: ClassVar[str] = "gguf"
    packages: ClassVar[tuple[str, ...]] = (
        "llama-cpp-python",
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
    )
    library_name: ClassVar[str] = "gguf"
    reads_gguf: ClassVar[bool] = True
    nearly_lossless: ClassVar[tuple[str, ...]] = (*UNQUANTIZED, "Q8_0")
    chosen: ClassVar[str] = (
        "**AQ** files: each tensor has the type that loses the least within the file's size, as the"
        " Fisher information of its weights predicts (sensitivity.json has the predictions, the"
        " file's header the whole recipe)."
    )
    demo_options: ClassVar[Mapping[str, Any]] = {"types": ("Q4_K_M", "Q8_0")}
    comparison_variants: ClassVar[ComparisonVariants | None] = ComparisonVariants(
        ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"),
        parse,
        "GGUF types",
        again=True,
        without=(
            *("size", "bpw", "fits", "context", "kv_type"),
            *("against", "candidates", "sensitivity", "sensitivity_samples"),
        ),
    )

    def variants(self, options: GgufOptions) -> tuple[str, ...]:
        """The types."""
        return (adapter_only.TYPE,) if options.adapter_only else options.files

    def folder_suffix(self, options: GgufOptions) -> str:
        """One folder for all types."""
        return "LoRA-GGUF" if options.adapter_only else "GGUF"

    def resolve_defaults(self, source: Source, options: GgufOptions) -> GgufOptions:
        """The bundled models' vocabulary is their own, so llama.cpp cannot know its pre-tokenizer;
        we do. Of a model whose experts are MXFP4 the usual type is MXFP4_MOE.
        """
        if options.adapter_only and options.evaluate == "auto":
            return options.model_copy(update={"evaluate": "off"})
        default = GgufOptions.model_fields["types"].default
        if source.stored_as == "mxfp4" and options.types == default and not options.size:
            # its experts stay what they are: MXFP4 of MXFP4 loses nothing
            options = options.model_copy(update={"types": ("MXFP4_MOE",)})
        if options.size and options.imatrix == "none":
            options = options.model_copy(update={"imatrix": FISHER})
        if source.folder in MODELS.values() and not options.pre_tokenizer:
            return options.model_copy(update={"pre_tokenizer": "gpt-2"})
        return options

    def environment(self, options: GgufOptions) -> dict[str, str]:
        """The converter's own gguf-py on the path."""
        return llama.environment(llama.locate(options.converter))

    def prepare(self, logs: Path) -> str:
        """Fetch the converter."""
        llama.environment(llama.locate(""))
        return ""

    def check(self, source: Source, options: GgufOptions) -> None:
        """What can be refused within a second."""
        llama.installed_version()
        requantize.check(source, options)
        streaming.check(source, options)
        self._check_size(options)
        sensitivity.check(source, options)
        if options.adapter_only:
            adapter_only.check(source, options)
            structure.refuse(source)
            return
        if options.imatrix == "none":
            needing = [name for name in options.types if TYPES[name].imatrix == "needed"]
            if needing:
                raise InputError(
                    f"types: {', '.join(needing)} {'needs' if len(needing) == 1 else 'need'} an"
                    " importance matrix: add imatrix='builtin' (--imatrix builtin), or name a text"
                    " file or an imatrix .gguf"
                )
        else:
            self._check_imatrix(options)
        if options.delete_uploaded and not options.upload:
            raise InputError(
                "delete_uploaded: nothing is uploaded; add upload='owner/name' (--upload), or leave"
                " delete_uploaded out"
            )
        plain = [name for name in options.types if name in UNQUANTIZED]
        if plain and options.mixed:
            raise InputError(
                f"types: {plain[0]} is unquantized, so output_type, embedding_type, tensor_types"
                " and pure cannot apply. Make it in a separate run"
            )
        if not source.gguf:
            structure.refuse(source)
            structure.refuse_tokenizer(source, rows=True)

    def check_sensitivities(self, source: Source, options: GgufOptions) -> None:
        """What of them alone can be refused within a second."""
        llama.installed_version()
        streaming.check(source, options)
        sensitivity.check(source, options, "model")
        self._check_imatrix(options)
        structure.refuse(source)
        structure.refuse_tokenizer(source, rows=True)

    def without_slow_checks(self, options: GgufOptions) -> GgufOptions:
        """A table of sensitivities is another model's, and may lie on the Hub."""
        return options.model_copy(update={"sensitivity": MEASURE})

    def made_before(self, options: GgufOptions, steps: Mapping[str, Any]) -> tuple[str, ...]:
        """Of sizes the types that were chosen."""
        return sizes.chosen_before(options, steps) or tuple(self.variants(options))

    def uploaded(self, options: GgufOptions) -> tuple[str, ...]:
        """Of sizes none before they are chosen."""
        return () if options.size else tuple(self.variants(options))

    def _check_size(self, options: GgufOptions) -> None:
        """Refuse what does not go with sizes."""
        if not options.size:
            for name in ("against", "candidates", "sensitivity"):
                changed = getattr(options, name) != GgufOptions.model_fields[name].default
                if changed and not options.fits:
                    raise InputError(
                        f"{name}: has an effect only with size (--size), bpw or fits; add one, or"
                        f" leave {name} out"
                    )
            return
        if options.types != GgufOptions.model_fields["types"].default:
            raise InputError(
                "types: with size the types are chosen; leave types out, or name what to compare"
                " with in against (--against)"
            )
        if options.mixed:
            raise InputError(
                "size: the types of all tensors are chosen, so output_type, embedding_type,"
                " tensor_types and pure cannot apply; leave them out"
            )

        if options.delete_uploaded and options.against != ("auto",):
            raise InputError(
                "against: with delete_uploaded nothing is measured, so there is nothing to compare"
                " with; leave against out"
            )

    def _check_imatrix(self, options: GgufOptions) -> None:
        """Refuse an importance matrix, or a text for one, that is not there."""
        if options.imatrix == "calibration":
            calibration.check(options)
        elif options.imatrix != FISHER and options.given_imatrix is None:
            parts(options.imatrix, "imatrix", CALIBRATION)
        elif options.imatrix_chunks != GgufOptions.model_fields["imatrix_chunks"].default:
            raise InputError(
                f"imatrix_chunks: {options.imatrix} is computed already; leave imatrix_chunks out"
            )

    def plan_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every type that goes with the options that are given."""
        if given.get("adapter_only") or any(given.get(one) for one in ("size", "bpw", "fits")):
            return {}
        mixing = ("output_type", "embedding_type", "tensor_types", "pure")
        mixed = any(given.get(name) for name in mixing)
        return {
            "types": tuple(
                name
                for name, row in TYPES.items()
                if not row.special and not (mixed and name in UNQUANTIZED)
            )
        }

    def plan(self, source: Source, options: GgufOptions, out: Path) -> Plan:
        """The exact size of every asked type, from a header-only file; no weight is read. Takes as
        long as importing transformers.
        """
        if source.gguf:  # of all types, those that it is not
            others = tuple(name for name in options.types if name != source.dtype)
            options = options.model_copy(update={"types": others or options.types})
        # for planning nothing is refused for want of an imatrix
        asked = options
        if options.imatrix == "none" and not options.adapter_only:
            asked = options.model_copy(update={"imatrix": "builtin", "download": "auto"})
        self.check(source, asked)
        streaming.check(source, options)
        return planning.plan(self.name, source, options, out)

    def quantize(self, snapshot: Snapshot, options: GgufOptions, run: RunFolder) -> Output:
        """Convert, compute the importance matrix, quantize and verify. Steps that the journal knows
        are not done again.
        """
        if options.adapter_only:
            return adapter_only.make(snapshot, options, run)
        return Work(snapshot, options, run).output()

    def sensitivities(self, snapshot: Snapshot, options: GgufOptions, run: RunFolder) -> Measured:
        """Measure how sensitive each tensor is, or find that in the journal; no type is made."""
        work = Work(snapshot, options, run)
        found = work.sensitivities()
        return Measured(run.folder, snapshot.source, options, found, work.sized.model())

    def about(self, source: Source, options: GgufOptions) -> list[str]:
        """Of an adapter alone nothing: it is not merged."""
        if options.adapter_only:
            return []
        copy = options.download != "stream" and remote.needs_made(source)
        notes = structure.notes_on(source, copy=copy)
        if options.eval_by_weights and not known(source):
            notes.append(
                "llama.cpp runs the files to measure them, not transformers, which needs a"
                " safetensors checkpoint of an architecture that it knows"
            )
        return notes

    def fetch(self, source: Source, options: GgufOptions, out: Path) -> Snapshot:
        """Of an adapter alone the base's weights are not needed; and where there is no room for all
        files, they come while types are made of them.
        """
        if options.adapter_only:
            return fetch_adapter(source)
        sensitivity.refuse_without_memory(source, options, out)
        if streaming.choose(source, options, out).stream or streaming.made(source, options, out):
            return remote.snapshot(source)
        return fetch(source, make=remote.needs_made(source))

    def unmeasured(self, source: Source, options: GgufOptions, out: Path) -> str:
        """Where results go away again, or files come and go of a model that transformers does not
        know.
        """
        if options.adapter_only:
            return ""
        if options.delete_uploaded:
            return "the files are deleted here as soon as the Hub has them (delete_uploaded)"
        way = streaming.choose(source, options, out)
        return streaming.unmeasured(source, options, way)

    def to_measure(self, source: Source, options: GgufOptions, out: Path) -> int:
        """All of a source whose files come and go."""
        if options.adapter_only:
            return 0
        return streaming.to_measure(source, options, streaming.choose(source, options, out))

    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""
        alone = artifact.type == adapter_only.TYPE
        return adapter_only.WHEN if alone else file_type(artifact.type).when

    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the files."""
        if record.artifacts[0].type == adapter_only.TYPE:
            base = (record.source.adapted or record.source).id
            return adapter_only.how_to_run(record.artifacts[0].name, base)
        return about.how_to_run(record)

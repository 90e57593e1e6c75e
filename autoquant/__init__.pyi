"""The public functions and classes. Written by tools/sync_stub.py (`make sync`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from autoquant.calibration import Calibration as Calibration
from autoquant.cluster.hf_jobs.offers import Offers as Offers
from autoquant.cluster.planning import BatchPlan as BatchPlan
from autoquant.cluster.run import BatchResult as BatchResult
from autoquant.comparison import Comparison as Comparison
from autoquant.core.errors import AutoQuantError as AutoQuantError
from autoquant.core.errors import CheckFailed as CheckFailed
from autoquant.core.errors import HubFailed as HubFailed
from autoquant.core.errors import InputError as InputError
from autoquant.core.errors import OutOfMemory as OutOfMemory
from autoquant.core.errors import ProcessFailed as ProcessFailed
from autoquant.core.errors import Stopped as Stopped
from autoquant.core.version import __version__ as __version__
from autoquant.result import Plan as Plan
from autoquant.result import Result as Result
from autoquant.sizing.advice import Advice as Advice
from autoquant.sizing.sensitivities import Sensitivities as Sensitivities

@overload
def batch(
    jobs: str | Path | Sequence[Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    dry_run: Literal[False] = False,
    ray: str = "",
    on: Literal["here", "hf-jobs"] = "here",
    flavor: str = "",
    timeout: str | float = "",
    image: str = "",
    yes: bool = False,
) -> BatchResult: ...
@overload
def batch(
    jobs: str | Path | Sequence[Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    dry_run: Literal[True],
    ray: str = "",
    on: Literal["here"] = "here",
) -> BatchPlan: ...
@overload
def batch(
    jobs: str | Path | Sequence[Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    dry_run: Literal[True],
    on: Literal["hf-jobs"],
    flavor: str = "",
    timeout: str | float = "",
    image: str = "",
    yes: bool = False,
) -> Offers: ...
def advise(
    model: str | Path,
    fits: str | None = None,
    context: int | None = None,
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16",
    pre_tokenizer: str = "",
) -> Advice: ...
def plan(
    method: str, model: str | Path, *, out: str | Path | None = None, **values: Any
) -> Plan: ...
def compare(
    method: str,
    model: str | Path,
    calibrations: Mapping[str, Calibration],
    *,
    out: str | Path,
    **values: Any,
) -> Comparison: ...
def load(folder: str | Path) -> Result: ...
def sensitivity(
    model: str | Path,
    *,
    out: str | Path | None = None,
    candidates: str | Sequence[str] = ("auto",),
    sensitivity_samples: int = 32,
    imatrix: str | Calibration = "none",
    imatrix_chunks: int = 64,
    precision: Literal["auto", "f16", "bf16", "f32"] = "auto",
    pre_tokenizer: str = "",
    threads: int = 0,
    download: Literal["auto", "whole", "stream"] = "auto",
    allow_pickle: bool = False,
    converter: str = "",
    calibration: str = "builtin",
    calibration_column: str = "text",
    calibration_split: str = "train",
    calibration_subset: str = "",
    calibration_samples: int = 128,
    calibration_length: int = 512,
    calibration_seed: int = 0,
    base: str = "",
) -> Sensitivities: ...
def gguf(
    model: str | Path,
    *,
    out: str | Path | None = None,
    types: str | Sequence[str] = ("Q4_K_M",),
    size: str | Sequence[str] = (),
    bpw: str | Sequence[str] = (),
    fits: str = "",
    context: int = 0,
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16",
    against: str | Sequence[str] = ("auto",),
    candidates: str | Sequence[str] = ("auto",),
    sensitivity: str = "measure",
    sensitivity_samples: int = 32,
    imatrix: str | Calibration = "none",
    imatrix_chunks: int = 64,
    precision: Literal["auto", "f16", "bf16", "f32"] = "auto",
    keep_intermediate: bool = False,
    output_type: str = "",
    embedding_type: str = "",
    tensor_types: str | Sequence[str] = (),
    pure: bool = False,
    split_size: str = "",
    pre_tokenizer: str = "",
    mmproj: bool = True,
    mmproj_type: Literal["f16", "bf16", "q8_0"] = "f16",
    modelfile: bool = False,
    adapter_only: bool = False,
    allow_requantize: bool = False,
    eval_by_weights: bool = False,
    threads: int = 0,
    delete_uploaded: bool = False,
    download: Literal["auto", "whole", "stream"] = "auto",
    allow_pickle: bool = False,
    converter: str = "",
    calibration: str = "builtin",
    calibration_column: str = "text",
    calibration_split: str = "train",
    calibration_subset: str = "",
    calibration_samples: int = 128,
    calibration_length: int = 512,
    calibration_seed: int = 0,
    base: str = "",
    evaluate: Literal["auto", "on", "off"] = "auto",
    eval_text: str = "builtin",
    eval_chunks: int = 20,
    eval_minutes: float = 30,
    upload: str = "",
    private: Literal["auto", "yes", "no"] = "auto",
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = "one-repo",
    overwrite: bool = False,
    base_model: str = "",
) -> Result:
    """GGUF (llama.cpp): one file that runs on CPUs and GPUs with llama.cpp, Ollama, LM Studio; 1.1
    to 16 bits.
    """

def gptq(
    model: str | Path,
    *,
    out: str | Path | None = None,
    bits: int = 4,
    bpw: float = 0,
    sensitivity_samples: int = 32,
    desc_act: bool = False,
    sym: bool = True,
    damp_percent: float = 0.05,
    algorithm: Literal["gptq", "autoround"] = "gptq",
    backend: Literal["gptqmodel", "auto-gptq"] = "gptqmodel",
    group_size: int = 0,
    batch_size: int = 4,
    iterations: int = 200,
    calibration: str | Calibration = "builtin",
    calibration_column: str = "text",
    calibration_split: str = "train",
    calibration_subset: str = "",
    calibration_samples: int = 128,
    calibration_length: int = 512,
    calibration_seed: int = 0,
    base: str = "",
    evaluate: Literal["auto", "on", "off"] = "auto",
    eval_text: str = "builtin",
    eval_chunks: int = 20,
    eval_minutes: float = 30,
    upload: str = "",
    private: Literal["auto", "yes", "no"] = "auto",
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = "one-repo",
    overwrite: bool = False,
    base_model: str = "",
) -> Result:
    """GPTQ: weights of 2, 3, 4 or 8 bits, calibrated on text; for GPUs with vLLM, SGLang,
    transformers.
    """

def exl2(
    model: str | Path,
    *,
    out: str | Path | None = None,
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = "branch-per-type",
    calibration: str | Calibration = "exllamav2",
    calibration_samples: int = 100,
    calibration_length: int = 2048,
    bpw: str | float | Sequence[str | float] = ("4.0",),
    head_bits: int = 6,
    measurement: str = "",
    measurement_samples: int = 16,
    size: str | Sequence[str] = (),
    calibration_column: str = "text",
    calibration_split: str = "train",
    calibration_subset: str = "",
    calibration_seed: int = 0,
    base: str = "",
    evaluate: Literal["auto", "on", "off"] = "auto",
    eval_text: str = "builtin",
    eval_chunks: int = 20,
    eval_minutes: float = 30,
    upload: str = "",
    private: Literal["auto", "yes", "no"] = "auto",
    overwrite: bool = False,
    base_model: str = "",
) -> Result:
    """EXL2: 2 to 8 bits per weight on average, mixed by measured error; for NVIDIA GPUs with
    exllamav2, TabbyAPI, text-generation-webui.
    """

def exl3(
    model: str | Path,
    *,
    out: str | Path | None = None,
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = "branch-per-type",
    calibration: str | Calibration = "exllamav3",
    calibration_samples: int = 250,
    calibration_length: int = 2048,
    bpw: str | float | Sequence[str | float] = ("4.0",),
    head_bits: int = 6,
    optimized_bpw: str | float | Sequence[str | float] = (),
    measurement_samples: int = 10,
    codebook: Literal["mul1", "mcg", "3inst"] = "mul1",
    size: str | Sequence[str] = (),
    calibration_column: str = "text",
    calibration_split: str = "train",
    calibration_subset: str = "",
    calibration_seed: int = 0,
    base: str = "",
    evaluate: Literal["auto", "on", "off"] = "auto",
    eval_text: str = "builtin",
    eval_chunks: int = 20,
    eval_minutes: float = 30,
    upload: str = "",
    private: Literal["auto", "yes", "no"] = "auto",
    overwrite: bool = False,
    base_model: str = "",
) -> Result:
    """EXL3: 1 to 8 bits per weight on average by a trellis code, made for 2 to 4; for NVIDIA GPUs
    with exllamav3, TabbyAPI.
    """

def awq(
    model: str | Path,
    *,
    out: str | Path | None = None,
    bits: int = 4,
    zero_point: bool = True,
    algorithm: Literal["autoround", "awq"] = "autoround",
    group_size: int = 0,
    batch_size: int = 4,
    iterations: int = 200,
    calibration: str | Calibration = "builtin",
    calibration_column: str = "text",
    calibration_split: str = "train",
    calibration_subset: str = "",
    calibration_samples: int = 128,
    calibration_length: int = 512,
    calibration_seed: int = 0,
    base: str = "",
    evaluate: Literal["auto", "on", "off"] = "auto",
    eval_text: str = "builtin",
    eval_chunks: int = 20,
    eval_minutes: float = 30,
    upload: str = "",
    private: Literal["auto", "yes", "no"] = "auto",
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = "one-repo",
    overwrite: bool = False,
    base_model: str = "",
) -> Result:
    """AWQ: weights of 4 bits in the AWQ format, calibrated on text; for GPUs with vLLM, SGLang,
    transformers.
    """

def hqq(
    model: str | Path,
    *,
    out: str | Path | None = None,
    bits: int = 4,
    group_size: int = 0,
    axis: int = 1,
    base: str = "",
    evaluate: Literal["auto", "on", "off"] = "auto",
    eval_text: str = "builtin",
    eval_chunks: int = 20,
    eval_minutes: float = 30,
    upload: str = "",
    private: Literal["auto", "yes", "no"] = "auto",
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = "one-repo",
    overwrite: bool = False,
    base_model: str = "",
) -> Result:
    """HQQ: weights of 8, 4, 3, 2 or 1 bits, without calibration data, in seconds to minutes; run
    by the library hqq.
    """

def bitsandbytes(
    model: str | Path,
    *,
    out: str | Path | None = None,
    quant_type: Literal["nf4", "fp4", "int8"] = "nf4",
    double_quant: bool = True,
    threshold: float = 6.0,
    base: str = "",
    evaluate: Literal["auto", "on", "off"] = "auto",
    eval_text: str = "builtin",
    eval_chunks: int = 20,
    eval_minutes: float = 30,
    upload: str = "",
    private: Literal["auto", "yes", "no"] = "auto",
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = "one-repo",
    overwrite: bool = False,
    base_model: str = "",
) -> Result:
    """bitsandbytes: NF4 or FP4 weights of 4 bits, or LLM.int8(), without calibration data, in
    seconds; for transformers, QLoRA and vLLM.
    """

def w8a8(
    model: str | Path,
    *,
    out: str | Path | None = None,
    scheme: Literal["int8-dynamic", "int8-static", "fp8-dynamic"] = "int8-dynamic",
    calibration: str | Calibration = "builtin",
    calibration_column: str = "text",
    calibration_split: str = "train",
    calibration_subset: str = "",
    calibration_samples: int = 128,
    calibration_length: int = 512,
    calibration_seed: int = 0,
    base: str = "",
    evaluate: Literal["auto", "on", "off"] = "auto",
    eval_text: str = "builtin",
    eval_chunks: int = 20,
    eval_minutes: float = 30,
    upload: str = "",
    private: Literal["auto", "yes", "no"] = "auto",
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = "one-repo",
    overwrite: bool = False,
    base_model: str = "",
) -> Result:
    """W8A8 / FP8: weights and activations of 8 bits, integers or floating point, in the
    compressed-tensors format; for GPUs with vLLM.
    """

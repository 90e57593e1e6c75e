"""AutoQuant: quantize a language model, check and measure the result, describe it in a model card.

    import autoquant
    result = autoquant.gguf("owner/model", types=["Q4_K_M", "Q8_0"])
    print(result)
    result.upload("you/model-GGUF")

Each method is one function (``help(autoquant.gguf)`` lists its options). Importing this package
loads no torch, transformers or quantization library: those run in processes of their own. What an
editor and a type checker see of it is in ``__init__.pyi``, which ``make sync`` writes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from autoquant.core.errors import AutoQuantError as AutoQuantError
from autoquant.core.errors import CheckFailed as CheckFailed
from autoquant.core.errors import HubFailed as HubFailed
from autoquant.core.errors import InputError as InputError
from autoquant.core.errors import OutOfMemory as OutOfMemory
from autoquant.core.errors import ProcessFailed as ProcessFailed
from autoquant.core.errors import Stopped as Stopped
from autoquant.core.version import __version__ as __version__

_PUBLIC = (
    "Advice",
    "AutoQuantError",
    "BatchPlan",
    "BatchResult",
    "Calibration",
    "CheckFailed",
    "Comparison",
    "HubFailed",
    "InputError",
    "Offers",
    "OutOfMemory",
    "Plan",
    "ProcessFailed",
    "Result",
    "Sensitivities",
    "Stopped",
    "__version__",
    "advise",
    "batch",
    "compare",
    "load",
    "plan",
    "sensitivity",
)


def _function(name: str) -> Any:
    """The public function of a method, with a signature and docstring rendered from its options."""
    import inspect

    from autoquant import result
    from autoquant.core import rendering
    from autoquant.methods import METHODS

    method = METHODS[name]

    def function(model: str | Path, *, out: str | Path | None = None, **values: Any) -> Any:
        return result.quantize(method, model, out=out, values=values)

    leading = [
        inspect.Parameter(
            "model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="str | Path"
        ),
        inspect.Parameter(
            "out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | Path | None"
        ),
    ]
    function.__name__ = function.__qualname__ = name
    function.__signature__ = rendering.signature(method.Options, leading)  # type: ignore[attr-defined]
    function.__doc__ = f"""{method.title}: {method.summary}.

    model: a model on the Hugging Face Hub ("owner/name", "owner/name@revision" or its URL), a
        folder with a checkpoint, or "demo" for the bundled one.
    out: the folder to write to; default ./<model>-{method.folder_suffix(method.Options())}.
        Calling again continues after the last finished step.

{rendering.help_lines(method.Options)}

    Returns a Result. Writes the files, README.md (model card), size-against-quality.png and the
    source's licence; a model from the Hub is downloaded into huggingface_hub's cache (HF_HOME).
    Raises InputError for anything that cannot be done as asked, CheckFailed if a finished file
    fails its checks, HubFailed if the Hub cannot be reached.
    """
    return function


def _method(name: str) -> Any:
    from autoquant.methods import METHODS

    if name not in METHODS:
        raise InputError(f"no method is called {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def plan(method: str, model: str | Path, *, out: str | Path | None = None, **values: Any) -> Any:
    """What ``autoquant.<method>(model, …)`` would make and need; takes the same options and writes
    nothing. Returns a Plan.
    """
    from autoquant import result

    return result.plan(_method(method), model, out=out, values=values)


def compare(
    method: str,
    model: str | Path,
    calibrations: dict[str, Any],
    *,
    out: str | Path,
    **values: Any,
) -> Any:
    """The same method with several calibration sets (languages, domains), measured on the same
    tokens, in one table.

        autoquant.compare("gptq", "owner/model", {"novels": Calibration(),
            "code": Calibration("owner/dataset", column="content")}, out="compared", bits=3)

    calibrations: names and :class:`Calibration` objects. out: each run goes into a folder of its
    own in there. The other options are the method's. Returns a Comparison: it prints as a table,
    and ``comparison["code"]`` is a Result. Raises what the method raises.
    """
    from autoquant import comparison

    return comparison.compare(_method(method), model, calibrations, out=out, values=values)


def batch(
    jobs: Any,
    *,
    out: str | Path | None = None,
    dry_run: bool = False,
    ray: str = "",
    on: str = "here",
    flavor: str = "",
    timeout: str | float = "",
    image: str = "",
    yes: bool = False,
) -> Any:
    """Run many models and methods, each into a folder of its own, and sum them up in one page.

        done = autoquant.batch([
            {"models": ["owner/one", "owner/two"], "methods": ["gguf", "gptq"], "eval_chunks": 40,
             "gguf": {"types": ["Q4_K_M", "Q8_0"]}, "upload": "you/{model}-{METHOD}"},
        ], out="all")
        print(done, done.failed)

    jobs: a TOML file (docs/scale.md), or a list of what stands in its ``[[jobs]]``: ``model`` or
        ``models``, ``method`` or ``methods``, options of all these methods, and under a method's
        name options of that one alone. {model}, {METHOD} and {method} are filled in, in ``upload``
        and in ``name``, the job's folder.
    out: the folder that has the jobs' folders; default: as the file says, ./autoquant-batch for a
        list.
    dry_run: end after the plans, and return a BatchPlan (of Hugging Face Jobs, Offers with what
        they cost at most); nothing is run.
    ray: run the jobs on a Ray cluster, by its address; "auto" for the one that this machine belongs
        to.
    on: "here", or "hf-jobs": each job as a Hugging Face Job, which is billed, uploads what it makes
        (``upload`` is needed), and goes on if this ends; called again, it is followed again.
    flavor, timeout, image: of Hugging Face Jobs, the machine (default: the cheapest that has what
        the plan needs), when each is ended ("6h", or seconds; default: twice the planned time), and
        the Docker image.
    yes: start Hugging Face Jobs without being asked; without it InputError names the cost.

    All jobs are planned before the first is run; what cannot be made does not stop the others, nor
    does a failure. Called again, it goes on with what is missing. Returns a BatchResult: prints as
    a table, ``done["one-GGUF"]`` is a Result. Writes the jobs' folders, summary.md and
    summary.html, and ``.autoquant-batch/`` (how they ended, logs). Raises InputError that lists all
    that is wrong with the jobs as they are written.
    """
    from autoquant.cluster import run

    if on != "here":
        if ray:
            raise InputError("ray: has no effect beside on='hf-jobs'; leave one of them out")
        from autoquant.cluster.hf_jobs import python
        from autoquant.cluster.hf_jobs.offers import Settings

        settings = Settings(flavor, timeout, image)
        return python.batch(jobs, out, on, settings, yes=yes, dry_run=dry_run)
    options = {"flavor": flavor, "timeout": timeout, "image": image, "yes": yes}
    if given := [name for name, value in options.items() if value]:
        raise InputError(f"{given[0]} has an effect only with on='hf-jobs'; add that")
    planned = run.plan(jobs, out, here=not ray)
    if dry_run:
        return planned
    return run.run(planned, runner=run.on_cluster(ray, planned)) if ray else run.run(planned)


def advise(
    model: str | Path,
    fits: str | None = None,
    context: int | None = None,
    kv_type: str = "f16",
    pre_tokenizer: str = "",
) -> Any:
    """Which method and type of a model fits on a device, how good it is, and how to start it.

        print(autoquant.advise("owner/model", fits="RTX 4090", context=16384))

    fits: a device of the table (``autoquant devices``), "8GB laptop", or "24GB" for so much memory
        that is free; default: this machine, its NVIDIA GPU if it has one.
    context: tokens of one conversation; default 8192, or the model's own context if that is less.
    kv_type: "f16", "q8_0" or "q4_0": how llama.cpp keeps keys and values.
    pre_tokenizer: as GGUF's, for a model whose own llama.cpp does not know.

    Returns an Advice, which prints as a table. Nothing is downloaded but config, tokenizer and
    headers. Sizes of GGUF files and of what llama.cpp takes beside them are its own. Raises
    InputError for a device that is not known or a context beyond the model's.
    """
    from autoquant import result

    return result.advise(model, fits, context, kv_type, pre_tokenizer)


def sensitivity(model: str | Path, *, out: str | Path | None = None, **values: Any) -> Any:
    """How sensitive each tensor of a model is to quantization: what it would lose, in nats per
    token of KL divergence, by each type; and so what the best GGUF file of any size would lose.
    No such file is made.

        found = autoquant.sensitivity("owner/model")
        print(found, found.frontier(["4GB", "4.5bpw", "Q4_K_M"]))
        autoquant.gguf("owner/model", size="4GB")  # measures nothing again

    model: as for :func:`autoquant.gguf`, but no GGUF file: gradients are needed.
    out: the folder to write to; default ./<model>-GGUF, where a later run of GGUF with the same
        options finds the table. What is measured there already is not measured again.
    The options are those of GGUF that a table depends on, with the same meaning and defaults:
    sensitivity_samples, candidates, imatrix, imatrix_chunks, precision, the calibration options,
    pre_tokenizer, base; and threads, download, allow_pickle, converter.

    Returns Sensitivities: prints as a table, in a notebook with a picture, has
    ``frontier(sizes)`` and ``path``. Writes sensitivity.json and, unless another importance matrix
    is named, imatrix.gguf (the mean Fisher information of the columns). The prediction is half the
    sum of Fisher information times squared error (docs/sizes.md has the sources). Raises InputError
    for an option that has nothing to do with it, a model whose gradients cannot be computed, or too
    little memory.
    """
    from autoquant import result

    return result.sensitivity(model, out=out, values=values)


def load(folder: str | Path) -> Any:
    """The Result of an earlier run, from its folder: to look at, to measure again, to upload.
    Raises InputError if it holds no finished run.
    """
    from autoquant import result

    return result.load(folder)


def __getattr__(name: str) -> Any:
    """The methods' functions, and classes that bring pydantic, when they are first asked for."""
    if name == "__all__":
        return __dir__()
    if name == "Calibration":
        from autoquant.calibration import Calibration

        return Calibration
    if name == "Comparison":
        from autoquant.comparison import Comparison

        return Comparison
    if name in ("Plan", "Result"):
        from autoquant import result

        return getattr(result, name)
    if name in ("BatchPlan", "BatchResult"):
        from autoquant.cluster import run

        return getattr(run, name)
    if name == "Offers":
        from autoquant.cluster.hf_jobs.offers import Offers

        return Offers
    if name == "Advice":
        from autoquant.sizing.advice import Advice

        return Advice
    if name == "Sensitivities":
        from autoquant.sizing.sensitivities import Sensitivities

        return Sensitivities
    # "from autoquant import core" asks for an attribute before it imports the module
    if not name.startswith("_") and importlib.util.find_spec(f"autoquant.{name}") is None:
        from autoquant.methods import METHODS

        if name in METHODS:
            globals()[name] = _function(name)
            return globals()[name]
    raise AttributeError(f"module 'autoquant' has no attribute {name!r}")


def __dir__() -> list[str]:
    from autoquant.methods import METHODS

    return sorted({*_PUBLIC, *METHODS})

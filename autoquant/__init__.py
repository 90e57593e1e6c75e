"""AutoQuant: quantize a language model, check and measure the result, describe it in a model card.

    import autoquant
    result = autoquant.gguf("owner/model", types=["Q4_K_M", "Q8_0"])
    print(result)
    result.upload("you/model-GGUF")

Each method is one function (``help(autoquant.gguf)`` lists its options). Importing this package
loads no torch, transformers or quantization library: those run in processes of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoquant.core.errors import (
    AutoQuantError,
    CheckFailed,
    HubFailed,
    InputError,
    OutOfMemory,
    ProcessFailed,
    Stopped,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from autoquant.calibration import Calibration
    from autoquant.result import Comparison, Result

    gguf: Callable[..., Result]
    gptq: Callable[..., Result]
    exl2: Callable[..., Result]
    awq: Callable[..., Result]
    hqq: Callable[..., Result]
    bitsandbytes: Callable[..., Result]
    w8a8: Callable[..., Result]

__version__ = "0.1.0"
# a test compares it with METHODS; here so that importing this package stays cheap
_METHOD_NAMES = ("gguf", "gptq", "exl2", "awq", "hqq", "bitsandbytes", "w8a8")
__all__ = [
    "AutoQuantError",
    "Calibration",
    "CheckFailed",
    "Comparison",
    "HubFailed",
    "InputError",
    "OutOfMemory",
    "ProcessFailed",
    "Stopped",
    "compare",
    "load",
    "plan",
    *_METHOD_NAMES,
]


def _function(name: str) -> Callable[..., Result]:
    """The public function of a method, with a signature and docstring rendered from its options."""
    import inspect

    from autoquant import result
    from autoquant.core import options
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
    function.__signature__ = options.signature(method.options, leading)  # type: ignore[attr-defined]
    function.__doc__ = f"""{method.title}: {method.summary}.

    model: a model on the Hugging Face Hub ("owner/name", "owner/name@revision" or its URL), a
        folder with a checkpoint, or "demo" for the bundled one.
    out: the folder to write to; default ./<model>-{method.folder_suffix(method.options())}.
        Calling again continues after the last finished step.

{options.help_lines(method.options)}

    Returns a Result. Writes the files, README.md (model card), size-against-quality.png and the
    source's licence; a model from the Hub is downloaded into huggingface_hub's cache (HF_HOME).
    Raises InputError for anything that cannot be done as asked, CheckFailed if a finished file
    fails its checks, HubFailed if the Hub cannot be reached.
    """
    return function


def plan(method: str, model: str, *, out: str | None = None, **values: Any) -> Any:
    """What ``autoquant.<method>(model, …)`` would make and need; takes the same options and writes
    nothing. Returns a Plan.
    """
    from autoquant import result
    from autoquant.methods import METHODS

    if method not in METHODS:
        raise InputError(f"no method is called {method!r}; there are: {', '.join(METHODS)}")
    return result.plan(METHODS[method], model, out=out, values=values)


def compare(
    method: str, model: str | Path, calibrations: dict[str, Any], *, out: str | Path, **values: Any
) -> Any:
    """The same method with several calibration sets (languages, domains), measured on the same
    tokens, in one table.

        autoquant.compare("gptq", "owner/model", {"novels": Calibration(), "code":
        Calibration("owner/dataset", column="content")}, out="compared", bits=3)

    calibrations: names and :class:`Calibration` objects. out: each run goes into a folder of its
    own in there. The other options are the method's. Returns a Comparison: it prints as a table,
    and ``comparison["code"]`` is a Result. Raises what the method raises.
    """
    from autoquant import result
    from autoquant.methods import METHODS

    if method not in METHODS:
        raise InputError(f"no method is called {method!r}; there are: {', '.join(METHODS)}")
    return result.compare(METHODS[method], model, calibrations, out=out, values=values)


def load(folder: str) -> Any:
    """The Result of an earlier run, from its folder: to look at, to measure again, to upload.
    Raises InputError if it holds no finished run.
    """
    from autoquant import result

    return result.load(folder)


def __getattr__(name: str) -> Any:
    if name in _METHOD_NAMES:
        globals()[name] = _function(name)
        return globals()[name]
    if name == "Calibration":  # brings pydantic
        from autoquant.calibration import Calibration

        return Calibration
    if name == "Comparison":
        from autoquant.result import Comparison

        return Comparison
    raise AttributeError(f"module 'autoquant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "Calibration", "Comparison", *_METHOD_NAMES])

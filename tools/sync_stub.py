"""Write autoquant/__init__.pyi from the methods' options: what editors complete and mypy checks.

usage: python tools/sync_stub.py [--check]
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import typing
from pathlib import Path

from pydantic.fields import FieldInfo

from autoquant.core import options
from autoquant.core.options import MethodOptions
from autoquant.methods import METHODS
from autoquant.methods.base import AnyMethod
from autoquant.methods.gguf.measured import OPTIONS
from autoquant.methods.gguf.options import GgufOptions

TARGET = Path(__file__).resolve().parents[1] / "autoquant" / "__init__.pyi"
HEAD = '''"""The public functions and classes. Written by tools/sync_stub.py (`make sync`)."""

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
'''


def annotation(cls: type[MethodOptions], name: str, field: FieldInfo) -> str:
    """What a caller may give for an option: texts where the command line takes them too."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("accepts"):
        return str(extra["accepts"])
    if typing.get_origin(field.annotation) is typing.Literal:
        return f"Literal[{', '.join(map(repr, typing.get_args(field.annotation)))}]"
    if typing.get_origin(field.annotation) is tuple:
        return "str | Sequence[str]"
    plain = getattr(field.annotation, "__name__", "Any")
    return "str | Calibration" if name == cls.calibrated_by else plain


def function(method: AnyMethod) -> str:
    """One method's function."""
    own = "\n".join(
        f"    {name}: {annotation(method.Options, name, field)} = {field.default!r},"
        for name, field in options.ordered(method.Options)
    )
    said = textwrap.wrap(f"{method.title}: {method.summary}.", 92)
    doc = said[0] if len(said) == 1 else "\n    ".join([*said, ""])
    return f'''def {method.name}(
    model: str | Path,
    *,
    out: str | Path | None = None,
{own}
) -> Result:
    """{doc}"""
'''


def sensitivity() -> str:
    """The function that takes some of GGUF's options."""
    own = "\n".join(
        f"    {name}: {annotation(GgufOptions, name, field)} = {field.default!r},"
        for name, field in options.ordered(GgufOptions)
        if name in OPTIONS
    )
    return f"""def sensitivity(
    model: str | Path,
    *,
    out: str | Path | None = None,
{own}
) -> Sensitivities: ...
"""


def stub() -> str:
    """The whole file, formatted as the rest."""
    text = HEAD + sensitivity() + "".join(map(function, METHODS.values()))
    command = [
        str(Path(sys.executable).with_name("ruff")),
        "format",
        "--stdin-filename",
        "x.pyi",
        "-",
    ]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Write the file, or with --check say whether it is fresh."""
    made = stub()
    if "--check" in sys.argv:
        fresh = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == made
        if not fresh:
            print("autoquant/__init__.pyi is stale: make sync", file=sys.stderr)
        return 0 if fresh else 1
    TARGET.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

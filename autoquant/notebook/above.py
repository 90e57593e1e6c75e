"""A cell that is run before those above it, as after a kernel's restart, says so: Python alone
would say that a name is not defined.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from autoquant.core.errors import InputError
from autoquant.core.language import say

# what cells make, from the form on, that cells below them use
NAMES = frozenset(
    "asked beside chosen coarser done everything exl3 exl3_bpw exl3_optimized_bpw finer folder form"
    " forms ggufs jobs larger measured question result results runs same samples several"
    " make_exl3 smaller source table types".split()
)


def _explained(
    shell: Any, kind: type[NameError], error: NameError, trace: TracebackType, tb_offset: Any = None
) -> None:
    """Show what IPython shows of a NameError, or which cells are to be run first."""
    if error.name not in NAMES or error.name in shell.user_ns:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        return
    said = InputError(
        say(
            "{name}: a cell above makes it, and has not run since this session began. Run from the"
            " form on: choose its cell, then Run Selected Cell and All Below (in Colab: Runtime,"
            " Run cell and below)",
            name=error.name,
        )
    )
    shell.showtraceback((type(said), said, None))


def begin() -> None:
    """In a notebook, have that said from now on. Imports nothing that is not there."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        shell.set_custom_exc((NameError,), _explained)

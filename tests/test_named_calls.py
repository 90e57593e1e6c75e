"""Functions that are called by their names, which mypy does not see, get what they take."""

from __future__ import annotations

import pytest

from tests.helpers import named_calls

BEFORE = """
from functools import partial
from typing import Any
from autoquant.evaluate import sources
from autoquant.runtime import environments, process
from gpu.machine import call
common: dict[str, Any] = {"log": 1, "chunks": [], "threads": 2}
ours = {"source": {}, "text_sha256": "", "kinds": [], "target": "there"}
def watched(function, /, **arguments):
    return process.call(function, log=1, **arguments)
def serving(log, prepare):
"""
PASSES, FACTS = '"autoquant.evaluate.passes:reference"', '"gpu.machine:facts"'
CALLS = {
    f"process.call({PASSES}, scored='', **common, **ours)": "",
    f"process.call({PASSES}, **common, **ours)": "lacks scored",
    f"process.call({PASSES}, scored='', widths=1, **common, **ours)": "takes no widths",
    f"process.call({PASSES}, widths=1, **unknown)": "takes no widths",
    f"process.call({PASSES}, **unknown)": "",
    f"process.call({PASSES}, scored='', **prepare({{**ours, **common, 'width': 1}}))": (
        "takes no width"
    ),
    f"watched({PASSES}, **ours)": "lacks chunks, scored, threads",
    f"sources.in_worker(1, 2, {PASSES}, told=print, **common)": (
        "lacks kinds, scored, source, target, text_sha256"
    ),
    f"(lambda: process.call({PASSES}, log=1, progress=2, source={{}}, chunks=[], target='',"
    " scored='', threads=1, text_sha256='', kinds=[]))": "",
    "process.call('autoquant.evaluate.passes:refer', log=log)": "is no function",
    "process.call('autoquant.evaluate.scored:reference', log=log)": "is no function",
    "process.call(environments.CUDA_WORKER, log=log, device=0)": "takes no device",
    f"partial(call, {FACTS}, limit=1, env={{}})": "",
    f"call({FACTS}, limit=1, log=1)": "takes no log",
    f"self.call({FACTS}, limit=1)": "what self.call is, is not known",
}


@pytest.mark.parametrize(("call", "said"), CALLS.items())
def test_a_wrong_call_is_found(call: str, said: str) -> None:
    faults, calls, _ = named_calls.looked_at(named_calls.Module("text", f"{BEFORE}    {call}\n"))
    assert [fault.endswith(said) for fault in faults] == ([True] if said else []), faults
    assert calls == ("no function" not in said and "not known" not in said)


def test_every_call_by_name_gives_what_the_function_takes() -> None:
    found, calls, whole = [], 0, 0
    for module in named_calls.every():
        faults, some, known = named_calls.looked_at(module)
        found += faults
        calls, whole = calls + some, whole + known
    assert found == []
    assert whole > 0.8 * calls > 40, "calls are found, and most can be followed"

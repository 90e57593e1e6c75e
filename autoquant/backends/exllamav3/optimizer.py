"""exllamav3's optimizer as subprocesses: ``measure_model`` measures what each group of layers (an
attention, an MLP) of several finished bitrates changes in the model's KL divergence, and
``optimize_model`` puts a model of an average in between together from their layers.

Both print what is wrong and exit with status 0 after some failures, so only files count.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoquant.backends import exllama
from autoquant.backends.exllamav3 import converter

NAME = "measurement.json"
LENGTH = 1024  # tokens of a sample: exllamav3's default
STATES = 8 << 30  # bytes for the states of candidates: its default
PASS = re.compile(r"Starting pass (\d+)/(\d+)")
MODULE = re.compile(r"Loading module \(ref\)")


def room(candidates: int, groups: int, state: int, available: int) -> tuple[float, int]:
    """What its ``--max_sys`` must be, in GiB, and how many bytes of states that makes at most.

    ``state`` are the bytes of all samples' states after one layer, in float32. It keeps one of
    them for each of ``groups`` of layers and each of ``candidates``, the bitrates but the least,
    and counts them as if there were one bitrate; the unquantized model's and the least one's twice
    beside them.
    """
    held = max(state, min(STATES, available // 2, candidates * groups * state))
    # a thousandth of a GiB more than that, for it is told so many digits
    return (2 * state + held // candidates) / (1 << 30) + 0.001, 4 * state + held


def measure(
    folders: Sequence[Path],
    names: Sequence[str],
    *,
    reference: Path,
    target: Path,
    samples: int,
    length: int,
    states: float,
    modules: int,
    python: str,
    logs: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Measure finished folders, in the order of their bits, against the unquantized ``reference``,
    and write ``target``, in which they are called ``names``. Returns its contents.

    ``states`` is GiB of main memory, ``modules`` how many a model has. Raises ProcessFailed,
    OutOfMemory.
    """
    seen, of = [1, 1], [0]

    def heard(line: str) -> None:
        begun = PASS.search(line)
        if begun:
            seen[:], of[0] = [int(begun[1]), int(begun[2])], 0
        elif MODULE.search(line):
            of[0] += 1
            progress(min((seen[0] - 1) * modules + of[0] - 1, seen[1] * modules), seen[1] * modules)

    made = target.with_suffix(".part")
    made.unlink(missing_ok=True)
    converter.start(
        "measure_model",
        [
            *("-i", *map(str, folders), "-r", str(reference), "-o", str(made), "-l", "2"),
            *("-cr", str(samples), "-cc", str(length), "-ms", f"{states:.3f}"),
        ],
        python=python,
        logs=logs,
        heard=heard,
        memory="take fewer samples (measurement_samples), or a GPU with more memory",
    )
    try:
        found = json.loads(made.read_text(encoding="utf-8"))
        groups = [[len(one["candidates"]), *one["layers"]] for one in found["groups"]]
        whole = bool(groups) and all(one[0] == len(folders) - 1 for one in groups)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise exllama.unfinished("exllamav3's measure_model", logs)
    # no paths of this machine
    for entry, name in zip([found["base"], *found["alts"]], names, strict=True):
        entry["dir"] = name
    made.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    made.replace(target)
    return dict(found)


def mix(
    folders: Sequence[Path],
    *,
    measured: Path,
    bits: float,
    target: Path,
    python: str,
    logs: Path,
) -> None:
    """Put a model of ``bits`` bits per weight, scales included, together in ``target``. Raises
    ProcessFailed.
    """
    shutil.rmtree(target, ignore_errors=True)
    converter.start(
        "optimize_model",
        [
            *("-m", str(measured), "-i", *map(str, folders), "-b", f"{bits:.6f}"),
            *("-o", str(target), "-ss", str(converter.SHARD)),
        ],
        python=python,
        logs=logs,
        memory="close what else uses the GPU",
    )
    if not converter.finished(target):
        raise exllama.unfinished("exllamav3's optimize_model", logs)


def unhelpful(measured: dict[str, Any]) -> int:
    """Of how many groups of layers no more bits than the least lowered the measured divergence:
    the optimizer leaves them there.
    """
    return sum(all(one["dkld"] >= 0 for one in group["candidates"]) for group in measured["groups"])

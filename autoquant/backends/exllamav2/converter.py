"""exllamav2's converter as a subprocess: what it is given, whether it may resume an earlier
job, and whether what it leaves can be trusted.

It exits with status 0 after most failures, goes on with whatever job lies in its folder, copies
everything that lies beside the weights, and takes a rotary base of 10000 where a config keeps it
under ``rope_parameters``. So it gets a folder with nothing else in it, jobs in folders named after
all they depend on, and only files count.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoquant.backends import exllama
from autoquant.backends.exllamav2.environment import EXLLAMAV2
from autoquant.formats.checkpoint import carry, legacy_config, listed, weight_files

STATUS = re.compile(r"\[STATUS\](\{.*\})\[/STATUS\]")
JOB = "job_new.json"
SHARD = 8192  # MB; exllamav2's own default


def stage(model: Path, folder: Path) -> Path:
    """A folder that the converter can be given: links to the weights, the tokenizer's files, and
    the config as transformers 4 had it. Made anew.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in weight_files(model):
        (folder / path.name).symlink_to(path.resolve())
    carry(model, folder)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(converter_config(config), indent=2) + "\n", encoding="utf-8"
    )
    return folder


def converter_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config that exllamav2 reads as it is meant. The finished folder keeps it: the runtimes read
    it with the same code.

    Beside transformers 4's ``rope_theta`` (see formats.checkpoint.legacy_config): the
    longrope of Phi-3 wants its original context at the top level.
    """
    old = legacy_config(config, "exl2")
    scaling = old.get("rope_scaling")
    if isinstance(scaling, dict) and "original_max_position_embeddings" in scaling:
        old.setdefault(
            "original_max_position_embeddings", scaling["original_max_position_embeddings"]
        )
    return old


def resumable(job: Path, model: Path, finished: Path) -> bool:
    """Whether the converter may resume a job's folder: it was made there, from this model, for
    this output, and was not cut off while it wrote its state.
    """
    try:
        state = json.loads((job / JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = state.get("in_dir") == str(model) and str(finished) in (
        state.get("compile_full"),
        state.get("output_measurement"),
    )
    return bool(same and "invalid" not in state and state.get("progress") != "finished")


def finished(job: Path) -> bool:
    """Whether the converter says of a job that it is done: its exit status does not tell."""
    try:
        return bool(
            json.loads((job / JOB).read_text(encoding="utf-8")).get("progress") == "finished"
        )
    except (OSError, ValueError):
        return False


def convert(
    arguments: Sequence[str],
    *,
    model: Path,
    job: Path,
    result: Path,
    python: str,
    logs: Path,
    stages: Sequence[str],
    progress: Callable[[int, int], None],
) -> None:
    """Run the converter to its end, resuming ``job`` if that can be.

    ``arguments`` are its options beside folders; ``result`` is the measurement (a .json) or the
    folder it is to make; ``stages`` those whose completion is shown, in turn. Raises ProcessFailed
    if it ended badly or, whatever it says, without the result; OutOfMemory for the GPU's memory.
    """
    again = resumable(job, model, result)
    if not again and result.is_dir():
        shutil.rmtree(result)
    job.mkdir(parents=True, exist_ok=True)
    where = ["-om", str(result)] if result.suffix == ".json" else ["-cf", str(result)]
    words = [
        python or sys.executable,
        "-m",
        "autoquant.backends.exllamav2.run",
        str(os.getpid()),
        "-i",
        str(model),
        "-o",
        str(job),
        *where,
        "-so",
        *([] if again else ["-nr"]),
        *arguments,
    ]

    def heard(line: str) -> None:
        status = STATUS.search(line)
        if status:
            said = json.loads(status[1])
            if said["stage"] in stages:
                progress(
                    int(1000 * (stages.index(said["stage"]) + float(said["completion"]))),
                    1000 * len(stages),
                )

    exllama.start(
        "exllamav2's converter",
        words,
        logs=logs,
        variables=EXLLAMAV2.variables,
        heard=heard,
        memory="close what else uses the GPU, take shorter samples (calibration_length), or a GPU"
        " with more memory",
    )
    if not finished(job) or not result.exists():
        raise exllama.unfinished("exllamav2's converter", logs)


def tidy(folder: Path, model: Path, text: str, rows: int) -> None:
    """One clean model folder: the tokenizer as it is in the source, and no path of this machine in
    the config.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    config["quantization_config"].setdefault("calibration", {}).update(dataset=text, rows=rows)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    carry(model, folder)
    mode = path.stat().st_mode & 0o777
    for name in listed(folder):  # the safetensors library writes for the owner only
        (folder / name).chmod(mode)

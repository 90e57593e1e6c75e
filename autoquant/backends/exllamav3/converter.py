"""exllamav3's converter as a subprocess: what it is given, whether it may resume an earlier job,
and whether what it leaves can be trusted.

It exits with status 0 after some failures, resumes whatever job lies in its folder when it is told
to, and copies everything that lies beside the weights. So it gets a folder with nothing else in
it, jobs in folders named after all they depend on, and only files count.
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
from autoquant.backends.exllamav3.environment import EXLLAMAV3
from autoquant.formats.checkpoint import carry, listed, weight_files

# a module is done; while one is quantized its layers have such lines too, but without the seconds
DONE = re.compile(r"-- Quantized: (\S+) .*\[[\d.]+ s\]")
ARGUMENTS, STATE = "args.json", "ckpt/job.json"  # of a job's folder
LAST = "quantization_config.json"  # what it writes last
SHARD = 8192  # MB; exllamav3's own default


def stage(model: Path, folder: Path) -> Path:
    """A folder that the converter can be given: links to the weights, the tokenizer's files and the
    config, without code of the model's. Made anew.
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
    """A config that exllamav3 reads as it is meant. The finished folder keeps it: the runtimes read
    it with the same code.

    Of Gemma 2 it takes the window of local attention from ``sliding_window_size``, which
    transformers does not write, and without it lets every layer see everything.
    """
    made = {name: value for name, value in config.items() if name != "auto_map"}
    if config.get("model_type") == "gemma2" and config.get("sliding_window"):
        made.setdefault("sliding_window_size", config["sliding_window"])
    return made


def resumable(job: Path, model: Path, target: Path) -> bool:
    """Whether the converter may resume a job's folder: it was begun there, from this model, for
    this output, and its state was not being exchanged when it was cut off.
    """
    try:
        given = json.loads((job / ARGUMENTS).read_text(encoding="utf-8"))
        state = json.loads((job / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = given.get("in_dir") == str(model) and given.get("out_dir") == str(target)
    return bool(same and isinstance(state.get("next_module_idx"), int))


def finished(target: Path) -> bool:
    """Whether a folder has all that the converter writes."""
    try:
        return bool(json.loads((target / LAST).read_text(encoding="utf-8"))["tensor_storage"])
    except (OSError, ValueError, KeyError):
        return False


def convert(
    arguments: Sequence[str],
    *,
    model: Path,
    job: Path,
    target: Path,
    modules: int,
    python: str,
    logs: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Run the converter to its end, resuming ``job`` if that can be.

    ``arguments`` are its options beside folders; ``target`` the folder it is to make; ``modules``
    how many it goes through. Raises ProcessFailed if it ended badly or, whatever it says, without
    the result; OutOfMemory for the GPU's memory.
    """
    again = resumable(job, model, target)
    if not again:
        shutil.rmtree(job, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)  # it is written from the job's files
    job.mkdir(parents=True, exist_ok=True)
    words = [
        "-w",
        str(job),
        "-i",
        str(model),
        "-o",
        str(target),
        # again too: a job that is resumed without its codebook goes on with another
        *arguments,
        *(["-r"] if again else []),
    ]
    done: set[str] = set()

    def heard(line: str) -> None:
        found = DONE.search(line)
        if found:
            done.add(found[1])
            progress(min(len(done), modules), modules)

    start(
        "convert_model",
        words,
        python=python,
        logs=logs,
        heard=heard,
        memory="close what else uses the GPU, take shorter samples (calibration_length), or a GPU"
        " with more memory",
    )
    if not finished(target):
        raise exllama.unfinished("exllamav3's converter", logs)


def start(
    program: str,
    arguments: Sequence[str],
    *,
    python: str,
    logs: Path,
    heard: Callable[[str], None] | None = None,
    memory: str,
) -> None:
    """Run one of exllamav3's programs to its end; ``heard`` gets its lines, ``memory`` is what to
    do when the GPU's is not enough. Raises ProcessFailed; OutOfMemory for the GPU's memory.
    """
    called = "converter" if program == "convert_model" else program
    run = [python or sys.executable, "-m", "autoquant.backends.exllamav3.run", str(os.getpid())]
    exllama.start(
        f"exllamav3's {called}",
        [*run, program, *arguments],
        logs=logs,
        variables=EXLLAMAV3.variables,
        heard=heard,
        memory=memory,
    )


def tidy(folder: Path, model: Path, text: str) -> None:
    """One clean model folder: the tokenizer as it is in the source, and no path of this machine in
    the config.
    """
    carry(model, folder)
    for name in ("config.json", LAST):
        path = folder / name
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        block = config["quantization_config"] if name == "config.json" else config
        block.setdefault("calibration", {})["dataset"] = text
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    mode = (folder / "config.json").stat().st_mode & 0o777
    for name in listed(folder):  # the safetensors library writes for the owner only
        (folder / name).chmod(mode)

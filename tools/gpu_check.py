"""Everything that has been proved on a CPU only, tried on an NVIDIA GPU: `make gpu-check`.

usage: python tools/gpu_check.py [--stages exl2,gptq] [--only WORDS] [--out DIR] [--rehearse]

Needs Python 3.11 or newer with torch and transformers; what else is missing is taken from a folder
of wheels (`--wheels`, see tools/gpu_pack.sh), so that no network is needed. Each stage runs in a
process of its own with a time limit and prints a table line for each check; what fails does not
stop the rest. `--rehearse` runs on a CPU what can be run there; what cannot is reported as not
rehearsed, never as passed. Exit status 0: nothing failed; 1: something did; 2: it cannot start.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu import children, extension, machine, results
from gpu.results import FAILED, NOT_REHEARSED, PASSED, Row, Stage

REFERENCE = machine.TOOLS / "gpu" / "reference.json"
SLOWER = 6  # how many times a stage's limit a rehearsal may take
LOG = 400_000  # bytes of a stage's log that are kept


@dataclass(frozen=True)
class Entry:
    """A stage: the function that does its checks, what it is about, its limit in seconds."""

    target: str
    about: str
    limit: int


STAGES: dict[str, Entry] = {
    "exl2": Entry("gpu.exl2:run", "EXL2 by the real converter and its kernels", 380),
    "exl3": Entry("gpu.exl3:run", "EXL3 by the real converter and its kernels", 560),
    "gptq": Entry("gpu.gptq:run", "GPTQ and AWQ by GPTQModel, AutoRound, the kernels", 395),
    "plain": Entry("gpu.plain:run", "HQQ, NF4, FP4, LLM.int8(), INT8 and FP8 W8A8", 300),
    "evaluation": Entry("gpu.evaluation:run", "measuring on CUDA beside the CPU", 180),
    "blocks": Entry("gpu.blocks:run", "8 billion weights block by block", 300),
}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="some of: %(default)s")
    parser.add_argument("--only", default="", help="checks with one of these in their names: A,B")
    parser.add_argument("--out", type=Path, default=Path("gpu-output"), help="for results")
    parser.add_argument("--work", type=Path, help="for models; default: a temporary folder")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to take packages from")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, what can be run there")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="stages at a time")
    parser.add_argument("--deadline", type=int, default=3600, help="seconds for all")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="a CPU's figures")
    parser.add_argument("--keep-reference", action="store_true", help="write them, from this run")
    parser.add_argument("--list", action="store_true", help="list the stages and stop")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "TARGET"), help=argparse.SUPPRESS)
    parser.add_argument("--cuda", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--call", nargs=2, metavar=("TARGET", "ANSWER"), help=argparse.SUPPRESS)
    return parser.parse_args(given)


def _function(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def serve(target: str, answer: Path) -> None:
    """Call a function with the arguments on standard input, and write what it returns."""
    made = _function(target)(**json.loads(sys.stdin.read() or "{}"))
    answer.write_text(json.dumps(made), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # libraries' destructors have crashed after the work was done


def figures(path: Path) -> dict[str, Any]:
    """The reference figures of a file; none if there is none."""
    if not path.is_file():
        return {}
    return dict(json.loads(path.read_text(encoding="utf-8"))["figures"])


def one(name: str, target: str, options: argparse.Namespace) -> None:
    """A stage's own process."""
    stage = Stage(
        name,
        options.out,
        options.work,
        options.rehearse,
        options.cuda,
        figures(options.reference),
        tuple(word for word in options.only.split(",") if word),
    )
    stage.save()
    _function(target)(stage)
    stage.save()


def run_stage(
    name: str,
    entry: Entry,
    options: argparse.Namespace,
    env: Mapping[str, str],
    limit: float,
    *,
    cuda: bool,
) -> tuple[list[Row], dict[str, Any]]:
    """Run one stage in its process; its rows, with one more if it did not come to its end."""
    work = options.work / name
    work.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--one",
        name,
        entry.target,
        "--out",
        str(options.work),
        "--work",
        str(work),
        "--reference",
        str(options.reference),
        "--only",
        options.only,
        *(["--rehearse"] if options.rehearse else []),
        *(["--cuda"] if cuda else []),
    ]
    begin, said = time.monotonic(), ""
    log = options.work / f"{name}.log"
    with open(log, "wb") as sink:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stderr=sink,
            env={**os.environ, **env},
            start_new_session=True,
        )
        try:
            status = child.wait(max(1.0, limit))
            if status != 0:
                said = f"the stage ended with status {status}: {children.tail(log)}"
        except subprocess.TimeoutExpired:
            said = f"cut off after {limit:.0f} s"
        finally:
            if child.poll() is None:
                children.end(child)
    rows, kept = results.read(options.work / f"{name}.json")
    if not said and not rows:
        called = f" called {options.only!r}" if options.only else ""
        said = f"the stage did no check{called}"
    if said:
        rows.append(Row(name, "the stage's end", FAILED, time.monotonic() - begin, 0, 0, said, ""))
        print(results.line(rows[-1]), flush=True)
    return rows, kept


def run_stages(
    stages: Mapping[str, Entry], options: argparse.Namespace, env: dict[str, str], *, cuda: bool
) -> tuple[list[Row], dict[str, Any]]:
    """Run stages, ``at_once`` of them at a time; extensions are compiled meanwhile."""
    until = options.begin + options.deadline
    builds = extension.start(stages, options.work, env) if cuda else {}

    def work(name: str) -> tuple[list[Row], dict[str, Any]]:
        more = {}
        library = {"exl2": "exllamav2", "exl3": "exllamav3"}.get(name, "")
        if library and name in builds:
            build = builds[name][library]
            failed = build.wait(until - time.monotonic())
            more = {
                "GPU_CHECK_EXTENSION_FAILED": failed,
                "GPU_CHECK_EXTENSION_SECONDS": f"{build.seconds:.0f}",
            }
        slower = SLOWER if options.rehearse else 1
        limit = min(stages[name].limit * slower, until - time.monotonic())
        if limit < 5:
            said = f"no time left of {options.deadline} s"
            row = Row(name, "the stage's start", FAILED, 0, 0, 0, said, "")
            print(results.line(row), flush=True)
            return [row], {}
        return run_stage(name, stages[name], options, {**env, **more}, limit, cuda=cuda)

    # one at a time, those that wait for a compiler go last
    order = sorted(stages, key=lambda name: options.at_once == 1 and name in builds)
    try:
        with ThreadPoolExecutor(max_workers=options.at_once) as pool:
            made = dict(zip(order, pool.map(work, order), strict=True))
        if cuda:
            extension.bring_back(options.work, options.out)
    finally:
        for build in (one for some in builds.values() for one in some.values()):
            build.close()
    rows = [row for name in stages for row in made[name][0]]
    return rows, {key: value for name in stages for key, value in made[name][1].items()}


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Variables for all that is started: where packages are found, and that there is no network.

    Where wheels are given, an address that refuses at once stands for a network: GPTQModel fetches
    CUTLASS for one of its kernels, and a machine without network may let that wait.
    """
    site, more = None, {}
    if options.wheels is not None:
        site = options.work / "site"
        machine.install(options.wheels, site)
        extension.unpack(options.wheels, site)
        more = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    env = {
        "PYTHONPATH": machine.search_path(machine.ROOT, site),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "AUTOQUANT_CACHE": str(options.work / "cache"),
        **more,
    }
    beside = str(Path(sys.executable).parent)  # ninja is there, if it is a package of this Python
    env["PATH"] = os.pathsep.join(filter(None, [beside, os.environ.get("PATH")]))
    probe = subprocess.run(
        [sys.executable, "-c", "import pcre"],
        capture_output=True,
        check=False,
        env={**os.environ, **env},
    )
    if probe.returncode != 0:
        env["PYTHONPATH"] = machine.search_path(machine.ROOT, site, machine.STAND_INS)
        env["GPU_CHECK_STAND_IN"] = "pcre, by Python's re"
    return env


def write(
    options: argparse.Namespace, rows: list[Row], kept: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write what was seen: JSON, a Markdown table, the ends of the stages' logs."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made = {
        "program": "tools/gpu_check.py",
        "rehearsal": options.rehearse,
        "date": now,
        "facts": facts,
        "rows": [asdict(row) for row in rows],
        "figures": kept,
    }
    text = json.dumps(made, indent=1) + "\n"
    (options.out / "gpu_check.json").write_text(text, encoding="utf-8")
    (options.out / "gpu_check.md").write_text(results.markdown(rows), encoding="utf-8")
    with open(options.out / "gpu_check.log", "wb") as sink:
        for log in sorted(options.work.glob("*.log")):
            sink.write(f"===== {log.name}\n".encode() + log.read_bytes()[-LOG:])
    if options.keep_reference:
        given = {
            "program": "tools/gpu_check.py --rehearse --keep-reference",
            "date": now,
            "versions": facts["versions"],
            "commit": facts.get("commit", ""),
            "figures": {**figures(options.reference), **kept},
        }
        text = json.dumps(given, indent=1, sort_keys=True) + "\n"
        options.reference.write_text(text, encoding="utf-8")


def main(given: list[str] | None = None, stages: Mapping[str, Entry] = STAGES) -> int:
    """Run what the command line asks for; the exit status."""
    options = arguments(given)
    options.begin = time.monotonic()
    if options.list:
        for name, entry in stages.items():
            print(f"{name:12}{entry.about} (at most {entry.limit} s)")
        return 0
    wanted = [name for name in options.stages.split(",") if name]
    unknown = [name for name in wanted if name not in stages]
    if unknown or not wanted:
        print(f"no stage is called {', '.join(unknown)!r}; there are: {', '.join(stages)}")
        return 2
    if options.keep_reference and not options.rehearse:
        print("--keep-reference: the reference is a CPU's; it goes with --rehearse")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    temporary = options.work is None
    options.work = Path(tempfile.mkdtemp(prefix="gpu-check-")) if temporary else options.work
    options.out, options.work = options.out.resolve(), options.work.resolve()
    options.reference = options.reference.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        return _run({name: stages[name] for name in stages if name in wanted}, options)
    finally:
        if temporary:
            shutil.rmtree(options.work, ignore_errors=True)


def _run(stages: Mapping[str, Entry], options: argparse.Namespace) -> int:
    try:
        env = environment(options)
        facts = machine.call("gpu.machine:facts", limit=120, env=env)
        facts["lacking"] = machine.call("gpu.internals:lacking", limit=120, env=env)
    except (RuntimeError, TimeoutError) as error:
        print(f"cannot start: {error}")
        return 2
    if "GPU_CHECK_STAND_IN" in env:
        facts["stand-in"] = env["GPU_CHECK_STAND_IN"]
    cuda = "card" in facts and not options.rehearse
    if not cuda and not options.rehearse:
        print("torch finds no CUDA GPU here; --rehearse runs on the CPU what can be run there")
        return 2
    if cuda:
        env |= extension.variables(options.work, facts)
    else:
        env["CUDA_VISIBLE_DEVICES"] = ""
    print(
        f"{facts.get('card', 'no GPU: a rehearsal')}; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    )
    if facts["lacking"]:
        print(f"not installed here, to be fetched: what {', '.join(facts['lacking'])} needs")
    print(results.header(), flush=True)
    rows, kept = run_stages(stages, options, env, cuda=cuda)
    write(options, rows, kept, facts)
    count = {
        kind: sum(row.result == kind for row in rows) for kind in (PASSED, FAILED, NOT_REHEARSED)
    }
    print(
        ", ".join(f"{number} {kind}" for kind, number in count.items() if number)
        + f"; results in {options.out}"
    )
    return 1 if count[FAILED] else 0


if __name__ == "__main__":
    asked = arguments()
    if asked.call:
        serve(asked.call[0], Path(asked.call[1]))
    elif asked.one:
        one(asked.one[0], asked.one[1], asked)
    else:
        sys.exit(main())

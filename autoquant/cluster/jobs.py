"""A batch: models and methods as jobs, each a run with a folder of its own. Read from a TOML file
or a list, and looked at as a whole before anything is resolved.

    out = "batch-output"               # default: beside the file, named after it

    [defaults]                         # options of every job
    eval_chunks = 40
    [defaults.gguf]                    # options of every GGUF job
    imatrix = "builtin"

    [ray]                              # what a job takes of a node, where ours does not suit
    cpus = 8

    [[jobs]]                           # each model by each method
    models = ["owner/one", "owner/two"]
    methods = ["gguf", "gptq"]
    upload = "you/{model}-{METHOD}"
    gptq = { bits = 8 }                # options of one method
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoquant.cluster.needs import read as read_needs
from autoquant.cluster.splitting import shares
from autoquant.core.errors import InputError
from autoquant.core.files import key_of
from autoquant.core.names import plain
from autoquant.core.options import MethodOptions, UploadOptions, build
from autoquant.core.version import __version__
from autoquant.methods import METHODS

LISTS = {"model": "models", "method": "methods"}
NAME = re.compile(r"[\w-][\w.-]*")
PLACES = ("{model}", "{method}", "{METHOD}")
UPLOAD = tuple(UploadOptions.model_fields)
FIELDS = (*LISTS, *LISTS.values(), "name", "split")


@dataclass(frozen=True)
class Job:
    """One model by one method. ``name`` is its folder in the batch's, ``options`` are checked.
    ``part``: of a job that was split, which one.
    """

    name: str
    model: str
    method: str
    options: MethodOptions
    part: int = 0

    @property
    def values(self) -> dict[str, Any]:
        """The options that were given, as JSON has them."""
        return self.options.model_dump(mode="json", exclude_unset=True)

    @property
    def key(self) -> str:
        """A hash of all that its result depends on, but the model's contents."""
        return key_of(__version__, self.model, self.method, self.values)

    def to_json(self) -> dict[str, Any]:
        """What another process makes it again of (:func:`from_json`)."""
        return {
            "name": self.name,
            "model": self.model,
            "method": self.method,
            "values": self.values,
        }


def from_json(data: Mapping[str, Any]) -> Job:
    """The inverse of :meth:`Job.to_json`."""
    options = build(METHODS[data["method"]].Options, data["values"])
    return Job(data["name"], data["model"], data["method"], options)


@dataclass(frozen=True)
class Batch:
    """Jobs, and the folder that has theirs. ``needs``: what a job takes of a cluster's node:
    cpus, gpus (a fraction if jobs share one) of those that use one, memory in bytes.
    """

    folder: Path
    jobs: tuple[Job, ...]
    needs: Mapping[str, float] = field(default_factory=dict)

    def folder_of(self, job: Job) -> Path:
        """Where a job's run writes."""
        return self.folder / job.name


def read(jobs: str | Path | Sequence[Mapping[str, Any]], out: str | Path | None = None) -> Batch:
    """A batch from a TOML file, or from a list of what stands in its ``[[jobs]]``.

    A model that is a relative path is one from the batch file's folder, as is a relative ``out``
    that stands in it. Raises InputError that lists everything that is wrong with it.
    """
    if isinstance(jobs, (str, Path)):
        return _from_file(Path(jobs).expanduser(), out)
    folder = Path(out if out is not None else "autoquant-batch").expanduser().resolve()
    return _batch({"jobs": list(jobs)}, folder, Path.cwd())


def _from_file(path: Path, out: str | Path | None) -> Batch:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); name a batch file (docs/scale.md shows one)"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no TOML file: {error}. Texts stand in quotes, lists in brackets;"
            " docs/scale.md shows one"
        ) from None
    beside = path.resolve().parent
    named = data.get("out", f"{path.stem}-output")
    if not isinstance(named, str) or not named:
        raise InputError(f"{path.name}: out is {named!r}; write the name of a folder")
    folder = beside / Path(named).expanduser() if out is None else Path(out).expanduser().resolve()
    return _batch(data, folder, beside, path.name)


def _batch(data: Mapping[str, Any], folder: Path, beside: Path, title: str = "jobs") -> Batch:
    wrong: list[str] = []
    if unknown := sorted(set(data) - {"out", "defaults", "ray", "jobs"}):
        wrong.append(
            f"{unknown[0]!r} is not known here; there are out, [defaults], [ray] and [[jobs]]"
        )
    needs = read_needs(data.get("ray", {}), wrong)
    defaults, entries = data.get("defaults", {}), data.get("jobs", [])
    if not isinstance(defaults, Mapping):
        wrong.append("defaults: write [defaults] with options below it")
        defaults = {}
    common, of_method = _parted(defaults, "defaults", wrong)
    if unwanted := sorted(set(common) & set(FIELDS)):
        wrong.append(f"defaults.{unwanted[0]}: only options; models and methods stand in [[jobs]]")
    common = {name: value for name, value in common.items() if name not in FIELDS}
    if not isinstance(entries, list) or not entries:
        wrong.append("there is no job: write [[jobs]] with models and methods below it")
        entries = []
    found: list[tuple[str, Job]] = []
    for number, entry in enumerate(entries, 1):
        where = f"job {number}"
        if not isinstance(entry, Mapping):
            wrong.append(f"{where}: {entry!r} is no table of model, method and options")
            continue
        own, special = _parted(entry, where, wrong)
        models, methods = _list(own, "model", where, wrong), _list(own, "method", where, wrong)
        given = {name: value for name, value in own.items() if name not in FIELDS}
        for method in methods:
            if method not in METHODS:
                wrong.append(
                    f"{where}: no method is called {method!r}; there are: {', '.join(METHODS)}"
                )
        for other in sorted(set(special) - set(methods)):
            wrong.append(f"{where}: has options of {other}, which is not among its methods")
        for model in models:
            for method in (one for one in methods if one in METHODS):
                # what stands nearer to the job counts
                values = {**_known(common, method), **of_method.get(method, {}), **given}
                values.update(special.get(method, {}))
                try:
                    job = _job(str(own.get("name", "")), _place(model, beside), method, values)
                    found += [(where, part) for part in _parts(job, own.get("split"))]
                except InputError as error:
                    wrong.append(f"{where}, {method}: {error}")
        unused = [one for one in common if not any(_known({one: 0}, name) for name in METHODS)]
        if number == 1 and unused:
            wrong.append(f"defaults: no method has an option {unused[0]!r}")
    jobs = _named(found, wrong)
    if wrong:
        lines = "".join(f"\n  {line}" for line in dict.fromkeys(wrong))
        raise InputError(f"{title}: nothing was run; to be put right first:{lines}")
    return Batch(folder, tuple(jobs), needs)


def _known(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Those of all jobs' options that a method has."""
    fields = METHODS[method].Options.model_fields
    return {name: value for name, value in values.items() if name in fields}


def _parted(
    entry: Mapping[str, Any], where: str, wrong: list[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What stands in a table itself, and the tables in it that are named after methods."""
    special = {}
    for name in METHODS:
        if name in entry:
            if isinstance(entry[name], Mapping):
                special[name] = dict(entry[name])
            else:
                wrong.append(f"{where}: {name} is {entry[name]!r}; write {name} = {{ option = … }}")
    return {key: value for key, value in entry.items() if key not in METHODS}, special


def _list(entry: Mapping[str, Any], one: str, where: str, wrong: list[str]) -> list[str]:
    """The models or methods of an entry, which may name one or several."""
    several = LISTS[one]
    if (one in entry) == (several in entry):
        said = "both" if one in entry else "neither"
        wrong.append(f"{where}: has {said} of {one} and {several}; write one of them")
        return []
    value = entry.get(several, entry.get(one))
    values = [value] if isinstance(value, (str, Path)) else value
    texts = isinstance(values, (list, tuple)) and all(isinstance(v, (str, Path)) for v in values)
    if not texts or not values:
        wrong.append(f"{where}: {several} is {value!r}; write names in quotes, in brackets")
        return []
    return [str(v) for v in values]


def _place(model: str, beside: Path) -> str:
    """A model as any process here finds it: a folder or file by its whole path."""
    path = Path(model).expanduser()
    there = beside / path
    return os.path.abspath(there) if there.exists() else model


def _job(name: str, model: str, method: str, values: Mapping[str, Any]) -> Job:
    own = METHODS[method]
    short = short_name(model)
    first = build(own.Options, {k: v for k, v in values.items() if k not in UPLOAD})
    suffix = own.folder_suffix(first).removesuffix("-auto")  # known when the model is
    filled = {
        key: _filled(values[key], short, method, suffix)
        for key in ("upload", "base_model")
        if isinstance(values.get(key), str)
    }
    options = build(own.Options, {**values, **filled})
    called = _filled(name, short, method, suffix) or f"{short}-{suffix}"
    if not NAME.fullmatch(called):
        raise InputError(
            f"name: {called!r} is not a valid folder name; take letters, digits, - _ and ."
        )
    return Job(called, model, method, options)


def _parts(job: Job, split: Any) -> list[Job]:
    """A job, or the several that it is split into."""
    if split is None:
        return [job]
    dealt = shares(job.method, job.options, split)
    return [
        Job(
            f"{job.name}.{number}of{len(dealt)}",
            job.model,
            job.method,
            build(METHODS[job.method].Options, {**job.values, "types": types}),
            part=number,
        )
        for number, types in enumerate(dealt, 1)
    ]


def short_name(model: str) -> str:
    """A model's own name, without owner, revision and file, as far as its address shows it."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    return plain(re.sub(r"[@:].*$|\.gguf$", "", last))


def _filled(text: str, model: str, method: str, suffix: str) -> str:
    for place, value in zip(PLACES, (model, method, suffix), strict=True):
        text = text.replace(place, value)
    return text


def _named(found: Iterable[tuple[str, Job]], wrong: list[str]) -> Iterator[Job]:
    """The jobs, if no two are the same, write into one folder, or upload to one repository."""
    seen: dict[str, tuple[str, Job]] = {}
    targets: dict[str, tuple[str, Job]] = {}
    keys: dict[str, str] = {}
    jobs = list(found)
    for where, job in jobs:
        if job.key in keys:
            wrong.append(f"{where}: {job.model} by {job.method} is in {keys[job.key]} already")
            continue
        keys[job.key] = where
        if other := seen.get(job.name.casefold()):
            wrong.append(
                f"{where}: {job.model} by {job.method} would be written where {other[1].model} of"
                f" {other[0]} is ({job.name}); give one a name, e.g."
                f' name = "{{model}}-{{METHOD}}-2"'
            )
        seen.setdefault(job.name.casefold(), (where, job))
        # the other parts of a split job have repositories of their own, by their types
        target = job.options.upload if job.part < 2 else ""
        if target and (other := targets.get(target.casefold())):
            wrong.append(
                f"{where}: {job.name} would be uploaded to {target}, as is {other[1].name} of"
                f' {other[0]}; write upload = "{target.partition("/")[0]}/{{model}}-{{METHOD}}"'
            )
        if target:
            targets.setdefault(target.casefold(), (where, job))
    return (job for _, job in jobs)

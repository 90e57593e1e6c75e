"""measurement.json: what each way to quantize each layer costs in accuracy. It takes most of the
time, serves every bitrate, and is kept with a record of its model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.core import licenses
from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError
from autoquant.core.files import key_of, write_atomically
from autoquant.core.records import Snapshot, Source
from autoquant.formats.checkpoint import BESIDE

log = logging.getLogger(__name__)
NAME = "measurement.json"
# our record's place in the file; exllamav2 reads the two entries beside it and nothing else
RECORD = "autoquant"


def weights_sha256(snapshot: Snapshot) -> str:
    """A hash of the weights alone: a measurement is still good when only the model's card or config
    has been edited.
    """
    return hashlib.sha256(
        json.dumps(
            {name: snapshot.files[name] for name in sorted(snapshot.source.weights)}
        ).encode()
    ).hexdigest()


def content_sha256(data: Mapping[str, Any]) -> str:
    """A hash of what was measured, without the record."""
    return hashlib.sha256(
        json.dumps(
            {name: value for name, value in data.items() if name != RECORD}, sort_keys=True
        ).encode()
    ).hexdigest()


def kept(snapshot: Snapshot, version: str, *calibration: Any) -> Path:
    """Where the measurement of a model with a calibration is kept, in the cache folder."""
    # a repaired config or tokenizer asks for a new one
    beside = {
        name: snapshot.files[name]
        for name in sorted(snapshot.files)
        if name in ("config.json", *BESIDE)
    }
    return (
        cache_folder()
        / "measurements"
        / f"{key_of(weights_sha256(snapshot), beside, version, *calibration)}.json"
    )


def write(path: Path, data: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write a measurement with its record, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: value for name, value in data.items() if name != RECORD}
    write_atomically(
        path,
        json.dumps(
            {RECORD: {**record, "measurement sha256": content_sha256(content)}, **content}, indent=1
        )
        + "\n",
    )


def read(path: Path, said: str) -> dict[str, Any]:
    """A measurement file. Raises InputError naming it (``said``) if it is none, or has changed
    since its record was written.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data["measurement"]
        good = (
            isinstance(entries, dict)
            and entries
            and all(
                isinstance(one["total_bits"], (int, float))
                and isinstance(one["accuracy"], (int, float))
                for ways in entries.values()
                for one in _ways(ways)
            )
            and isinstance(data["last_module_idx"], int)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"measurement: {said} is no measurement of exllamav2 ({type(error).__name__}: {error})"
        ) from None
    if not good:
        raise InputError(f"measurement: {said} is no measurement of exllamav2")
    record = data.get(RECORD)
    if isinstance(record, dict) and record.get("measurement sha256") != content_sha256(data):
        raise InputError(
            f"measurement: {said} has been changed since it was made; measure again (leave out"
            " measurement)"
        )
    return dict(data)


def _ways(entry: Any) -> list[Any]:
    """The ways to quantize one module: a list, two for a decoder that runs attention and MLP side
    by side, none for the head.
    """
    return [*entry["attn"], *entry["mlp"]] if isinstance(entry, dict) else list(entry or ())


def modules(data: Mapping[str, Any], blocks: int) -> list[list[Any]]:
    """The ways to quantize each block's attention and MLP, in order. Raises InputError if there are
    none of one.
    """
    entries = data["measurement"]
    content: list[list[Any]] = []
    for i in range(blocks):
        both = entries.get(f"model.layers.{i}.parallel_decoder")
        pair = (
            (both["attn"], both["mlp"])
            if both
            else (entries.get(f"model.layers.{i}.self_attn"), entries.get(f"model.layers.{i}.mlp"))
        )
        if not all(pair):
            raise InputError(
                f"measurement: it is incomplete, model.layers.{i} has no"
                f" {'MLP' if pair[0] else 'attention'}; measure again (leave out measurement)"
            )
        content += pair
    return content


def bounds(data: Mapping[str, Any], blocks: int, weights: int) -> tuple[float, float]:
    """The fewest and the most bits per weight that a measurement offers, over the blocks'
    ``weights``.
    """
    ways = modules(data, blocks)
    return tuple(
        sum(pick(float(one["total_bits"]) for one in way) for way in ways) / weights
        for pick in (min, max)
    )  # type: ignore[return-value]


def step(data: Mapping[str, Any], blocks: int, weights: int) -> float:
    """The largest step, in bits per weight over all ``weights``, from one way to quantize a module
    to the next: nearer than that a target cannot be met in a model of few blocks.
    """
    bits = [sorted(float(one["total_bits"]) for one in way) for way in modules(data, blocks)]
    return (
        max(
            (after - before for way in bits for before, after in itertools.pairwise(way)),
            default=0.0,
        )
        / weights
    )


def refuse_foreign(
    data: Mapping[str, Any], snapshot: Snapshot, said: str, blocks: Mapping[str, int], weights: int
) -> None:
    """Refuse a given measurement that is of another model.

    One of ours carries its model's hash; of another's, which does not, layers and sizes are
    compared. ``blocks`` are the weights of each block by number.
    """
    record = data.get(RECORD)
    if isinstance(record, dict):
        if record.get("weights sha256") != weights_sha256(snapshot):
            commit = f"@{str(record['commit'])[:10]}" if record.get("commit") else ""
            raise InputError(
                f"measurement: {said} was made of {record.get('model')}{commit}, and"
                f" {snapshot.source.id} has other weights; measure again (leave out measurement)"
            )
        return
    names = {name.split(".")[2] for name in data["measurement"] if name.startswith("model.layers.")}
    if names != set(blocks):
        raise InputError(
            f"measurement: {said} is of a model with {len(names)} blocks, and {snapshot.source.id}"
            f" has {len(blocks)}"
        )
    least, most = bounds(data, len(blocks), weights)
    # exllamav2 offers 2 to 8 bits; scales and permutations come on top
    if not (1.8 < least < 3.5 and 6 < most < 9):
        raise InputError(
            f"measurement: {said} is of a model of other sizes than {snapshot.source.id} (it would"
            f" offer {least:.2f} to {most:.2f} bits per weight)"
        )
    log.warning(
        "measurement: %s does not say of which model it is; its layers and sizes are those of %s",
        said,
        snapshot.source.id,
    )


def given(name: str, source: Source) -> tuple[Path, str]:
    """The file that the option names, and what to call it: a file here, or ``measurement.json`` of
    a repository on the Hub (``owner/name[@revision]``), which is fetched.

    Raises InputError if there is none.
    """
    path = Path(name).expanduser()
    if path.is_dir() and (path / NAME).is_file():
        path /= NAME
    if path.is_file():
        return path, path.name
    id, _, revision = name.removeprefix("https://huggingface.co/").partition("@")
    if name.endswith(".json") or path.exists() or not licenses.is_repo_id(id):
        raise InputError(
            f"measurement: no such file: {name}; give a {NAME}, or a repository on the Hub that has"
            " one (owner/name), or leave it out to measure"
        )
    from autoquant.hub import download

    return download.one_file(id, revision or None, NAME, "measurement"), f"{NAME} of {id}"


def given_sha256(name: str, source: Source) -> str:
    """The hash of a given measurement's content; empty if none is given."""
    if not name:
        return ""
    return content_sha256(json.loads(given(name, source)[0].read_text(encoding="utf-8")))

"""Finished runs: written down with card and plot, loaded again, uploaded."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.core import bundled, files, journal
from autoquant.core.errors import InputError
from autoquant.core.journal import RunFolder
from autoquant.core.options import MethodOptions, UploadOptions, build
from autoquant.core.records import Receipt, RunRecord, Source
from autoquant.methods import METHODS

log = logging.getLogger(__name__)


def finish(result: RunRecord, run: RunFolder) -> RunRecord:
    """Write card and plot and note the result in the journal, so that it can be loaded and uploaded
    later.
    """
    from autoquant.display.plot import PLOT
    from autoquant.publish import card  # imports huggingface_hub, a quarter of a second

    readme = result.folder / "README.md"
    before = run.steps.get("result", {}).get("facts", {})
    edited = readme.is_file() and before.get("card sha256") not in (None, files.sha256_of(readme))
    written = json.loads(json.dumps(result.to_json()))  # as it comes back from the journal
    same = edited and all(before[name] == written[name] for name in ("artifacts", "reference"))
    if same:
        log.info("README.md has been edited by hand: it is kept")
    else:
        if edited:
            kept = next(
                path
                for i in range(1, 10_000)
                if not (
                    path := result.folder / f"README.edited{'' if i == 1 else f'-{i}'}.md"
                ).exists()
            )
            os.replace(readme, kept)
            log.warning(
                "README.md had been edited by hand: a new one was written, and yours is %s now",
                kept.name,
            )
        card.write(result)
    if (result.folder / PLOT).is_file() and PLOT not in result.extras:
        result = dataclasses.replace(result, extras=(*result.extras, PLOT))
    run.record(
        "result",
        "",
        [],
        {
            **result.to_json(),
            "card sha256": before["card sha256"] if same else files.sha256_of(readme),
        },
    )
    return result


def measured_on(options: MethodOptions, source: Source) -> str:
    """The evaluation text in words, for the card."""
    text = bundled.suited(options.eval_text, source.folder)
    if text == bundled.BUILTIN:
        return f"{bundled.IN_WORDS}, held out from the built-in calibration text"
    if text == bundled.PROSE:
        return "Jane Austen's Persuasion, held out from the built-in calibration text"
    if text in bundled.KINDS:
        return f"{text}, held out from the built-in calibration text"
    return Path(text).name


def load(folder: str | Path) -> RunRecord:
    """The result of an earlier run, from its folder's journal. Raises InputError if the folder
    holds no finished run.
    """
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise InputError(f"no such folder: {folder}; give the folder of a finished run")
    steps = journal.read(path)[1]
    if "result" not in steps:
        raise InputError(
            f"{path} holds no finished run of"
            f" AutoQuant{'; run the same quantize command again to finish it' if steps else ''}"
        )
    receipts = tuple(
        Receipt.from_json(record["facts"]["receipt"])
        for name, record in steps.items()
        if name.startswith("upload ") and "receipt" in record["facts"]
    )
    return RunRecord.from_json(
        path,
        {name: value for name, value in steps["result"]["facts"].items() if name != "card sha256"},
        receipts,
    )


def upload_folder(folder: str | Path, values: Mapping[str, Any], *, dry_run: bool = False) -> Any:
    """Upload a finished run's folder: a tuple of Receipts, or with ``dry_run`` an UploadPlan, and
    nothing is sent or written.
    """
    from autoquant.publish import allowed, card, send, upload

    # a wrong one is told before the folder is looked at
    build(UploadOptions, values)
    result = load(folder)
    usual = METHODS[result.method].Options.model_fields["layout"].default
    options = build(UploadOptions, {"layout": usual, **values})
    identity, steps = journal.read(result.folder)
    client = allowed.check(
        options,
        result.source,
        [artifact.type for artifact in result.offered],
        list(steps),
        base_model=result.base_model,
        quiet=dry_run,
    )
    named = options.base_model and options.base_model != result.base_model
    if named:
        result = dataclasses.replace(result, base_model=options.base_model)
    if dry_run:
        readme = result.folder / "README.md"
        text = (
            card.with_base_model(readme.read_text(encoding="utf-8"), options.base_model)
            if named and readme.is_file()
            else None
        )
        return upload.plan(client, result, options, upload.journaled(steps), text)
    with RunFolder(
        result.folder,
        method=result.method,
        source_id=identity["source"],
        source_sha256=identity["source_sha256"],
    ) as run:
        if named:
            # it may have been edited by hand: only the name is changed
            readme = result.folder / "README.md"
            files.write_atomically(
                readme, card.with_base_model(readme.read_text(encoding="utf-8"), options.base_model)
            )
            run.record(
                "result",
                "",
                [],
                {
                    **result.to_json(),
                    "card sha256": run.steps["result"]["facts"].get("card sha256"),
                },
            )
        return send.upload(send.Sender(client), result, options, run)

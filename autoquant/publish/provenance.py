"""What is known of how files were made: the licence that they carry, and what the card says."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.core import licenses
from autoquant.core.options import MethodOptions, UploadOptions
from autoquant.core.records import Snapshot
from autoquant.methods.base import AnyMethod
from autoquant.runtime import environments


def carry_licence(snapshot: Snapshot, folder: Path) -> list[str]:
    """Copy the source's licence files beside the artifacts; their names."""
    if snapshot.source.gguf and snapshot.source.tag and snapshot.source.revision is None:
        return []  # a file that was named: what lies beside it is not known to be of it
    paths = (path for pattern in licenses.FILES for path in snapshot.folder.glob(pattern))
    names = sorted({path.name for path in paths if path.is_file()})
    for name in names:
        part = folder / f".{name}.part"
        shutil.copyfile(snapshot.folder / name, part)
        os.replace(part, folder / name)
    return names


def provenance_of(
    method: AnyMethod, snapshot: Snapshot, options: MethodOptions, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What the card says about how the files were made; nothing in it names this machine."""
    from autoquant.core.version import __version__

    known = {package: environments.version(package) for package in method.packages}
    versions = [f"{package} {version}" for package, version in known.items() if version]
    fields = type(options).model_fields
    changed = {
        name: value
        for name, value in options.model_dump().items()
        if value != fields[name].default and name not in UploadOptions.model_fields
    }
    shown = {
        # a file is named without the folders of this machine; else it is something on the Hub
        name: Path(value).name if _is_file(value) else value
        for name, value in changed.items()
    }
    system = f"Python {platform.python_version()} on {sys.platform}"
    revision = snapshot.source.revision
    alone = snapshot.folder == snapshot.source.adapter
    how = "adapter of" if alone else "merged into"
    return {
        "source": snapshot.source.id,
        "source sha256": snapshot.sha256,
        **({"source commit": revision} if revision else {}),
        **({"source stored as": stored} if (stored := snapshot.source.stored_as) else {}),
        **({how: adapted.id} if (adapted := snapshot.source.adapted) else {}),
        **facts,
        "options": shown,
        "versions": ", ".join([f"autoquant {__version__}", *versions, system]),
    }


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and Path(value).expanduser().exists()

"""Google Drive: FAKE_COLAB_DRIVE=refused raises as Colab does when its reader does not allow it."""

import os
from pathlib import Path


def mount(mountpoint: str) -> None:
    """Make the folder that the real one shows."""
    if os.environ.get("FAKE_COLAB_DRIVE") == "refused":
        raise ValueError("mount failed")
    (Path(mountpoint) / "MyDrive").mkdir(parents=True, exist_ok=True)

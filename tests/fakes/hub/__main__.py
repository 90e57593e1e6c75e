"""A loopback Hub to play with: ``python -m tests.fakes.hub PORT``."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

from tests.fakes.hub import TOKEN, Hub

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        running = Hub(Path(scratch), port=int(sys.argv[1]) if len(sys.argv) > 1 else 8800).start()
        print(f"HF_ENDPOINT={running.url} HF_TOKEN={TOKEN}", flush=True)
        threading.Event().wait()

"""What a job runs first, in whatever Python its image has: fetch the package's wheel, install it
with what it needs beside that Python's own packages, and hand over to it.

Sent as text with the job, so it uses the standard library alone. The specification is in the
variable AUTOQUANT_JOB, the token in the secret HF_TOKEN.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

# llama.cpp for any processor of the kind, should it have to be compiled (as the Makefile does)
CMAKE = "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"


class _DropToken(urllib.request.HTTPRedirectHandler):
    """Files come from other servers, which must not see the token."""

    def redirect_request(self, *given: Any) -> urllib.request.Request | None:
        """The request that follows, without it."""
        following = super().redirect_request(*given)
        if following is not None:
            following.remove_header("Authorization")
        return following


def fetch(address: str, sha256: str, path: Path) -> None:
    """Download a file that has this hash."""
    asked = urllib.request.Request(address)
    asked.add_unredirected_header("Authorization", f"Bearer {os.environ['HF_TOKEN']}")
    with urllib.request.build_opener(_DropToken()).open(asked, timeout=120) as answer:
        content = answer.read()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        sys.exit(f"autoquant: {path.name} has the sha256 {found} instead of {sha256}")
    path.write_bytes(content)


def environment(folder: Path) -> str:
    """Make an environment that also sees the packages of this Python; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True)
    below = [one for one in sys.path if Path(one).name in ("site-packages", "dist-packages")]
    (Path(site.stdout.strip()) / "below.pth").write_text("\n".join(below) + "\n")
    return str(python)


def install(python: str, wheel: Path, spec: dict[str, Any]) -> None:
    """Install the wheel, and with it what is not here yet."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--no-input", "--root-user-action=ignore"]
    # prebuilt: where such an index has nothing, or is out of reach, PyPI's does too (torch with
    # CUDA, llama.cpp to be compiled)
    for index, wanted in spec["prebuilt"]:
        sure = ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "30"]
        subprocess.run([*pip, *sure, "--index-url", index, wanted], check=False)
    # by itself: no index may have a say in which one it is
    exactly = ["--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    subprocess.run([*pip, *exactly], check=True)
    built = {"CMAKE_ARGS": CMAKE, **os.environ}
    needed = [f"{spec['package']}[{spec['extra']}]", *spec["pins"]]
    subprocess.run([*pip, *needed], check=True, env=built)


def main() -> None:
    """Prepare, and become the job."""
    spec = json.loads(os.environ["AUTOQUANT_JOB"])
    sys.stdout.write(f"autoquant: installing {spec['wheel']}\n")
    sys.stdout.flush()
    folder = Path.cwd() / "autoquant-job"
    folder.mkdir(exist_ok=True)
    wheel = folder / spec["wheel"].rpartition("/")[2]
    address = f"{spec['endpoint']}/datasets/{spec['repo']}/resolve/main/{spec['wheel']}"
    try:
        fetch(address, spec["sha256"], wheel)
        python = environment(folder / "environment")
        install(python, wheel, spec)
    except (OSError, subprocess.CalledProcessError) as error:
        status = getattr(error, "returncode", None)
        said = f"pip or venv ended with exit code {status}" if status is not None else str(error)
        sys.exit(f"autoquant: this package could not be installed: {said}")
    os.chdir(folder)
    os.execv(python, [python, "-m", "autoquant.cluster.hf_jobs.inside"])


if __name__ == "__main__":
    main()

"""Files that stand for a repository's weights: the head of each, followed by a hole."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.hub.client import Client, with_retries


def hollow(
    client: Client, repo: str, commit: str, name: str, size: int, path: Path, doing: str
) -> None:
    """A file of the right size that has the header of safetensors or GGUF and then a hole; of a
    pickle, only the hole.
    """
    head = b""
    if name.endswith(".gguf"):
        head = _gguf_head(client, repo, commit, name, size, doing)
    if name.endswith(".safetensors"):
        from huggingface_hub.errors import SafetensorsParsingError

        try:
            parsed = with_retries(
                lambda: client.api.parse_safetensors_file_metadata(repo, name, revision=commit),
                doing,
                client,
                repo,
            )
        except SafetensorsParsingError as error:
            raise InputError(
                f"{repo}: {name} has no valid safetensors header ({str(error).splitlines()[0]})"
            ) from None
        tensors = {
            tensor: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": list(t.data_offsets)}
            for tensor, t in parsed.tensors.items()
        }
        text = json.dumps(
            {**({"__metadata__": parsed.metadata} if parsed.metadata else {}), **tensors},
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        length = size - 8 - max((t.data_offsets[1] for t in parsed.tensors.values()), default=0)
        if length < len(text):
            raise InputError(
                f"{repo}: {name} is {size:,} bytes long, too short for the tensors in its header"
            )
        head = struct.pack("<Q", length) + text.ljust(length)
    with open(path, "wb") as out:
        out.write(head)
        out.truncate(size)


def _gguf_head(client: Client, repo: str, commit: str, name: str, size: int, doing: str) -> bytes:
    """The first bytes of a GGUF file, its head among them, by ranged requests."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._http import hf_raise_for_status

    url = hf_hub_url(repo, name, revision=commit, endpoint=client.endpoint)
    headers = client.api._build_hf_headers(token=client.secret)
    data = b""

    def more(end: int) -> bytes:
        wanted = end - len(data)
        span = {**headers, "Range": f"bytes={len(data)}-{end - 1}"}
        with get_session().stream("GET", url, headers=span, timeout=60) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            if data and response.status_code != 206:
                raise InputError(f"{repo}: the server gives no parts of files; {name} has no head")
            got = bytearray()
            for chunk in response.iter_bytes():
                got += chunk
                if len(got) >= wanted:  # a server that knows no ranges sends the whole file
                    break
        return bytes(got[:wanted])

    end = min(size, gguf_head.FIRST)
    while True:
        data += with_retries(lambda end=end: more(end), doing, client, repo)  # type: ignore[misc]
        try:
            gguf_head.parse(data)
        except gguf_head.Cut:
            if end >= min(size, gguf_head.MOST):
                raise InputError(f"{repo}: {name} ends within its own head") from None
            end = min(size, 2 * end)
        except ValueError as error:
            raise InputError(f"{repo}: {name} is no GGUF file: {error}") from None
        else:
            return data

"""A Hugging Face Hub on the loopback interface, for the real, unpatched huggingface_hub client
(HF_ENDPOINT).

Speaks what releases 1.27 and 2.4 of the client speak for model repositories: whoami, create,
delete, settings, preupload, LFS (basic and multipart), Xet (through hf_xet's own ``local://``
store), commit, branches, tags, tree, paths-info, refs, commits, resolve with HEAD, Range, ETag and
a redirect to another origin; the same for datasets, which are kept as ``datasets/owner/name``; and
jobs (:mod:`tests.fakes.hub.jobs`), which run as local processes. State is kept in ``root`` and in
this object, so that a server can be stopped and started again.

Tests steer it: :meth:`Hub.fail` injects faults, ``latency`` and ``bandwidth`` slow it down,
:meth:`Hub.on` calls back on a request, ``log`` has every request. ``python -m tests.fakes.hub
PORT`` runs one to play with.
"""

from __future__ import annotations

from tests.fakes.hub.connection import Fault, Request
from tests.fakes.hub.contents import Commit, File, Refused, Repo
from tests.fakes.hub.routes import Handler
from tests.fakes.hub.server import TOKEN, Hub

__all__ = ["TOKEN", "Commit", "Fault", "File", "Handler", "Hub", "Refused", "Repo", "Request"]

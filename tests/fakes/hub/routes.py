"""Which request of the Hub's API reaches which function."""

from __future__ import annotations

import re

from tests.fakes.hub.connection import Route
from tests.fakes.hub.jobs import Jobs
from tests.fakes.hub.reading import Reading
from tests.fakes.hub.writing import Writing

_ID, _REV = r"(?P<id>[^/]+/[^/]+)", r"(?P<rev>[^/]+)"
_MODEL = rf"/api/models/{_ID}"
_JOBS = r"/api/jobs/(?P<owner>[^/]+)"
_JOB = rf"{_JOBS}/(?P<job>[^/]+)"
FREE = (Writing.lfs_put, Reading.cdn, Jobs.logs)  # long transfers do not hold the lock
ROUTES: list[Route] = [
    (methods.split(), re.compile(pattern), function)
    for methods, pattern, function in (
        ("GET", r"/api/whoami-v2", Writing.whoami),
        ("POST", r"/api/repos/create", Writing.create),
        ("DELETE", r"/api/repos/delete", Writing.delete),
        ("POST", r"/api/validate-yaml", Writing.validate_yaml),
        ("PUT", rf"{_MODEL}/settings", Writing.settings),
        ("GET", _MODEL, Reading.info),
        ("GET", rf"{_MODEL}/revision/{_REV}", Reading.info),
        ("GET", rf"{_MODEL}/tree/{_REV}(?:/(?P<sub>.+))?", Reading.tree),
        ("POST", rf"{_MODEL}/paths-info/{_REV}", Reading.paths_info),
        ("GET", rf"{_MODEL}/refs", Reading.refs),
        ("GET", rf"{_MODEL}/commits/{_REV}", Reading.commits),
        ("GET", rf"{_MODEL}/auth-check(?P<write>/write)?", Reading.auth_check),
        ("POST DELETE", rf"{_MODEL}/branch/(?P<name>[^/]+)", Writing.branch),
        ("POST", rf"{_MODEL}/preupload/{_REV}", Writing.preupload),
        ("POST", rf"{_MODEL}/commit/{_REV}", Writing.commit),
        ("GET", rf"{_MODEL}/xet-(?P<kind>read|write)-token/{_REV}", Reading.xet_token),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", Writing.lfs_batch),
        ("PUT", r"/_lfs/(?P<oid>\w{64})(?:/part/(?P<part>\d+))?", Writing.lfs_put),
        ("POST", r"/_lfs/(?P<oid>\w{64})/complete", Writing.lfs_complete),
        ("POST", r"/_lfs/(?P<oid>\w{64})/verify", Writing.lfs_verify),
        ("GET", r"/api/jobs/hardware", Jobs.hardware),
        ("GET POST", _JOBS, Jobs.jobs),
        ("GET", _JOB, Jobs.job),
        ("GET", rf"{_JOB}/logs", Jobs.logs),
        ("POST", rf"{_JOB}/cancel", Jobs.cancel),
        ("GET HEAD", r"/_cdn/(?P<sha>\w{64})", Reading.cdn),
        ("GET HEAD", rf"/{_ID}/(?:resolve|raw)/{_REV}/(?P<path>.+)", Reading.resolve),
    )
]


class Handler(Reading, Writing, Jobs):
    """One connection, with every request that the loopback Hub answers."""

    routes = ROUTES
    unlocked = FREE

"""The order of tests on several workers: the longest first, so that none is left alone at the end.

With ``--dist worksteal`` each worker begins with an equal share of the list, from its front, and
takes tests from the end of another's share when it has finished its own. So what has slow tests
stands at the front of the shares, taking turns, and the quick ones at their ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import pytest

# folders whose files share a run, which is made once by each worker that has one of their tests
TOGETHER = ("exl2", "exl3", "hub")


def slow(items: Iterable[pytest.Item]) -> int:
    """How many of these are marked as slow."""
    return sum(item.get_closest_marker("slow") is not None for item in items)


def for_workers(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The items in an order for so many workers. A file's tests stay together, but for one that
    meets the end of a share.
    """
    modules = [list(tests) for _, tests in groupby(items, lambda item: item.path)]
    units: dict[object, list[pytest.Item]] = {}
    for module in sorted(modules, key=slow, reverse=True):
        path = module[0].path
        folder = path.parent if path.parent.name in TOGETHER else path
        units.setdefault(folder, []).extend(module)
    sizes = [(len(items) + i) // workers for i in range(workers)]  # the first is the smallest
    shares: list[list[pytest.Item]] = [[] for _ in sizes]
    for unit in sorted(units.values(), key=slow, reverse=True):
        rest = unit
        while rest:
            open_ = [i for i, size in enumerate(sizes) if len(shares[i]) < size]
            i = min(open_, key=lambda i: (slow(shares[i]), len(shares[i])))
            room = sizes[i] - len(shares[i])
            shares[i] += rest[:room]
            rest = rest[room:]
    return [item for share in shares for item in share]

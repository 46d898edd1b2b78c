"""Objects in which one value is something else: an outcome or a word about it, no other exception."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jsonpatch
import pytest
from kit.kubernetes import MANIFESTS, objects

from fastmesh.kubernetes.errors import ManifestError, Refused
from fastmesh.kubernetes.inject import inject
from fastmesh.kubernetes.objects import objects as found_objects
from fastmesh.kubernetes.patch import difference
from fastmesh.kubernetes.settings import Settings

JUNK: tuple[Any, ...] = (None, True, 5, -1, 1.5, "", "x", "*", [], [5], [[]], {}, {"x": [1]}, [{"name": []}])
NAMES = ("probes.yaml", "annotations.yaml", "pod-of-replicaset.yaml", "volumes.yaml", "security-context.yaml")
NAMES += ("native-sidecars.yaml", "guaranteed.yaml", "cronjob.yaml", "windows.yaml")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in entries:
        yield (*path, key)
        yield from places(child, (*path, key))


@pytest.mark.parametrize("name", NAMES)
def test_one_value_is_something_else(name: str) -> None:
    (path,) = [one for one in MANIFESTS if one.name == name]
    for original in objects(path.read_text()):
        for place in [*places(original)]:
            for junk in JUNK:
                data = copy.deepcopy(original)
                at = data
                for part in place[:-1]:
                    at = at[part]
                at[place[-1]] = junk
                before = copy.deepcopy(data)
                try:
                    for one in found_objects(data):
                        outcome = inject(data, one, Settings())
                        operations = difference(data, outcome.data)
                        assert jsonpatch.apply_patch(data, operations) == outcome.data
                except (ManifestError, Refused) as error:
                    assert str(error)
                except Exception as error:
                    raise AssertionError(f"{junk!r} at {place}") from error
                assert data == before, f"{junk!r} at {place} has changed its object"

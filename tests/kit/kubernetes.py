"""Kubernetes manifests of the tests, and the judge of what comes out: Kubernetes' own OpenAPI schema."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import kubernetes_validate.utils
import yaml

MANIFESTS = sorted((Path(__file__).parents[1] / "kubernetes" / "manifests").iterdir())
# The first Kubernetes with native sidecars, and the newest that the schemas are there for.
VERSIONS = ("1.29", kubernetes_validate.latest_version())

# It reads and parses megabytes for each object otherwise.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def read(text: str) -> list[Any]:
    """The documents of a manifest, read by PyYAML's own rules."""
    return list(yaml.safe_load_all(text))


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The objects of a manifest, those of lists one by one."""
    for document in read(text):
        if document is not None:
            yield from document["items"] if document["kind"].endswith("List") else [document]


def validate(text: str) -> int:
    """Judge every object that is Kubernetes' own; the number of them."""
    judged = 0
    for one in objects(text):
        if "argoproj" in one["apiVersion"]:
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(one, version, strict=True)
        judged += 1
    return judged


def template(one: dict[str, Any]) -> dict[str, Any]:
    """The pod template of an object."""
    if one["kind"] == "Pod":
        return one
    spec = one["spec"]["jobTemplate"]["spec"] if one["kind"] == "CronJob" else one["spec"]
    found: dict[str, Any] = spec["template"]
    return found

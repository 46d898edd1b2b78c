"""AdmissionReview (admission.k8s.io/v1): a question of the API server, and the answer to it.

Pure: bytes in, a value out. An answer is a whole patch or none. What is wrong with the question itself raises
`NoReview`, and becomes an HTTP error: the cluster's `failurePolicy` decides then.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from fastmesh.config.errors import shown
from fastmesh.kubernetes.errors import ManifestError, Refused
from fastmesh.kubernetes.inject import Outcome, inject
from fastmesh.kubernetes.objects import objects
from fastmesh.kubernetes.patch import Operation, difference
from fastmesh.kubernetes.settings import Settings
from fastmesh.kubernetes.shapes import described

VERSION: Final = "admission.k8s.io/v1"
# The API server cuts longer ones, and shows no more than 4096 bytes of all of them.
_MAX_WARNING: Final = 256
_MAX_WARNINGS: Final = 8


class NoReview(ValueError):
    """The document is no AdmissionReview that can be answered."""


def answer(body: bytes | bytearray, settings: Settings) -> tuple[dict[str, Any], str]:
    """The AdmissionReview that answers one, and a line for the log. Raises NoReview."""
    request = _request(body)
    uid = request["uid"]
    if not isinstance(request.get("object"), dict) or not _matters(request):
        return _review({"uid": uid, "allowed": True}), ""
    data = request["object"]
    what = _named(request, data)
    # The API server sends objects of built-in kinds with both; an object by itself may lack them.
    kind = request["kind"]
    version = "/".join(str(one) for one in (kind.get("group"), kind.get("version")) if one)
    whole = {"apiVersion": version, "kind": kind.get("kind"), **data}
    operations: list[Operation] = []
    try:
        outcome = _outcome(whole, settings)
        if outcome is not None:
            operations = difference(whole, outcome.data)
    except RecursionError:
        raise NoReview("request.object is nested too deep for any pod") from None
    except (ManifestError, Refused) as error:
        message = f"fastmesh: {error}"
        status = {"code": 422, "reason": "Invalid", "message": message}
        return _review({"uid": uid, "allowed": False, "status": status}), f"{what}: denied ({error})"
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if outcome is None:
        return _review(response), ""
    if operations:
        patch = json.dumps(operations, separators=(",", ":")).encode()
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch).decode()}
    warnings = _warnings(outcome)
    if warnings:
        response["warnings"] = warnings
    return _review(response), f"{what}: {outcome.action} ({outcome.why})"


def _request(body: bytes | bytearray) -> dict[str, Any]:
    try:
        review = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoReview(f"the body is not JSON: {error}") from None
    if not isinstance(review, dict):
        raise NoReview(f"the body is {described(review)}, expected an AdmissionReview")
    version, kind = review.get("apiVersion"), review.get("kind")
    if kind != "AdmissionReview" or version != VERSION:
        found = f"{shown(str(version))}, {shown(str(kind))}"
        raise NoReview(f"apiVersion and kind are {found}, expected {VERSION}, AdmissionReview")
    request = review.get("request")
    if not isinstance(request, dict):
        raise NoReview(f"request is {described(request)}, expected a mapping")
    uid = request.get("uid")
    if not isinstance(uid, str) or not uid:
        raise NoReview(f"request.uid is {described(uid)}, expected a text")
    if not isinstance(request.get("kind"), dict):
        raise NoReview(f"request.kind is {described(request.get('kind'))}, expected a mapping")
    if request.get("object") is not None and not isinstance(request["object"], dict):
        raise NoReview(f"request.object is {described(request['object'])}, expected a mapping")
    return request


def _matters(request: dict[str, Any]) -> bool:
    """Whether the object can still be changed: a pod's containers cannot, once it is there."""
    operation = request.get("operation")
    if request.get("subResource"):
        return False
    return operation == "CREATE" or (
        operation == "UPDATE" and request["kind"].get("kind") not in ("Pod", "Job")
    )


def _outcome(data: dict[str, Any], settings: Settings) -> Outcome | None:
    """What becomes of the object; None: it makes no pods. Raises ManifestError and Refused."""
    outcome = None
    for one in objects(data):
        if one.path:
            return None  # lists are not admitted
        outcome = inject(data, one, settings)
    return outcome


def _warnings(outcome: Outcome) -> list[str]:
    texts = [f"{note.what}: {note.why}" for note in outcome.notes if note.sign == "!"]
    if outcome.action == "refused":
        texts.insert(0, f"no sidecar: {outcome.why}")
    return [_cut(f"fastmesh: {text}") for text in texts[:_MAX_WARNINGS]]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_WARNING else text[: _MAX_WARNING - 1] + "…"


def _named(request: dict[str, Any], data: dict[str, Any]) -> str:
    metadata = data.get("metadata") if isinstance(data.get("metadata"), dict) else {}
    assert isinstance(metadata, dict)
    name = request.get("name") or metadata.get("name") or metadata.get("generateName") or ""
    dry = " (dry run)" if request.get("dryRun") is True else ""
    return f"{shown(str(request.get('namespace') or ''))} {shown(str(name))}{dry}"


def _review(response: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": VERSION, "kind": "AdmissionReview", "response": response}

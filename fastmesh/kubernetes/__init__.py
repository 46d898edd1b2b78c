"""Kubernetes: pods that get their sidecar by `fastmesh inject` or by the admission webhook.

Both are one transformation (`inject`) of an object's pod template. The command applies its result to the
text of a manifest (`manifests`), the webhook answers with the same result as a JSON Patch (`patch`). What the
pod's processes need to know of it reaches them as one JSON value (`pod`), which the first init container
merges into the configuration of the mesh (`render`). No cluster is asked for anything.
"""

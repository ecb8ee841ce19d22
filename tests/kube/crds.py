"""Our kinds' definitions, in a test's API server."""

from __future__ import annotations

from kubernetes import client

from controlplane.api.crds import GROUP, VERSION, custom_resource_definitions, plural_of
from controlplane.api.kinds import KINDS
from tests.kube.cluster import eventually


def install(api: client.ApiClient) -> None:
    """Create them, and wait until they are served. There already is as good."""
    extensions = client.ApiextensionsV1Api(api)
    wanted = custom_resource_definitions()
    for definition in wanted:
        try:
            extensions.create_custom_resource_definition(definition)
        except client.ApiException as error:
            if error.status != 409:
                raise

    objects = client.CustomObjectsApi(api)

    def served() -> bool:
        for kind in KINDS:
            objects.list_namespaced_custom_object(GROUP, VERSION, "default", plural_of(kind))
        found = [extensions.read_custom_resource_definition(one["metadata"]["name"]) for one in wanted]
        return all(
            any(c.type == "Established" and c.status == "True" for c in f.status.conditions or []) for f in found
        )

    eventually(served, "our definitions to be served")

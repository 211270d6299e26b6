"""What scripts do through the Python client: ten built-in kinds by their typed calls, a custom kind, the dynamic client.

KUBECONFIG and NAMESPACE say where; an exception, and with it the exit code, says what went wrong.
"""

import os
import queue
import re
import threading
import time

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException

NAMESPACE = os.environ["NAMESPACE"]
# How long an event may take.
SECONDS = 30

POD = {
    "metadata": {"labels": {"app": "a"}},
    "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "sternpost.io/toolbox"}]},
}
ONCE = {**POD, "spec": {**POD["spec"], "restartPolicy": "Never"}}
SELECTOR = {"matchLabels": {"app": "a"}}
BACKEND = {"service": {"name": "s", "port": {"number": 80}}}
RULE = {"host": "a.example.com", "http": {"paths": [{"path": "/", "pathType": "Exact", "backend": BACKEND}]}}
CRON = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": {"template": ONCE}}}
TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "none"}

# API class, apiVersion, kind, the object without its metadata.
KINDS = [
    (client.CoreV1Api, "v1", "ConfigMap", {"data": {"a": "1"}}),
    (client.CoreV1Api, "v1", "Secret", {"data": {"a": "AAH/"}}),
    (client.CoreV1Api, "v1", "Service", {"spec": {"ports": [{"port": 80}]}}),
    (client.CoreV1Api, "v1", "ServiceAccount", {"automountServiceAccountToken": True}),
    (
        client.CoreV1Api,
        "v1",
        "PersistentVolumeClaim",
        {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}},
    ),
    (client.AppsV1Api, "apps/v1", "Deployment", {"spec": {"replicas": 0, "selector": SELECTOR, "template": POD}}),
    (client.BatchV1Api, "batch/v1", "CronJob", {"spec": CRON}),
    (
        client.RbacAuthorizationV1Api,
        "rbac.authorization.k8s.io/v1",
        "Role",
        {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]},
    ),
    (client.NetworkingV1Api, "networking.k8s.io/v1", "Ingress", {"spec": {"rules": [RULE]}}),
    (client.PolicyV1Api, "policy/v1", "PodDisruptionBudget", {"spec": {"minAvailable": 1, "selector": SELECTOR}}),
    (
        client.AutoscalingV2Api,
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        {"spec": {"scaleTargetRef": TARGET, "minReplicas": 1, "maxReplicas": 3}},
    ),
]


class Events:
    """A watch that runs beside."""

    def __init__(self, listing, **selected):
        self.events = queue.Queue()
        self.watch = watch.Watch()
        self.stopped = False
        stream = self.watch.stream(listing, NAMESPACE, timeout_seconds=120, **selected)
        threading.Thread(target=self.read, args=(stream,), daemon=True).start()

    def read(self, stream):
        try:
            for event in stream:
                self.events.put(event)
        except Exception:
            # Stopping shuts the connection under the reader.
            if not self.stopped:
                raise

    def stop(self):
        self.stopped = True
        self.watch.stop()

    def wait_for(self, kind, name, annotations=None):
        end = time.monotonic() + SECONDS
        while True:
            event = self.events.get(timeout=max(0.1, end - time.monotonic()))
            metadata = event["object"].metadata
            found = metadata.annotations or {}
            if (event["type"], metadata.name) == (kind, name) and (annotations or {}).items() <= found.items():
                return event["object"]


def refused(code, call, *args, **kwargs):
    """The body of a refusal, which there must be."""
    try:
        call(*args, **kwargs)
    except ApiException as refusal:
        assert refusal.status == code, refusal
        return refusal.body
    raise AssertionError(f"{call.__name__} must be refused with {code}")


def visit(api, api_version, kind, parts):
    word = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
    call = lambda verb: getattr(api, f"{verb}_namespaced_{word}")
    name = f"py-{kind.lower()}"
    metadata = {"name": name, "labels": {"py": kind}}
    selected = {"label_selector": f"py={kind}"}
    events = Events(call("list"), **selected)
    made = call("create")(NAMESPACE, {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts})
    assert made.metadata.uid and made.metadata.resource_version, made
    events.wait_for("ADDED", name)

    note = lambda key, value="1": {"metadata": {"annotations": {key: value}}}
    patch = lambda body, media, **more: call("patch")(name, NAMESPACE, body, _content_type=media, **more)
    patch(note("merge"), "application/merge-patch+json")
    patch([{"op": "add", "path": "/metadata/annotations/json", "value": "1"}], "application/json-patch+json")
    patch(note("strategic"), "application/strategic-merge-patch+json")
    events.wait_for("MODIFIED", name, {"merge": "1", "json": "1", "strategic": "1"})

    assert "the object has been modified" in refused(409, call("replace"), name, NAMESPACE, made)
    while True:
        current = call("read")(name, NAMESPACE)
        current.metadata.annotations["replaced"] = "1"
        try:
            call("replace")(name, NAMESPACE, current)
            break
        except ApiException as conflict:
            assert conflict.status == 409, conflict

    apply = "application/apply-patch+yaml"
    wanted = {"apiVersion": api_version, "kind": kind, **note("replaced", "2")}
    assert ".metadata.annotations.replaced" in refused(409, patch, wanted, apply, field_manager="another")
    patch(wanted, apply, field_manager="another", force=True)
    events.wait_for("MODIFIED", name, {"replaced": "2"})
    second = {"apiVersion": api_version, "kind": kind, "metadata": {**metadata, "name": f"{name}-2"}, **parts}
    call("patch")(f"{name}-2", NAMESPACE, second, _content_type=apply, field_manager="another")

    first = call("list")(NAMESPACE, limit=1, **selected)
    rest = call("list")(NAMESPACE, limit=1, _continue=first.metadata._continue, **selected)
    assert [item.metadata.name for item in first.items + rest.items] == [name, f"{name}-2"], (first, rest)
    call("delete")(name, NAMESPACE)
    events.wait_for("DELETED", name)
    call("delete_collection")(NAMESPACE, **selected)
    events.wait_for("DELETED", f"{name}-2")
    refused(404, call("read"), name, NAMESPACE)
    events.stop()


def custom_kind(api):
    group = f"py.{NAMESPACE}.example.com"
    gear = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"teeth": {"type": "integer", "minimum": 2}}}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": gear}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"gears.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "gears", "kind": "Gear"}, "versions": [version]},
    }
    extensions = client.ApiextensionsV1Api(api)
    extensions.create_custom_resource_definition(definition)
    try:
        for event in watch.Watch().stream(
            extensions.list_custom_resource_definition, field_selector=f"metadata.name=gears.{group}", timeout_seconds=SECONDS
        ):
            conditions = event["object"].status.conditions or []
            if any(one.type == "Established" and one.status == "True" for one in conditions):
                break
        objects = client.CustomObjectsApi(api)
        place = (group, "v1", NAMESPACE, "gears")
        body = {"apiVersion": f"{group}/v1", "kind": "Gear", "metadata": {"name": "g"}, "spec": {"teeth": 8}}
        objects.create_namespaced_custom_object(*place, body)
        body["spec"]["teeth"] = 1
        refused(422, objects.patch_namespaced_custom_object, *place, "g", {"spec": {"teeth": 1}})
        objects.patch_namespaced_custom_object(*place, "g", {"spec": {"teeth": 12}})
        assert objects.get_namespaced_custom_object(*place, "g")["spec"] == {"teeth": 12}
        found = dynamic.DynamicClient(api).resources.get(api_version=f"{group}/v1", kind="Gear")
        assert found.get(name="g", namespace=NAMESPACE).spec.teeth == 12
        objects.delete_namespaced_custom_object(*place, "g")
    finally:
        extensions.delete_custom_resource_definition(f"gears.{group}")


def main():
    config.load_kube_config(os.environ["KUBECONFIG"])
    api = client.ApiClient()
    for group, api_version, kind, parts in KINDS:
        begin = time.monotonic()
        visit(group(api), api_version, kind, parts)
        print(f"{kind}: {(time.monotonic() - begin) * 1000:.0f} ms")
    custom_kind(api)
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "py-utils", "namespace": NAMESPACE}}
    utils.create_from_dict(api, manifest)
    assert client.VersionApi(api).get_code().major == "1"
    print("a custom kind, utils: done")


main()

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	failures "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	meta1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/jsonmergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

var definitionsResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// What two releases of a chart say about an object, and what somebody else changes in between.
type release struct {
	first, second, others string
}

const pod = `{metadata: {labels: {app: a, %s}}, spec: {nodeSelector: {none: there}, containers: [{name: c, image: %s, env: [%s], ports: [%s]}]}}`

var template1 = fmt.Sprintf(pod, "one: x", "'a:1'", "{name: A, value: '1'}, {name: B, value: '2'}", "{name: http, containerPort: 80}, {name: old, containerPort: 81}")
var template2 = fmt.Sprintf(pod, "two: x", "'a:2'", "{name: B, value: '3'}, {name: C, value: '4'}", "{name: new, containerPort: 82}, {name: http, containerPort: 80}")

// The releases of one chart, by apiVersion and kind.
func chart(group string) map[string]release {
	workload := func(more string) release {
		of := func(replicas, template string) string {
			return "spec: {" + more + replicas + "selector: {matchLabels: {app: a}}, template: " + template + "}"
		}
		// An env of somebody else's stays, as the list is merged by name.
		added := "spec: {template: {spec: {containers: [{name: c, env: [{name: O, value: o}]}]}}}"
		return release{of("", template1), of("", template2), added}
	}
	return map[string]release{
		"v1 ConfigMap":      {"data: {a: '1', gone: x}", "data: {a: '2', come: x}", "data: {other: x}"},
		"v1 Secret":         {"stringData: {a: '1'}\ndata: {b: eA==}", "stringData: {a: '2'}\ndata: {c: eA==}", "metadata: {labels: {other: x}}"},
		"v1 ServiceAccount": {"automountServiceAccountToken: true\nsecrets: [{name: a}]", "secrets: [{name: b}]", "secrets: [{name: o}]"},
		"v1 ResourceQuota":  {"spec: {hard: {configmaps: '100', pods: 1k}}", "spec: {hard: {configmaps: '200'}}", "metadata: {labels: {other: x}}"},
		"v1 LimitRange":     {"spec: {limits: [{type: Container, max: {cpu: '2'}}]}", "spec: {limits: [{type: Pod, max: {cpu: '4'}}]}", "metadata: {labels: {other: x}}"},
		"v1 Service": {
			"spec: {selector: {app: a, one: x}, ports: [{name: http, port: 80}, {name: old, port: 81}]}",
			"spec: {selector: {app: a}, ports: [{name: new, port: 82}, {name: http, port: 80, appProtocol: http}]}",
			"metadata: {annotations: {other: x}}",
		},
		"v1 PersistentVolumeClaim": {
			"spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}",
			"metadata: {labels: {two: x}}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}",
			"metadata: {annotations: {other: x}}",
		},
		"apps/v1 Deployment":  workload("replicas: 0, "),
		"apps/v1 StatefulSet": workload("replicas: 0, serviceName: s, "),
		"apps/v1 ReplicaSet":  workload("replicas: 0, "),
		"apps/v1 DaemonSet":   workload(""),
		"batch/v1 CronJob": {
			"spec: {schedule: 0 0 1 1 *, suspend: true, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: a, args: [run, slowly]}]}}}}}",
			"spec: {schedule: 0 0 2 2 *, suspend: true, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: a, args: [slowly]}]}}}}}",
			"spec: {jobTemplate: {spec: {backoffLimit: 2}}}",
		},
		"rbac.authorization.k8s.io/v1 Role": {
			"rules: [{apiGroups: [''], resources: [pods, secrets], verbs: [get]}]",
			"rules: [{apiGroups: [''], resources: [pods], verbs: [get, list]}, {apiGroups: [apps], resources: [deployments], verbs: [get]}]",
			"metadata: {labels: {other: x}}",
		},
		"networking.k8s.io/v1 Ingress": {
			"spec: {rules: [{host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: s, port: {name: http}}}}]}}]}",
			"spec: {rules: [{host: b.example.com, http: {paths: [{path: /x, pathType: Exact, backend: {service: {name: s, port: {number: 80}}}}]}}]}",
			"metadata: {annotations: {other: x}}",
		},
		"networking.k8s.io/v1 NetworkPolicy": {
			"spec: {podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: http}]}]}",
			"spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}",
			"metadata: {labels: {other: x}}",
		},
		"policy/v1 PodDisruptionBudget": {
			"spec: {minAvailable: 1, selector: {matchLabels: {app: a}}}",
			"spec: {maxUnavailable: 50%, selector: {matchLabels: {app: a}}}",
			"spec: {unhealthyPodEvictionPolicy: AlwaysAllow}",
		},
		"autoscaling/v2 HorizontalPodAutoscaler": {
			"spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: none}, minReplicas: 2, maxReplicas: 3}",
			"spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: other}, minReplicas: 1, maxReplicas: 4}",
			"metadata: {labels: {other: x}}",
		},
		group + "/v1 Gear": {
			"spec: {teeth: 8, old: x, list: [{name: a, of: one}, {name: b}]}",
			"spec: {teeth: 9, new: x, list: [{name: b, of: two}]}",
			"spec: {other: x}",
		},
	}
}

// charts does with every kind of a chart what helm does: a first release, an upgrade over what others have changed, the same again, a
// rollback. Each patch is made of the old manifest, the new one and the live object.
func charts(w *world) error {
	group := w.namespace + ".charts.example.com"
	remove, err := anyGears(w, group)
	if err != nil {
		return err
	}
	defer remove()
	found, err := restmapper.GetAPIGroupResources(w.client.Discovery())
	if err != nil {
		return err
	}
	mapper := restmapper.NewDiscoveryRESTMapper(found)
	var wrong []error
	for named, release := range chart(group) {
		if err := released(w, mapper, named, release); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", named, err))
		}
	}
	return errors.Join(wrong...)
}

// anyGears defines a custom kind of any fields.
func anyGears(w *world, group string) (func(), error) {
	text := `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gears.GROUP}
spec:
  group: GROUP
  scope: Namespaced
  names: {plural: gears, kind: Gear}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
`
	definition := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, "GROUP", group)), &definition.Object); err != nil {
		return nil, err
	}
	definitions := w.dynamic.Resource(definitionsResource)
	if _, err := definitions.Create(w, definition, meta1.CreateOptions{}); err != nil {
		return nil, err
	}
	remove := func() { _ = definitions.Delete(w, "gears."+group, meta1.DeleteOptions{}) }
	return remove, established(w, definitions, "gears."+group)
}

func released(w *world, mapper meta.RESTMapper, named string, release release) error {
	apiVersion, kind, _ := strings.Cut(named, " ")
	manifest := func(text string) (*unstructured.Unstructured, error) {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		object.SetAPIVersion(apiVersion)
		object.SetKind(kind)
		object.SetName("release")
		return object, nil
	}
	first, err := manifest(release.first)
	if err != nil {
		return err
	}
	second, err := manifest(release.second)
	if err != nil {
		return err
	}
	mapping, err := mapper.RESTMapping(first.GroupVersionKind().GroupKind(), first.GroupVersionKind().Version)
	if err != nil {
		return err
	}
	objects := w.dynamic.Resource(mapping.Resource).Namespace(w.namespace)
	if _, err := objects.Create(w, first, meta1.CreateOptions{FieldManager: "helm"}); err != nil {
		return err
	}
	others, err := yaml.YAMLToJSON([]byte(release.others))
	if err != nil {
		return err
	}
	patchType := types.StrategicMergePatchType
	if !scheme.Scheme.Recognizes(first.GroupVersionKind()) {
		patchType = types.MergePatchType
	}
	if _, err := objects.Patch(w, "release", patchType, others, meta1.PatchOptions{FieldManager: "other"}); err != nil {
		return fmt.Errorf("change by others: %w", err)
	}
	steps := []struct {
		what     string
		from, to *unstructured.Unstructured
	}{{"upgrade", first, second}, {"upgrade again", second, second}, {"rollback", second, first}}
	for _, step := range steps {
		if err := upgrade(w, objects, patchType, step.from, step.to, others); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return objects.Delete(w, "release", meta1.DeleteOptions{})
}

// upgrade brings the live object from one manifest to another.
func upgrade(w *world, objects dynamic.ResourceInterface, patchType types.PatchType, from, to *unstructured.Unstructured, others []byte) error {
	live, err := objects.Get(w, "release", meta1.GetOptions{})
	if err != nil {
		return err
	}
	patch, err := threeWay(patchType, from, to, live)
	if err != nil {
		return fmt.Errorf("patch: %w", err)
	}
	after, err := objects.Patch(w, "release", patchType, patch, meta1.PatchOptions{FieldManager: "helm"})
	if err != nil {
		return fmt.Errorf("%s: %w", patch, err)
	}
	var foreign map[string]any
	if err := json.Unmarshal(others, &foreign); err != nil {
		return err
	}
	if from == to && !reflect.DeepEqual(settled(after), settled(live)) {
		return fmt.Errorf("the same release changed the object by %s", patch)
	}
	err = errors.Join(
		holds(after.Object, plain(to), ""),
		holds(after.Object, foreign, ""),
		gone(after.Object, plain(from), plain(to), foreign, ""),
	)
	if err != nil {
		return fmt.Errorf("after %s: %w", patch, err)
	}
	return nil
}

// settled is an object without what its controller may write at any time.
func settled(object *unstructured.Unstructured) map[string]any {
	copy := object.DeepCopy()
	delete(copy.Object, "metadata")
	delete(copy.Object, "status")
	return copy.Object
}

// plain is a manifest as the server shows it: stringData is only written.
func plain(manifest *unstructured.Unstructured) map[string]any {
	object := manifest.DeepCopy().Object
	delete(object, "stringData")
	return object
}

// threeWay is the patch that helm sends.
func threeWay(patchType types.PatchType, from, to, live *unstructured.Unstructured) ([]byte, error) {
	old, err := json.Marshal(from)
	if err != nil {
		return nil, err
	}
	wanted, err := json.Marshal(to)
	if err != nil {
		return nil, err
	}
	current, err := json.Marshal(live)
	if err != nil {
		return nil, err
	}
	if patchType == types.MergePatchType {
		return jsonmergepatch.CreateThreeWayJSONMergePatch(old, wanted, current)
	}
	typed, err := scheme.Scheme.New(to.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	lookup, err := strategicpatch.NewPatchMetaFromStruct(typed)
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateThreeWayMergePatch(old, wanted, current, lookup, true)
}

// holds checks that an object has all that a manifest says.
func holds(object, wanted any, path string) error {
	switch wanted := wanted.(type) {
	case map[string]any:
		fields, _ := object.(map[string]any)
		for name, value := range wanted {
			if err := holds(fields[name], value, path+"."+name); err != nil {
				return err
			}
		}
		return nil
	case []any:
		items, _ := object.([]any)
		for index, value := range wanted {
			if err := holds(item(items, value), value, fmt.Sprintf("%s[%d]", path, index)); err != nil {
				return err
			}
		}
		return nil
	}
	// As text: the same number is an int64 here and a float64 there.
	if fmt.Sprint(object) != fmt.Sprint(wanted) {
		return fmt.Errorf("%s is %v, not %v", path, object, wanted)
	}
	return nil
}

// gone checks that an object has nothing that an older manifest said and the new one and others do not say.
func gone(object, old, wanted, others any, path string) error {
	switch old := old.(type) {
	case map[string]any:
		fields, _ := object.(map[string]any)
		now, _ := wanted.(map[string]any)
		theirs, _ := others.(map[string]any)
		for name, value := range old {
			if fields[name] != nil && now[name] == nil && theirs[name] == nil {
				return fmt.Errorf("%s.%s is still there: %v", path, name, fields[name])
			}
			if err := gone(fields[name], value, now[name], theirs[name], path+"."+name); err != nil {
				return err
			}
		}
	case []any:
		items, _ := object.([]any)
		now, _ := wanted.([]any)
		theirs, _ := others.([]any)
		for _, value := range old {
			found := item(items, value)
			if found != nil && item(now, value) == nil && item(theirs, value) == nil {
				return fmt.Errorf("%s: %v is still there", path, found)
			}
			if err := gone(found, value, item(now, value), item(theirs, value), path); err != nil {
				return err
			}
		}
	}
	return nil
}

// item is what an element of one list is in another: by its name, or else as it is.
func item(items []any, wanted any) any {
	name := func(value any) any {
		fields, _ := value.(map[string]any)
		return fields["name"]
	}
	for _, found := range items {
		same := name(wanted) != nil && name(found) == name(wanted)
		if same || name(wanted) == nil && alike(found, wanted) {
			return found
		}
	}
	return nil
}

// alike is whether one of two values has all that the other has.
func alike(a, b any) bool {
	return holds(a, b, "") == nil || holds(b, a, "") == nil
}

// established waits until a custom kind is served.
func established(w *world, definitions dynamic.ResourceInterface, name string) error {
	for {
		definition, err := definitions.Get(w, name, meta1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(definition.Object, "status", "conditions")
		for _, condition := range conditions {
			fields, _ := condition.(map[string]any)
			if fields["type"] == "Established" && fields["status"] == "True" {
				return nil
			}
		}
		if w.Err() != nil {
			return failures.NewTimeoutError(name+" is never established", 0)
		}
	}
}

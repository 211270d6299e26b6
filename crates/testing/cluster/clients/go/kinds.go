package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	failures "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	meta1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
)

// typed is what every typed client of client-go can do.
type typed[T, L any] interface {
	Create(context.Context, *T, meta1.CreateOptions) (*T, error)
	Update(context.Context, *T, meta1.UpdateOptions) (*T, error)
	Get(context.Context, string, meta1.GetOptions) (*T, error)
	List(context.Context, meta1.ListOptions) (*L, error)
	Watch(context.Context, meta1.ListOptions) (watch.Interface, error)
	Patch(context.Context, string, types.PatchType, []byte, meta1.PatchOptions, ...string) (*T, error)
	Delete(context.Context, string, meta1.DeleteOptions) error
}

// collection is what all of them can but that of Services.
type collection interface {
	DeleteCollection(context.Context, meta1.DeleteOptions, meta1.ListOptions) error
}

func tenKinds(w *world) error {
	pod := core.PodTemplateSpec{
		ObjectMeta: meta1.ObjectMeta{Labels: map[string]string{"app": "a"}},
		Spec:       core.PodSpec{Containers: []core.Container{{Name: "c", Image: "sternpost.io/toolbox"}}},
	}
	job := pod
	job.Spec.RestartPolicy = core.RestartPolicyNever
	zero, one, yes := int32(0), int32(1), true
	selector := &meta1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}
	size := core.VolumeResourceRequirements{Requests: core.ResourceList{}}
	size.Requests[core.ResourceStorage] = quantity("1Mi")
	some := intstr.FromInt32(1)
	exact := networking.PathTypeExact
	backend := networking.IngressBackend{Service: &networking.IngressServiceBackend{Name: "s", Port: networking.ServiceBackendPort{Number: 80}}}
	rule := networking.IngressRule{Host: "a.example.com"}
	rule.HTTP = &networking.HTTPIngressRuleValue{Paths: []networking.HTTPIngressPath{{Path: "/", PathType: &exact, Backend: backend}}}
	c, ns := w.client, w.namespace
	return errors.Join(
		visit(w, "v1", "ConfigMap", c.CoreV1().ConfigMaps(ns), &core.ConfigMap{Data: map[string]string{"a": "1"}}),
		visit(w, "v1", "Secret", c.CoreV1().Secrets(ns), &core.Secret{Data: map[string][]byte{"a": {0, 1, 255}}}),
		visit(w, "v1", "Service", c.CoreV1().Services(ns), &core.Service{Spec: core.ServiceSpec{Ports: []core.ServicePort{{Port: 80}}}}),
		visit(w, "v1", "ServiceAccount", c.CoreV1().ServiceAccounts(ns), &core.ServiceAccount{AutomountServiceAccountToken: &yes}),
		visit(w, "v1", "PersistentVolumeClaim", c.CoreV1().PersistentVolumeClaims(ns), &core.PersistentVolumeClaim{
			Spec: core.PersistentVolumeClaimSpec{AccessModes: []core.PersistentVolumeAccessMode{core.ReadWriteOnce}, Resources: size},
		}),
		visit(w, "apps/v1", "Deployment", c.AppsV1().Deployments(ns), &apps.Deployment{
			Spec: apps.DeploymentSpec{Replicas: &zero, Selector: selector, Template: pod},
		}),
		visit(w, "batch/v1", "CronJob", c.BatchV1().CronJobs(ns), &batch.CronJob{Spec: batch.CronJobSpec{
			Schedule: "0 0 1 1 *", Suspend: &yes, JobTemplate: batch.JobTemplateSpec{Spec: batch.JobSpec{Template: job}},
		}}),
		visit(w, "rbac.authorization.k8s.io/v1", "Role", c.RbacV1().Roles(ns), &rbac.Role{
			Rules: []rbac.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}}},
		}),
		visit(w, "networking.k8s.io/v1", "Ingress", c.NetworkingV1().Ingresses(ns), &networking.Ingress{
			Spec: networking.IngressSpec{Rules: []networking.IngressRule{rule}},
		}),
		visit(w, "policy/v1", "PodDisruptionBudget", c.PolicyV1().PodDisruptionBudgets(ns), &policy.PodDisruptionBudget{
			Spec: policy.PodDisruptionBudgetSpec{MinAvailable: &some, Selector: selector},
		}),
		visit(w, "autoscaling/v2", "HorizontalPodAutoscaler", c.AutoscalingV2().HorizontalPodAutoscalers(ns), &autoscaling.HorizontalPodAutoscaler{
			Spec: autoscaling.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscaling.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "none"},
				MinReplicas:    &one, MaxReplicas: 3,
			},
		}),
	)
}

// visit takes one kind from creation to deletion and holds every event of a watch against it.
func visit[T, L any](w *world, apiVersion, kind string, client typed[T, L], object *T) error {
	if err := lifetime(w, apiVersion, kind, client, object); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	return nil
}

func lifetime[T, L any](w *world, apiVersion, kind string, client typed[T, L], object *T) error {
	name := "tour-" + strings.ToLower(kind)
	of := func(object *T) meta1.Object {
		found, err := meta.Accessor(object)
		if err != nil {
			panic(err)
		}
		return found
	}
	selected := meta1.ListOptions{LabelSelector: "tour=" + kind}
	of(object).SetName(name)
	of(object).SetLabels(map[string]string{"tour": kind})
	events, err := client.Watch(w, selected)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	defer events.Stop()
	created, err := client.Create(w, object, meta1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if of(created).GetUID() == "" || of(created).GetResourceVersion() == "" {
		return errors.New("create: no identity")
	}
	if err := await(w, events, watch.Added, name, nil); err != nil {
		return err
	}

	patches := []struct {
		kind types.PatchType
		data string
	}{
		{types.MergePatchType, `{"metadata":{"annotations":{"merge":"1"}}}`},
		{types.JSONPatchType, `[{"op":"add","path":"/metadata/annotations/json","value":"1"}]`},
		{types.StrategicMergePatchType, `{"metadata":{"annotations":{"strategic":"1"}}}`},
	}
	for _, patch := range patches {
		if _, err := client.Patch(w, name, patch.kind, []byte(patch.data), meta1.PatchOptions{}); err != nil {
			return fmt.Errorf("patch %s: %w", patch.kind, err)
		}
	}
	if err := await(w, events, watch.Modified, name, map[string]string{"merge": "1", "json": "1", "strategic": "1"}); err != nil {
		return err
	}

	of(created).SetAnnotations(map[string]string{"stale": "1"})
	if _, err := client.Update(w, created, meta1.UpdateOptions{}); !failures.IsConflict(err) {
		return fmt.Errorf("update over a newer version: %w", err)
	}
	for {
		current, err := client.Get(w, name, meta1.GetOptions{})
		if err != nil {
			return fmt.Errorf("get: %w", err)
		}
		of(current).GetAnnotations()["update"] = "1"
		if _, err = client.Update(w, current, meta1.UpdateOptions{}); err == nil {
			break
		} else if !failures.IsConflict(err) {
			return fmt.Errorf("update: %w", err)
		}
	}

	if err := applied(w, apiVersion, kind, client, name); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if err := await(w, events, watch.Modified, name, map[string]string{"update": "2"}); err != nil {
		return err
	}

	names, err := chunks(w, client, selected)
	if err != nil || names != name+" "+name+"-2 " {
		return fmt.Errorf("list in chunks: %q: %w", names, err)
	}
	if err := client.Delete(w, name, meta1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if err := await(w, events, watch.Deleted, name, nil); err != nil {
		return err
	}
	if all, can := any(client).(collection); can {
		err = all.DeleteCollection(w, meta1.DeleteOptions{}, selected)
	} else {
		err = client.Delete(w, name+"-2", meta1.DeleteOptions{})
	}
	if err != nil {
		return fmt.Errorf("delete the rest: %w", err)
	}
	if err := await(w, events, watch.Deleted, name+"-2", nil); err != nil {
		return err
	}
	if _, err := client.Get(w, name, meta1.GetOptions{}); !failures.IsNotFound(err) {
		return fmt.Errorf("get after delete: %w", err)
	}
	return nil
}

// applied takes a field from another manager and makes a second object like the first.
func applied[T, L any](w *world, apiVersion, kind string, client typed[T, L], name string) error {
	configuration := func(name string, spec any, annotations map[string]string) []byte {
		object := map[string]any{}
		if spec != nil {
			data, _ := json.Marshal(spec)
			_ = json.Unmarshal(data, &object)
			delete(object, "status")
		}
		object["apiVersion"], object["kind"] = apiVersion, kind
		object["metadata"] = map[string]any{"name": name, "labels": map[string]string{"tour": kind}, "annotations": annotations}
		data, _ := json.Marshal(object)
		return data
	}
	wanted := configuration(name, nil, map[string]string{"update": "2"})
	options := meta1.PatchOptions{FieldManager: "another"}
	_, err := client.Patch(w, name, types.ApplyPatchType, wanted, options)
	if !failures.IsConflict(err) || !strings.Contains(err.Error(), ".metadata.annotations.update") {
		return fmt.Errorf("must conflict: %w", err)
	}
	force := true
	options.Force = &force
	if _, err := client.Patch(w, name, types.ApplyPatchType, wanted, options); err != nil {
		return err
	}
	current, err := client.Get(w, name, meta1.GetOptions{})
	if err != nil {
		return err
	}
	second := configuration(name+"-2", unplaced(current), nil)
	_, err = client.Patch(w, name+"-2", types.ApplyPatchType, second, options)
	return err
}

// unplaced is the object without the addresses that only one can have.
func unplaced(object any) any {
	if service, ok := object.(*core.Service); ok {
		copy := service.DeepCopy()
		copy.Spec.ClusterIP, copy.Spec.ClusterIPs = "", nil
		return copy
	}
	return object
}

// chunks lists one object at a time and joins the names.
func chunks[T, L any](w *world, client typed[T, L], options meta1.ListOptions) (string, error) {
	options.Limit = 1
	names := ""
	for {
		list, err := client.List(w, options)
		if err != nil {
			return names, err
		}
		items, err := meta.ExtractList(any(list).(runtime.Object))
		if err != nil {
			return names, err
		}
		for _, item := range items {
			found, _ := meta.Accessor(item)
			names += found.GetName() + " "
		}
		about, err := meta.ListAccessor(list)
		if err != nil || about.GetContinue() == "" {
			return names, err
		}
		options.Continue = about.GetContinue()
	}
}

// await reads events until one is of this type, about this object, with these annotations.
func await(w *world, events watch.Interface, kind watch.EventType, name string, annotations map[string]string) error {
	for {
		select {
		case <-w.Done():
			return fmt.Errorf("no event %s of %s with %v", kind, name, annotations)
		case event, open := <-events.ResultChan():
			if !open || event.Type == watch.Error {
				return fmt.Errorf("the watch ended before %s of %s: %v", kind, name, event.Object)
			}
			object, err := meta.Accessor(event.Object)
			if err != nil || event.Type != kind || object.GetName() != name {
				continue
			}
			all := true
			for key, value := range annotations {
				all = all && object.GetAnnotations()[key] == value
			}
			if all {
				return nil
			}
		}
	}
}

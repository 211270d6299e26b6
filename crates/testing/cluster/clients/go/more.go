package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	apps "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	failures "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	applyapps "k8s.io/client-go/applyconfigurations/apps/v1"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	applymeta "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/retry"
)

func quantity(text string) resource.Quantity { return resource.MustParse(text) }

// subresources uses those that clients write most.
func subresources(w *world) error {
	deployments := w.client.AppsV1().Deployments(w.namespace)
	labels := map[string]string{"app": "parts"}
	pod := applycore.PodTemplateSpec().WithLabels(labels)
	pod.WithSpec(applycore.PodSpec().WithContainers(applycore.Container().WithName("c").WithImage("sternpost.io/toolbox")))
	spec := applyapps.DeploymentSpec().WithReplicas(0).WithSelector(applymeta.LabelSelector().WithMatchLabels(labels)).WithTemplate(pod)
	configuration := applyapps.Deployment("parts", w.namespace).WithSpec(spec)
	made, err := deployments.Apply(w, configuration, meta1.ApplyOptions{FieldManager: "parts"})
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	extracted, err := applyapps.ExtractDeployment(made, "parts")
	if err != nil || extracted.Spec == nil || *extracted.Spec.Replicas != 0 {
		return fmt.Errorf("extract what was applied: %v, %w", extracted, err)
	}
	// The controller writes the status at the same time.
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		scale, err := deployments.GetScale(w, "parts", meta1.GetOptions{})
		if err != nil {
			return err
		}
		if scale.Status.Selector != "app=parts" {
			return fmt.Errorf("selector %q", scale.Status.Selector)
		}
		scale.Spec.Replicas = 0
		_, err = deployments.UpdateScale(w, "parts", scale, meta1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("scale: %w", err)
	}
	if err = deployments.Delete(w, "parts", meta1.DeleteOptions{}); err != nil {
		return err
	}

	seconds := int64(3600)
	request := &authentication.TokenRequest{Spec: authentication.TokenRequestSpec{ExpirationSeconds: &seconds}}
	token, err := w.client.CoreV1().ServiceAccounts(w.namespace).CreateToken(w, "default", request, meta1.CreateOptions{})
	if err != nil || token.Status.Token == "" {
		return fmt.Errorf("token: %w", err)
	}
	review := &authentication.TokenReview{Spec: authentication.TokenReviewSpec{Token: token.Status.Token}}
	review, err = w.client.AuthenticationV1().TokenReviews().Create(w, review, meta1.CreateOptions{})
	if err != nil || review.Status.User.Username != "system:serviceaccount:"+w.namespace+":default" {
		return fmt.Errorf("token review: %v, %w", review, err)
	}
	eviction := &policy.Eviction{ObjectMeta: meta1.ObjectMeta{Name: "none", Namespace: w.namespace}}
	if err = w.client.PolicyV1().Evictions(w.namespace).Evict(w, eviction); !failures.IsNotFound(err) {
		return fmt.Errorf("eviction of no pod: %w", err)
	}
	version, err := w.client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	_, lists, err := w.client.Discovery().ServerGroupsAndResources()
	if err != nil || len(lists) < 20 || version.Major != "1" {
		return fmt.Errorf("discovery: %d groups, %v, %w", len(lists), version, err)
	}
	return nil
}

// customKind defines a kind and uses it through the dynamic client.
func customKind(w *world) error {
	group := w.namespace + ".example.com"
	definitions := w.dynamic.Resource(definitionsResource)
	text := map[string]any{"type": "object", "properties": map[string]any{"teeth": map[string]any{"type": "integer", "default": int64(8)}}}
	schemas := map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{"spec": text}}}
	definition := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "gears." + group},
		"spec": map[string]any{
			"group": group, "scope": "Namespaced", "names": map[string]any{"plural": "gears", "kind": "Gear"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": schemas}},
		},
	}}
	if _, err := definitions.Create(w, definition, meta1.CreateOptions{}); err != nil {
		return err
	}
	defer definitions.Delete(w, "gears."+group, meta1.DeleteOptions{})
	gears := w.dynamic.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: "gears"}).Namespace(w.namespace)
	gear := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/v1", "kind": "Gear", "metadata": map[string]any{"name": "g"}, "spec": map[string]any{},
	}}
	if err := established(w, definitions, "gears."+group); err != nil {
		return err
	}
	if _, err := gears.Create(w, gear, meta1.CreateOptions{}); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	events, err := gears.Watch(w, meta1.ListOptions{})
	if err != nil {
		return err
	}
	defer events.Stop()
	if err := await(w, events, watch.Added, "g", nil); err != nil {
		return err
	}
	gear.Object["spec"] = map[string]any{"teeth": int64(12)}
	changed, err := gears.Apply(w, "g", gear, meta1.ApplyOptions{FieldManager: "tour", Force: true})
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if teeth, _, _ := unstructured.NestedInt64(changed.Object, "spec", "teeth"); teeth != 12 {
		return fmt.Errorf("apply: %v", changed)
	}
	if err := gears.Delete(w, "g", meta1.DeleteOptions{}); err != nil {
		return err
	}
	return await(w, events, watch.Deleted, "g", nil)
}

func informersOf(w *world) (informers.SharedInformerFactory, cache.SharedIndexInformer, cache.SharedIndexInformer) {
	factory := informers.NewSharedInformerFactoryWithOptions(w.client, 0, informers.WithNamespace(w.namespace))
	return factory, factory.Core().V1().ConfigMaps().Informer(), factory.Apps().V1().Deployments().Informer()
}

// streams fills two caches and sees what changes afterwards.
func streams(w *world) error {
	maps := w.client.CoreV1().ConfigMaps(w.namespace)
	object := func(name string) *core.ConfigMap { return &core.ConfigMap{ObjectMeta: meta1.ObjectMeta{Name: name}} }
	if _, err := maps.Create(w, object("before"), meta1.CreateOptions{}); err != nil {
		return err
	}
	factory, informer, other := informersOf(w)
	seen := make(chan string, 1000)
	say := func(what string) func(any) {
		return func(object any) {
			switch found := object.(type) {
			case *core.ConfigMap:
				seen <- what + " " + found.Name + " " + found.Data["a"]
			case *apps.Deployment:
				seen <- what + " " + found.Name
			}
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: say("add"), UpdateFunc: func(_, object any) { say("update")(object) }, DeleteFunc: say("delete"),
	}
	for _, informer := range []cache.SharedIndexInformer{informer, other} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(w)
	defer factory.Shutdown()
	defer stop()
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("%v never synced", kind)
		}
	}
	if w.wire.streamed == 0 {
		return errors.New("no informer streamed its list")
	}
	after := object("after")
	if _, err := maps.Create(w, after, meta1.CreateOptions{}); err != nil {
		return err
	}
	after.Data = map[string]string{"a": "1"}
	if _, err := maps.Update(w, after, meta1.UpdateOptions{}); err != nil {
		return err
	}
	if err := maps.Delete(w, "after", meta1.DeleteOptions{}); err != nil {
		return err
	}
	for _, wanted := range []string{"add before ", "add after ", "update after 1", "delete after 1"} {
		for found := ""; found != wanted; {
			select {
			case found = <-seen:
			case <-w.Done():
				return fmt.Errorf("never seen: %q", wanted)
			}
		}
	}
	return maps.Delete(w, "before", meta1.DeleteOptions{})
}

// election: the second candidate leads when the first one lets go.
func election(w *world) error {
	led := make(chan string, 2)
	candidate := func(ctx context.Context, name string) {
		lock := &resourcelock.LeaseLock{
			LeaseMeta:  meta1.ObjectMeta{Name: "tour", Namespace: w.namespace},
			Client:     w.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: name},
		}
		leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
			Lock: lock, ReleaseOnCancel: true,
			LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 200 * time.Millisecond,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) { led <- name }, OnStoppedLeading: func() {},
			},
		})
	}
	first, stop := context.WithCancel(w)
	defer stop()
	second, end := context.WithCancel(w)
	defer end()
	go candidate(first, "first")
	if leader := <-led; leader != "first" {
		return fmt.Errorf("%s leads", leader)
	}
	go candidate(second, "second")
	stop()
	select {
	case <-led:
		return nil
	case <-w.Done():
		return errors.New("nobody took over")
	}
}

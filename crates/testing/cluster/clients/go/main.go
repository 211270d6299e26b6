// Command clients does what controllers do, through client-go in protobuf: ten built-in kinds through typed clients, a custom kind through
// the dynamic one, informers that stream their first list, an election. `KUBECONFIG` and `NAMESPACE` say where; the exit code says how it went.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// How long all of it may take.
const limit = 100 * time.Second

type world struct {
	context.Context
	config    *rest.Config
	client    *kubernetes.Clientset
	dynamic   dynamic.Interface
	namespace string
	wire      *wire
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	w, err := connect(ctx)
	parts := []struct {
		name string
		run  func(*world) error
	}{
		{"ten kinds", tenKinds},
		{"protobuf", onlyProtobuf},
		{"subresources", subresources},
		{"a custom kind", customKind},
		{"a chart's releases", charts},
		{"informers", streams},
		{"election", election},
	}
	for _, part := range parts {
		if err != nil {
			break
		}
		begin := time.Now()
		if err = part.run(w); err != nil {
			err = fmt.Errorf("%s: %w", part.name, err)
			break
		}
		fmt.Printf("%s: %d ms\n", part.name, time.Since(begin).Milliseconds())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func connect(ctx context.Context) (*world, error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 500, 500
	wire := newWire()
	config.Wrap(wire.around)
	plain := rest.CopyConfig(config)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dynamic, err := dynamic.NewForConfig(plain)
	if err != nil {
		return nil, err
	}
	return &world{ctx, config, client, dynamic, os.Getenv("NAMESPACE"), wire}, nil
}

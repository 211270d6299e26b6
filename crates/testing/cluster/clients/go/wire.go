package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// wire remembers what went over the connection.
type wire struct {
	mutex sync.Mutex
	// Answers with another content type than they should have had.
	odd []string
	// Watches that asked for the state before the changes.
	streamed int
	protobuf int
}

func newWire() *wire { return &wire{} }

type trip func(*http.Request) (*http.Response, error)

func (t trip) RoundTrip(request *http.Request) (*http.Response, error) { return t(request) }

func (w *wire) around(next http.RoundTripper) http.RoundTripper {
	return trip(func(request *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(request)
		if err != nil {
			return response, err
		}
		w.mutex.Lock()
		defer w.mutex.Unlock()
		if request.URL.Query().Get("sendInitialEvents") == "true" && response.StatusCode == http.StatusOK {
			w.streamed++
		}
		if strings.HasPrefix(request.Header.Get("Accept"), "application/vnd.kubernetes.protobuf") {
			kind := response.Header.Get("Content-Type")
			if strings.HasPrefix(kind, "application/vnd.kubernetes.protobuf") {
				w.protobuf++
			} else {
				w.odd = append(w.odd, fmt.Sprintf("%s %s: %d %s", request.Method, request.URL.Path, response.StatusCode, kind))
			}
		}
		return response, nil
	})
}

// onlyProtobuf fails where the typed clients got something else.
func onlyProtobuf(w *world) error {
	w.wire.mutex.Lock()
	defer w.wire.mutex.Unlock()
	if len(w.wire.odd) > 0 || w.wire.protobuf == 0 {
		return fmt.Errorf("%d answers in protobuf, but also: %s", w.wire.protobuf, strings.Join(w.wire.odd, "; "))
	}
	return nil
}

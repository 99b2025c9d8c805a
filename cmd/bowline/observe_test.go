package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestLogFlags(t *testing.T) {
	var out bytes.Buffer
	f := logFlags{level: "warn", format: "json"}
	log, err := f.logger(&out)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("no")
	log.Warn("yes", "volume", "v")
	if got := out.String(); !strings.HasPrefix(got, "{") || strings.Contains(got, "no") || !strings.Contains(got, `"volume":"v"`) {
		t.Errorf("logged %q", got)
	}
	for _, f := range []logFlags{{"loud", "text"}, {"info", "xml"}, {}} {
		var usage usageError
		if _, err := f.logger(io.Discard); !errors.As(err, &usage) {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

func TestObservation(t *testing.T) {
	o := observation{
		metrics: newRegistry(),
		ready:   func(context.Context) error { return errors.New("not yet") },
	}
	server := httptest.NewServer(o.handler())
	defer server.Close()
	for path, want := range map[string]struct {
		code int
		body string
	}{
		"/metrics": {http.StatusOK, "go_goroutines"},
		"/healthz": {http.StatusOK, "ok"},
		"/readyz":  {http.StatusServiceUnavailable, "not yet"},
		"/":        {http.StatusNotFound, ""},
	} {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want.code || !strings.Contains(string(body), want.body) {
			t.Errorf("%s: %d %q, %v", path, resp.StatusCode, body, err)
		}
	}
}

func TestObservationStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- observation{metrics: newRegistry()}.serve(ctx, "127.0.0.1:0") }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := (observation{}).serve(t.Context(), "256.0.0.1:0"); err == nil {
		t.Error("listening nowhere")
	}
}

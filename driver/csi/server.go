package csi

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// NewServer returns a gRPC server without services that logs each request and
// measures it in csi_plugin_operations_seconds, which it registers.
//
// The log has the volume, the request, the claim and the pod as far as they are
// known, and the duration. It has no secrets: nothing else of a request is logged.
func NewServer(log *slog.Logger, metrics prometheus.Registerer) (*grpc.Server, error) {
	// Name, labels and buckets are those of other drivers, for their dashboards.
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "csi_plugin_operations_seconds",
		Help:    "Duration of CSI operations, in seconds, by their gRPC status code.",
		Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600},
	}, []string{"driver_name", "method_name", "grpc_status_code"})
	if err := metrics.Register(seconds); err != nil {
		return nil, fmt.Errorf("metrics of CSI operations: %w", err)
	}
	observe := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		began := time.Now()
		resp, err := handler(ctx, req)
		took := time.Since(began)
		code := status.Code(err)
		seconds.WithLabelValues(DriverName, info.FullMethod, code.String()).Observe(took.Seconds())
		attrs := append(identify(req, resp), slog.Duration("duration", took))
		message := "done"
		if err != nil {
			message = "failed"
			attrs = append(attrs, slog.String("code", code.String()), slog.String("error", status.Convert(err).Message()))
		}
		method := path.Base(info.FullMethod)
		attrs = append([]slog.Attr{slog.String("request", method)}, attrs...)
		log.LogAttrs(ctx, severity(method, code), message, attrs...)
		return resp, err
	}
	return grpc.NewServer(grpc.UnaryInterceptor(observe)), nil
}

// severity is how much a request matters to who reads the log.
func severity(method string, code codes.Code) slog.Level {
	switch code {
	case codes.OK:
		for _, question := range []string{"Get", "List", "Validate", "Probe"} {
			if strings.Contains(method, question) {
				return slog.LevelDebug
			}
		}
		return slog.LevelInfo
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return slog.LevelError
	}
	return slog.LevelWarn
}

// identify returns what a request is about.
func identify(req, resp any) []slog.Attr {
	var attrs []slog.Attr
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	object := func(m map[string]string, key string) string {
		name := m["csi.storage.k8s.io/"+key+".name"] + m["csi.storage.k8s.io/"+key+"/name"]
		if name == "" {
			return ""
		}
		return m["csi.storage.k8s.io/"+key+".namespace"] + m["csi.storage.k8s.io/"+key+"/namespace"] + "/" + name
	}
	switch r := req.(type) {
	case *spec.CreateVolumeRequest:
		id := ""
		if created, ok := resp.(*spec.CreateVolumeResponse); ok {
			id = created.GetVolume().GetVolumeId()
		}
		add("volume", id)
		add("name", r.GetName())
		add("source", r.GetVolumeContentSource().GetVolume().GetVolumeId())
		add("claim", object(r.GetParameters(), "pvc"))
	case interface{ GetVolumeId() string }:
		add("volume", r.GetVolumeId())
	}
	if r, ok := req.(interface{ GetVolumeContext() map[string]string }); ok {
		add("pod", object(r.GetVolumeContext(), "pod"))
	}
	if r, ok := req.(interface{ GetStagingTargetPath() string }); ok {
		add("staging", r.GetStagingTargetPath())
	}
	if r, ok := req.(interface{ GetTargetPath() string }); ok {
		add("target", r.GetTargetPath())
	}
	return attrs
}

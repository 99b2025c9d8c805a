package registration_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/registration"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kubelet "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type identity struct {
	spec.UnimplementedIdentityServer
}

func (identity) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: "d"}, nil
}

// startDriver makes a driver answer at socket.
func startDriver(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	spec.RegisterIdentityServer(s, identity{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// await waits until cond holds, 10 s at the most.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func TestRegistration(t *testing.T) {
	dir := t.TempDir()
	csi, socket := filepath.Join(dir, "csi.sock"), filepath.Join(dir, "reg.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // left by a predecessor
		t.Fatal(err)
	}
	r := registration.New("d", csi, socket, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx) }()

	// As long as the driver does not answer, the kubelet is not to know of it.
	time.Sleep(300 * time.Millisecond)
	if fi, err := os.Stat(socket); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("before the driver answers: %v, %v", fi, err)
	}
	if err := r.Registered(); err == nil {
		t.Error("registered before anybody asked")
	}
	startDriver(t, csi)
	await(t, "the socket", func() bool { fi, err := os.Stat(socket); return err == nil && fi.Mode()&os.ModeSocket != 0 })

	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := kubelet.NewRegistrationClient(conn)
	info, err := client.GetInfo(t.Context(), &kubelet.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.GetType() != kubelet.CSIPlugin || info.GetName() != "d" || info.GetEndpoint() != csi || len(info.GetSupportedVersions()) != 1 {
		t.Errorf("%v, %v", info, err)
	}
	for _, s := range []*kubelet.RegistrationStatus{{PluginRegistered: false, Error: "no"}, {PluginRegistered: true}} {
		if _, err := client.NotifyRegistrationStatus(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if err := r.Registered(); (err == nil) != s.GetPluginRegistered() {
			t.Errorf("told %v: %v", s, err)
		}
	}

	if err := r.Check(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if exists(socket) {
		t.Error("the socket is still there")
	}
	if err := r.Check(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Check without the socket: %v", err)
	}
}

func TestStopWhileWaiting(t *testing.T) {
	dir := t.TempDir()
	r := registration.New("d", filepath.Join(dir, "csi.sock"), filepath.Join(dir, "reg.sock"), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Serve(ctx); err != nil {
		t.Error(err)
	}
	if err := r.Check(); err != nil {
		t.Errorf("the kubelet never knew it: %v", err)
	}
}

func TestNoDirectory(t *testing.T) {
	dir := t.TempDir()
	csi := filepath.Join(dir, "csi.sock")
	startDriver(t, csi)
	if err := registration.New("d", csi, filepath.Join(dir, "missing", "reg.sock"), slog.New(slog.DiscardHandler)).Serve(t.Context()); err == nil {
		t.Error("no error without the directory of the kubelet")
	}
}

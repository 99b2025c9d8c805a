// Package registration makes the driver known to the kubelet. The kubelet watches
// a directory for sockets and asks each what it is; with this, the driver needs no
// registrar beside it.
package registration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kubelet "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// supportedVersions are the versions of CSI, as the kubelet counts them.
var supportedVersions = []string{"1.0.0"}

// Registrar tells the kubelet of a driver.
type Registrar struct {
	kubelet.UnimplementedRegistrationServer
	name      string
	csiSocket string
	socket    string
	log       *slog.Logger

	// state is what the kubelet said last; nil as long as it said nothing.
	state atomic.Pointer[kubelet.RegistrationStatus]
}

// New returns a registrar for the driver of this name. The driver answers at
// csiSocket, and the kubelet finds the registrar at socket; both paths must be the
// same for the kubelet.
func New(name, csiSocket, socket string, log *slog.Logger) *Registrar {
	return &Registrar{name: name, csiSocket: csiSocket, socket: socket, log: log}
}

// Serve waits until the driver answers, and then answers the kubelet until ctx is
// done. The socket is removed at the end, which tells the kubelet that the driver
// is gone.
func (r *Registrar) Serve(ctx context.Context) error {
	if err := r.awaitDriver(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("waiting for the driver at %s: %w", r.csiSocket, err)
	}
	// A predecessor that was killed has left its socket. One that still runs
	// would take it away from the kubelet when it stops, which Check finds.
	if err := os.Remove(r.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("registering with the kubelet: %w", err)
	}
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		return fmt.Errorf("registering with the kubelet: %w", err)
	}
	if err := os.Chmod(r.socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("registering with the kubelet: %w", err), l.Close())
	}
	s := grpc.NewServer()
	kubelet.RegisterRegistrationServer(s, r)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	r.log.Info("waiting for the kubelet to register the driver", "socket", r.socket)
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("registering with the kubelet at %s: %w", r.socket, err)
	}
	return nil
}

// awaitInterval is how often the driver is asked whether it answers.
const awaitInterval = 100 * time.Millisecond

func (r *Registrar) awaitDriver(ctx context.Context) error {
	conn, err := grpc.NewClient("unix:"+r.csiSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := spec.NewIdentityClient(conn)
	for {
		ask, cancel := context.WithTimeout(ctx, 10*awaitInterval)
		_, err := client.GetPluginInfo(ask, &spec.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		cancel()
		if err == nil {
			return nil
		}
		r.log.Debug("the driver does not answer yet", "socket", r.csiSocket, "error", err)
		select {
		case <-time.After(awaitInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// GetInfo implements kubelet.RegistrationServer.
func (r *Registrar) GetInfo(context.Context, *kubelet.InfoRequest) (*kubelet.PluginInfo, error) {
	return &kubelet.PluginInfo{
		Type:              kubelet.CSIPlugin,
		Name:              r.name,
		Endpoint:          r.csiSocket,
		SupportedVersions: supportedVersions,
	}, nil
}

// NotifyRegistrationStatus implements kubelet.RegistrationServer. The kubelet tries
// again by itself when it could not register the driver.
func (r *Registrar) NotifyRegistrationStatus(_ context.Context, s *kubelet.RegistrationStatus) (*kubelet.RegistrationStatusResponse, error) {
	r.state.Store(s)
	if s.GetPluginRegistered() {
		r.log.Info("the kubelet has registered the driver")
	} else {
		r.log.Error("the kubelet could not register the driver", "error", s.GetError())
	}
	return &kubelet.RegistrationStatusResponse{}, nil
}

// Registered returns nil if the kubelet has registered the driver, or why it has
// not.
func (r *Registrar) Registered() error {
	switch s := r.state.Load(); {
	case s == nil:
		return errors.New("the kubelet has not asked for the driver yet")
	case !s.GetPluginRegistered():
		return fmt.Errorf("the kubelet could not register the driver: %s", s.GetError())
	}
	return nil
}

// Check returns an error if the kubelet knows the driver but would not find it
// after a restart, because the socket is gone. Only a restart of this process
// helps.
func (r *Registrar) Check() error {
	if r.state.Load() == nil {
		return nil
	}
	if _, err := os.Stat(r.socket); err != nil {
		return fmt.Errorf("the kubelet cannot find the driver any more: %w", err)
	}
	return nil
}

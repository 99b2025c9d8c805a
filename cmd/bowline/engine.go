package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// engineOptions are the flags of `bowline engine`.
type engineOptions struct {
	socket      string
	httpAddress string
	serve       bool
	log         logFlags
}

func newEngineCommand() *cobra.Command {
	o := &engineOptions{}
	cmd := &cobra.Command{
		Use:   "engine",
		Short: "Serve the blocks of the volumes of this node",
		Long: `Serve the blocks of the volumes of this node.

It consists of two processes: one holds what the kernel must not lose, the other
one, which it starts, serves. If that dies, it is started again and takes over;
those who use volumes wait for a moment and get no error, if the kernel is Linux
6.9 or later. If both die, they get I/O errors.

Asked to end (SIGTERM), it attaches no more volumes and ends when none is in use.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := o.log.logger(os.Stderr)
			if err != nil {
				return err
			}
			if o.serve {
				return o.runServer(cmd.Context(), log)
			}
			// The same command line, so that the server has all the flags.
			args := append([]string{"/proc/self/exe"}, os.Args[1:]...)
			return daemon.Supervise(cmd.Context(), o.socket, append(args, "--serve"), log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.socket, "socket", "/run/bowline/engine.sock", "unix socket to listen at")
	f.StringVar(&o.httpAddress, "http-address", ":9809", "host:port of /metrics, /healthz and /readyz; empty: none")
	f.BoolVar(&o.serve, "serve", false, "")
	_ = f.MarkHidden("serve")
	o.log.add(cmd)
	return cmd
}

// runServer is the process that serves.
func (o *engineOptions) runServer(ctx context.Context, log *slog.Logger) error {
	server := engine.NewServer()
	metrics := newRegistry()
	if err := metrics.Register(server); err != nil {
		return fmt.Errorf("registering the metrics of volumes: %w", err)
	}
	var ready atomic.Bool
	seen := observation{
		metrics: metrics,
		// That it answers is enough to live: who restarts the container takes
		// the volumes away from those who use them.
		ready: func(context.Context) error {
			if !ready.Load() {
				return errors.New("volumes are being taken over from a process that died")
			}
			return nil
		},
	}
	// Whoever cannot look at the engine does not do without volumes for that.
	looked, stop := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error {
		if err := seen.serve(looked, o.httpAddress); err != nil {
			log.Error("metrics and health", "error", err)
		}
		return nil
	})
	err := daemon.Serve(ctx, server, log, func() { ready.Store(true) })
	stop()
	return errors.Join(err, g.Wait())
}

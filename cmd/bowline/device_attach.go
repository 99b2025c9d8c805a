package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// readyFD is where a process in the background says that it serves: its parent
// holds the other end of the pipe.
const readyFD = 3

func (o *deviceOptions) attachCommand() *cobra.Command {
	var daemon, child, ioUring bool
	var blockSize int32
	cmd := &cobra.Command{
		Use:   "attach PATH",
		Short: "Put a mapping on an image or a block device and print the mapped block device",
		Long: `Put a mapping on an image or a block device and print the mapped block device,
which is what to make a file system on, or to mount.

The process serves the device until 'bowline device detach', or until it is
interrupted and the device is not in use.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if blockSize != 0 && !blockdev.ValidBlockSize(int(blockSize)) {
				return usageError{fmt.Errorf("--block-size %d: it is 512, 1024, 2048 or 4096", blockSize)}
			}
			path, err := realPath(args[0])
			if err != nil {
				return err
			}
			if err := os.MkdirAll(o.runDir, 0o700); err != nil {
				return err
			}
			name := volumeName(path)
			s := &attachServer{
				path: path, name: name, blockSize: blockSize, ioUring: ioUring,
				socket: filepath.Join(o.runDir, name+socketSuffix),
				out:    cmd.OutOrStdout(), log: cmd.ErrOrStderr(),
			}
			if err := refuseAttached(cmd.Context(), o.runDir, path); err != nil {
				return err
			}
			if err := refuseLoop(path); err != nil {
				return err
			}
			if daemon && !child {
				return s.startInBackground(cmd.Context())
			}
			if child {
				ready := os.NewFile(readyFD, "ready")
				defer ready.Close()
				s.out = ready
			}
			err = s.run(cmd.Context())
			if err == nil && child {
				os.Remove(s.logPath()) // of no interest after a good end
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&daemon, "daemon", false, "serve in the background")
	cmd.Flags().BoolVar(&child, "background-child", false, "")
	cmd.Flags().MarkHidden("background-child")
	cmd.Flags().Int32Var(&blockSize, "block-size", 0, "logical block size of the mapped device: 512, 1024, 2048 or 4096 bytes (default: what fits the file system, 4096 if there is none)")
	cmd.Flags().BoolVar(&ioUring, "io-uring", false, "have requests brought over io_uring, with fewer system calls for each (Linux 6.14; switches on the kernel's fuse.enable_uring)")
	return cmd
}

// attachServer is an engine process for one volume.
type attachServer struct {
	path, name, socket string
	blockSize          int32
	ioUring            bool
	out                io.Writer // gets the path of the mapped device when it is there
	log                io.Writer
}

// run attaches the volume and serves it until it is detached.
func (s *attachServer) run(ctx context.Context) error {
	// A goroutine that comes out of a system call needs a processor of the
	// scheduler, and with as few of these as there are cores the calls that
	// last hold them all. Twice to three times the rate at queue depth 32.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(8, 4*runtime.NumCPU()))
	}
	server := engine.NewServer()
	v, err := server.Attach(ctx, &enginepb.AttachRequest{Name: s.name, Path: s.path, BlockSize: s.blockSize, IoUring: s.ioUring})
	if err != nil {
		return err
	}
	if v.Open != nil {
		fmt.Fprintf(s.log, "bowline: carrying on with checkpoint %s of %s; when it is mounted, run 'bowline device trim %s'\n",
			v.Open.Id, v.Open.Opened.AsTime().Local().Format(time.DateTime), s.path)
	}
	// What comes now must not end half-done because of a signal.
	ctx = context.WithoutCancel(ctx)
	listener, err := engine.Listen(s.socket)
	if err != nil {
		return errors.Join(err, server.Close(ctx))
	}

	// With its only volume the process ends.
	var g *grpc.Server
	g = grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		resp, err := handle(ctx, req)
		if err == nil && info.FullMethod == enginepb.Engine_Detach_FullMethodName {
			go g.GracefulStop()
		}
		return resp, err
	}))
	server.Register(g)

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM)
	stopped := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stopped:
				return
			case <-signals:
				if err := server.Close(ctx); err != nil {
					fmt.Fprintf(s.log, "bowline: still serving: %v\n", err)
					continue
				}
				g.GracefulStop()
				return
			}
		}
	}()

	fmt.Fprintln(s.out, v.Device)
	if c, ok := s.out.(io.Closer); ok && s.out != os.Stdout {
		c.Close()
	}
	err = g.Serve(listener)
	close(stopped)
	signal.Stop(signals)
	<-watched
	return errors.Join(err, server.Close(ctx))
}

// logPath is what a process in the background writes its messages to.
func (s *attachServer) logPath() string {
	return strings.TrimSuffix(s.socket, socketSuffix) + ".log"
}

// startInBackground runs this command again in a session of its own, and returns
// when that serves.
func (s *attachServer) startInBackground(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	logPath := s.logPath()
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	ready, childReady, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(self, append(slices.Clone(os.Args[1:]), "--background-child")...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{childReady}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = cmd.Start()
	childReady.Close()
	if err != nil {
		return err
	}
	device, err := bufio.NewReader(ready).ReadString('\n')
	if err == nil {
		fmt.Fprint(s.out, device)
		return cmd.Process.Release()
	}
	// It ended before it served; its log says why.
	err = cmd.Wait()
	said, _ := os.ReadFile(logPath)
	os.Remove(logPath)
	return &childError{exec: err, said: strings.TrimPrefix(strings.TrimSpace(string(said)), "bowline: ")}
}

// childError is the failure of a process that was to serve in the background.
type childError struct {
	exec error
	said string
}

func (e *childError) Error() string {
	if e.said != "" {
		return e.said
	}
	return fmt.Sprintf("the process in the background ended: %v", e.exec)
}

// exitCode is the exit code of the child.
func (e *childError) exitCode() int {
	var exit *exec.ExitError
	if errors.As(e.exec, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	return exitFailed
}

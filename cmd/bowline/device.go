package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/volume"
	"github.com/spf13/cobra"
)

// deviceOptions are the flags of all `bowline device` commands.
type deviceOptions struct {
	runDir string // where the sockets of attached volumes are
}

func newDeviceCommand() *cobra.Command {
	o := &deviceOptions{}
	cmd := &cobra.Command{
		Use:   "device",
		Short: "Checkpoint, commit and roll back an image or a block device of this machine",
		Long: `Checkpoint, commit and roll back an image or a block device of this machine.

Where a command takes a TARGET, that is the image or block device which is
attached, the mapped block device, or where that is mounted.

` + exitCodesHelp,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&o.runDir, "run-dir", "/run/bowline/device", "directory for the sockets of attached volumes")
	cmd.AddCommand(
		o.attachCommand(), o.detachCommand(), o.listCommand(), o.statusCommand(),
		o.checkpointCommand(), o.commitCommand(), o.trimCommand(),
		o.inspectCommand(), o.verifyCommand(), o.restoreCommand(), o.rollForwardCommand(),
		benchCommand(),
	)
	return cmd
}

// onTarget makes the body of a command of f, which gets the attached volume that
// the first argument means.
func (o *deviceOptions) onTarget(f func(cmd *cobra.Command, a *attachment) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a, err := find(cmd.Context(), o.runDir, args[0])
		if err != nil {
			return err
		}
		defer a.close()
		return f(cmd, a)
	}
}

func (o *deviceOptions) detachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "detach TARGET",
		Short: "Take the mapping of a volume away; an open checkpoint stays on the device",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := find(cmd.Context(), o.runDir, args[0])
			if errors.Is(err, errNotAttached) {
				return o.detachDead(cmd, args[0], err)
			}
			if err != nil {
				return err
			}
			defer a.close()
			if _, err := a.Client.Detach(cmd.Context(), &enginepb.DetachRequest{Name: a.Name}); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is detached\n", a.state.Path)
			if a.state.State == enginepb.State_CHECKPOINT {
				fmt.Fprintf(cmd.OutOrStdout(), "a checkpoint is open on it: 'bowline device restore %s' goes back to it, attaching carries on\n", a.state.Path)
			}
			return nil
		},
	}
}

// detachDead removes what a process that has died left of target, or returns
// notAttached if there is no such thing.
func (o *deviceOptions) detachDead(cmd *cobra.Command, target string, notAttached error) error {
	e, err := findDead(cmd.Context(), target)
	if err != nil {
		return err
	}
	if e == nil {
		return notAttached
	}
	if err := removeDead(cmd.Context(), o.runDir, e); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s, whose process had died, is removed\n", e.Path)
	return nil
}

func (o *deviceOptions) checkpointCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint TARGET",
		Short: "Open a checkpoint: from now on, this instant can be had back",
		Long: `Open a checkpoint: from now on, this instant can be had back.

The free space of the mounted file system is found while its users go on; then
the file system is frozen for the moment that the switch takes.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: o.onTarget(func(cmd *cobra.Command, a *attachment) error {
			mountpoint, err := a.mountpoint()
			if err != nil {
				return err
			}
			t, err := volume.Checkpoint(cmd.Context(), a, mountpoint)
			if err != nil {
				return err
			}
			v, err := a.Client.Get(cmd.Context(), &enginepb.GetRequest{Name: a.Name})
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "checkpoint %s is open on %s\n", v.Open.GetId(), v.Path)
			if mountpoint != "" {
				fmt.Fprintf(out, "free space found in %s; %s was frozen for %s\n", round(t.Trim), mountpoint, round(t.Frozen))
			}
			fmt.Fprintf(out, "%s free for backups\n", size(v.Free))
			return nil
		}),
	}
}

func (o *deviceOptions) trimCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "trim TARGET",
		Short: "Find free space for backups after carrying on with a checkpoint",
		Long: `Find free space for backups after carrying on with a checkpoint.

A volume that is attached with an open checkpoint has only a small reserve for
backups, until its file system is mounted and has said what is free.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: o.onTarget(func(cmd *cobra.Command, a *attachment) error {
			mountpoint, err := a.mountpoint()
			if err != nil {
				return err
			}
			if mountpoint == "" {
				return stateError(fmt.Sprintf("%s is not mounted: there is nobody to ask what is free", a.state.Device))
			}
			if a.state.State != enginepb.State_CHECKPOINT {
				return stateError(fmt.Sprintf("no checkpoint is open on %s", a.state.Path))
			}
			if err := volume.FindFree(cmd.Context(), a, mountpoint); err != nil {
				return err
			}
			v, err := a.Client.Get(cmd.Context(), &enginepb.GetRequest{Name: a.Name})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s free for backups\n", size(v.Free))
			return nil
		}),
	}
}

func (o *deviceOptions) commitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "commit TARGET",
		Short: "End the checkpoint and keep what is there now",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: o.onTarget(func(cmd *cobra.Command, a *attachment) error {
			began := time.Now()
			v, err := a.Client.Commit(cmd.Context(), &enginepb.CommitRequest{Name: a.Name})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is committed (%s)\n", v.Path, round(time.Since(began)))
			return nil
		}),
	}
}

func (o *deviceOptions) listCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the attached volumes",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := attachments(cmd.Context(), o.runDir)
			if err != nil {
				return err
			}
			reports := make([]volumeReport, 0, len(list))
			for _, a := range list {
				defer a.close()
				r, err := report(a.state, a)
				if err != nil {
					return err
				}
				reports = append(reports, r)
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), reports)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "PATH\tDEVICE\tMOUNTED AT\tSTATE\tSIZE\tFREE\tBACKED UP")
			for _, r := range reports {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Path, r.Device, r.MountedAt, r.State, size(r.Size), size(r.Free), size(r.BackedUp))
			}
			return w.Flush()
		},
	}
	cmd.Flags().VarP(&output, "output", "o", "form of the output: table or json")
	return cmd
}

func (o *deviceOptions) statusCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "status TARGET",
		Short: "Tell the state of an attached volume",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: o.onTarget(func(cmd *cobra.Command, a *attachment) error {
			r, err := report(a.state, a)
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return r.write(cmd.OutOrStdout())
		}),
	}
	cmd.Flags().VarP(&output, "output", "o", "form of the output: table or json")
	return cmd
}

// volumeReport is what status and list tell of a volume; its JSON form is part of
// the interface. Sizes are in bytes.
type volumeReport struct {
	Name      string `json:"name"`
	Path      string `json:"path"`
	Device    string `json:"device"`
	MountedAt string `json:"mountedAt,omitempty"`
	State     string `json:"state"`
	Size      int64  `json:"size"`
	BlockSize int32  `json:"blockSize"`
	Free      int64  `json:"free"` // usable for backups, as far as known
	IOUring   bool   `json:"ioUring,omitempty"`

	// Operations of the backing device that failed.
	DeviceErrors    uint64    `json:"deviceErrors"`
	LastDeviceError string    `json:"lastDeviceError,omitempty"`
	DeviceErrorAt   time.Time `json:"deviceErrorAt,omitzero"`

	// The rest is of the open checkpoint.
	Checkpoint   string    `json:"checkpoint,omitempty"`
	Opened       time.Time `json:"opened,omitzero"`
	AgeSeconds   float64   `json:"ageSeconds,omitempty"`
	BackedUp     int64     `json:"backedUp"`
	Changed      int64     `json:"changed"`
	BackupUsed   int64     `json:"backupUsed"`
	MovedBackups int64     `json:"movedBackups"`
	LogSequence  uint32    `json:"logSequence"`
	LogWrites    int64     `json:"logWrites"`
	OutOfSpace   int64     `json:"outOfSpace"` // requests that failed for want of free space
	LogUnsettled bool      `json:"logUnsettled"`
}

var stateNames = map[enginepb.State]string{
	enginepb.State_TRIM:       "trim",
	enginepb.State_CHECKPOINT: "checkpoint",
	enginepb.State_COMMITTED:  "committed",
}

func report(v *enginepb.Volume, a *attachment) (volumeReport, error) {
	mountpoint, err := a.mountpoint()
	if err != nil {
		return volumeReport{}, err
	}
	r := volumeReport{
		Name: v.Name, Path: v.Path, Device: v.Device, MountedAt: mountpoint,
		State: stateNames[v.State], Size: v.Size, BlockSize: v.BlockSize, Free: v.Free, IOUring: v.IoUring,
	}
	if f := v.Failures; f != nil {
		r.DeviceErrors, r.LastDeviceError, r.DeviceErrorAt = f.Count, f.Last, f.At.AsTime()
	}
	if c := v.Open; c != nil {
		r.Checkpoint, r.Opened = c.Id, c.Opened.AsTime()
		r.AgeSeconds = time.Since(r.Opened).Seconds()
		r.BackedUp, r.Changed, r.BackupUsed, r.MovedBackups = c.BackedUp, c.Changed, c.BackupUsed, c.Moved
		r.LogSequence, r.LogWrites, r.OutOfSpace, r.LogUnsettled = c.LogSequence, c.LogWrites, c.OutOfSpace, c.Unsettled
	}
	return r, nil
}

func (r volumeReport) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	line("Backing device", "%s", r.Path)
	line("Mapped device", "%s", r.Device)
	if r.IOUring {
		line("Requests", "over io_uring")
	}
	if r.MountedAt != "" {
		line("Mounted at", "%s", r.MountedAt)
	}
	line("Size", "%s in blocks of %d", size(r.Size), r.BlockSize)
	line("State", "%s", r.State)
	line("Free for backups", "%s", size(r.Free))
	if r.DeviceErrors > 0 {
		line("Device errors", "%d, the last one %s: %s", r.DeviceErrors, r.DeviceErrorAt.Local().Format(time.DateTime), r.LastDeviceError)
	}
	if r.Checkpoint != "" {
		line("Checkpoint", "%s, opened %s, %s ago", r.Checkpoint, r.Opened.Local().Format(time.DateTime), round(time.Since(r.Opened)))
		line("Backed up", "%s", size(r.BackedUp))
		line("Changed", "%s", size(r.Changed))
		line("Used by backups", "%s, of which %s had to move", size(r.BackupUsed), size(r.MovedBackups))
		line("Log", "block %d, written %d times", r.LogSequence, r.LogWrites)
		if r.OutOfSpace > 0 {
			line("Out of space", "%d writes failed for want of free space", r.OutOfSpace)
		}
		if r.LogUnsettled {
			line("Log error", "the last write of the log failed; the next write tries again")
		}
	}
	return w.Flush()
}

// outputFlag is the value of --output.
type outputFlag string

func (f *outputFlag) String() string {
	if *f == "" {
		return "table"
	}
	return string(*f)
}

func (f *outputFlag) Set(s string) error {
	if s != "table" && s != "json" {
		return fmt.Errorf("%q is neither table nor json", s)
	}
	*f = outputFlag(s)
	return nil
}

func (f *outputFlag) Type() string { return "form" }

func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// size formats a number of bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	x, u := float64(n)/1024, 0
	for x >= 1024 && u < len(units)-1 {
		x, u = x/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", x, units[u])
}

// round makes a duration short enough to read.
func round(d time.Duration) time.Duration {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}

var _ volume.Mapping = (*attachment)(nil)

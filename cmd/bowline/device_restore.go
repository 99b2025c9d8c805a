package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/spf13/cobra"
)

// openBare opens a device that is not attached, for as long as f runs. A log with
// blocks smaller than direct I/O can do is read through the page cache.
func (o *deviceOptions) openBare(ctx context.Context, path string, f func(dev *blockdev.File) error, flags ...blockdev.Flag) error {
	real, err := realPath(path)
	if err != nil {
		return err
	}
	if err := refuseAttached(ctx, o.runDir, real); err != nil {
		return err
	}
	dev, err := blockdev.Open(real, append(flags, blockdev.Exclusive)...)
	if errors.Is(err, blockdev.ErrInUse) {
		return fmt.Errorf("%w: is it mounted or attached?", err)
	}
	if err != nil {
		return err
	}
	if err := refuseLoop(real); err != nil {
		return errors.Join(err, dev.Close())
	}
	err = f(dev)
	if errors.Is(err, restore.ErrBlockSize) {
		if cerr := dev.Close(); cerr != nil {
			return cerr
		}
		if dev, err = blockdev.Open(real, append(flags, blockdev.Exclusive, blockdev.Buffered)...); err != nil {
			return err
		}
		err = f(dev)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return errors.Join(err, dev.Close())
}

func (o *deviceOptions) inspectCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "inspect PATH",
		Short: "Show the log of a checkpoint on a device that is not attached",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.openBare(cmd.Context(), args[0], func(dev *blockdev.File) error {
				r, err := restore.Inspect(dev)
				if err != nil {
					return err
				}
				if output == "json" {
					return writeJSON(cmd.OutOrStdout(), r)
				}
				if err := writeReport(cmd.OutOrStdout(), r); err != nil {
					return err
				}
				if r.Damage != "" {
					return fmt.Errorf("%w: %s", bowlog.ErrCorrupt, r.Damage)
				}
				return nil
			}, blockdev.ReadOnly)
		},
	}
	cmd.Flags().VarP(&output, "output", "o", "form of the output: table or json")
	return cmd
}

func writeReport(out io.Writer, r *restore.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	line("Device", "%s in blocks of %d", size(r.DeviceSize), r.BlockSize)
	switch {
	case r.HalfRestored:
		line("State", "half-restored: a restore began and was interrupted; restore again")
	case r.Phase == bowlog.PhaseOpen.String():
		line("State", "a checkpoint is open")
	default:
		line("State", "%s a checkpoint was interrupted; attach or restore to finish it", r.Phase)
	}
	if c := r.Checkpoint; c != nil {
		line("Checkpoint", "%s, opened %s", c.ID, c.Opened.Local().Format(time.DateTime))
		if c.RollbackRequested {
			line("Rollback", "was asked for")
		}
	} else {
		line("Checkpoint", "written by dm-bow")
	}
	line("Log", "%d blocks, %d entries", r.Totals.LogBlocks, r.Totals.Entries)
	line("To put back", "%s", size(r.Totals.PutBack))
	line("Copies", "%s, of which %s had to move", size(r.Totals.Copied), size(r.Totals.Moved))
	if r.Damage != "" {
		line("Damage", "%s", r.Damage)
	}
	return w.Flush()
}

func (o *deviceOptions) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify PATH",
		Short: "Find out whether the checkpoint of a device can be restored; changes nothing",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.restore(cmd, args[0], true)
		},
	}
}

func (o *deviceOptions) restoreCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "restore PATH",
		Short: "Put a device back to its checkpoint",
		Long: `Put a device back to its checkpoint.

All copies are verified before anything is written. A restore that was
interrupted, by a power cut for instance, is simply started again. If the
checkpoint is damaged nothing is changed; 'bowline device roll-forward' then
keeps the current content.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.restore(cmd, args[0], dryRun)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "verify, tell what would be done, and change nothing")
	return cmd
}

func (o *deviceOptions) restore(cmd *cobra.Command, path string, dryRun bool) error {
	var flags []blockdev.Flag
	if dryRun {
		flags = append(flags, blockdev.ReadOnly)
	}
	bar := newProgressBar(cmd.ErrOrStderr())
	began := time.Now()
	return o.openBare(cmd.Context(), path, func(dev *blockdev.File) (err error) {
		copies, err := dev.Cached()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, copies.Close()) }()
		r, err := restore.Restore(cmd.Context(), dev, restore.Options{
			DryRun:   dryRun,
			Copies:   copies,
			Progress: func(p restore.Progress) { bar.show(string(p.Phase), p.Done, p.Total) },
		})
		bar.end()
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		switch {
		case r.Phase == bowlog.PhaseOpening:
			fmt.Fprintf(out, "opening the checkpoint had been interrupted: the device is as it was before\n")
		case r.Phase == bowlog.PhaseClosing:
			fmt.Fprintf(out, "a commit or restore had been interrupted at its very end: it is finished\n")
		case dryRun:
			fmt.Fprintf(out, "%s of copies in %d log entries are good; a restore puts %s back\n", size(r.Verified), r.Entries, size(r.PutBack))
		default:
			fmt.Fprintf(out, "%s put back in %s; the device is as it was at the checkpoint\n", size(r.PutBack), round(time.Since(began)))
		}
		return nil
	}, flags...)
}

func (o *deviceOptions) rollForwardCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "roll-forward PATH",
		Short: "End the checkpoint of a device that is not attached and keep the current content",
		Long: `End the checkpoint of a device that is not attached and keep the current content.
There is no way back after it. It works on a damaged checkpoint as well.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.openBare(cmd.Context(), args[0], func(dev *blockdev.File) error {
				if err := restore.RollForward(cmd.Context(), dev); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s has its current content and no checkpoint\n", args[0])
				return nil
			})
		},
	}
}

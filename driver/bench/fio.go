package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// work is what fio does to a device.
type work struct {
	key, name string
	rw        string // as fio calls it
	blockSize int    // bytes
	depth     int    // requests under way at once
	goal      float64
	uring     float64 // goal over io_uring; 0: none
}

func (w work) writes() bool { return w.rw == "write" || w.rw == "randwrite" }

// unit is what counts in w: operations for small blocks, bytes for large ones.
func (w work) unit() unit {
	if w.blockSize > 4<<10 {
		return throughput
	}
	return operations
}

// region is a part of a device, in bytes.
type region struct{ offset, length int64 }

// tally is what fio did.
type tally struct {
	ops, bytes int64
	time       time.Duration
}

func (t *tally) add(u tally) {
	t.ops += u.ops
	t.bytes += u.bytes
	t.time += u.time
}

// rate is t a second, in units of u.
func (t tally) rate(u unit) float64 {
	if u == throughput {
		return float64(t.bytes) / t.time.Seconds()
	}
	return float64(t.ops) / t.time.Seconds()
}

// fio does w in a region of a device. With a limit it goes on for that long,
// again and again over the region; if once is set as well, it touches each
// block once at the most, and may so be done before.
func fio(ctx context.Context, device string, w work, at region, limit time.Duration, once bool) (tally, error) {
	args := []string{
		"--name=bench", "--thread", "--output-format=json", "--direct=1", "--invalidate=0", "--allow_file_create=0",
		"--filename=" + device, "--rw=" + w.rw, "--bs=" + strconv.Itoa(w.blockSize),
		"--offset=" + strconv.FormatInt(at.offset, 10), "--size=" + strconv.FormatInt(at.length, 10),
	}
	if w.depth == 1 {
		args = append(args, "--ioengine=psync")
	} else {
		args = append(args, "--ioengine=libaio", "--iodepth="+strconv.Itoa(w.depth))
	}
	if limit > 0 {
		args = append(args, fmt.Sprintf("--runtime=%dms", limit.Milliseconds()))
		if !once {
			args = append(args, "--time_based")
		}
	}
	out, err := command(ctx, "fio", args...)
	if err != nil {
		return tally{}, err
	}
	t, err := parseFio(out, w.writes())
	if err != nil {
		return tally{}, fmt.Errorf("fio %s on %s: %w", w.rw, device, err)
	}
	return t, nil
}

// parseFio reads the report of a single job.
func parseFio(out []byte, writes bool) (tally, error) {
	type side struct {
		Bytes   int64 `json:"io_bytes"`
		Ops     int64 `json:"total_ios"`
		Runtime int64 `json:"runtime"` // milliseconds
	}
	var report struct {
		Jobs []struct {
			Error int  `json:"error"`
			Read  side `json:"read"`
			Write side `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return tally{}, fmt.Errorf("its report: %w", err)
	}
	if len(report.Jobs) != 1 {
		return tally{}, fmt.Errorf("its report is about %d jobs instead of 1", len(report.Jobs))
	}
	job := report.Jobs[0]
	s := job.Read
	if writes {
		s = job.Write
	}
	if job.Error != 0 {
		return tally{}, fmt.Errorf("I/O: %w", unix.Errno(job.Error))
	}
	if s.Runtime == 0 || s.Ops == 0 {
		return tally{}, fmt.Errorf("it did nothing")
	}
	return tally{ops: s.Ops, bytes: s.Bytes, time: time.Duration(s.Runtime) * time.Millisecond}, nil
}

package fuse

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// BenchmarkAgainstLoop compares exports of a file, over the descriptor and over
// io_uring, with a loop device with direct I/O on the same file. Each fio job runs some seconds whatever b.N is,
// so it is for -benchtime 1x. The files are made below TMPDIR, which has to be
// on a file system with direct I/O.
func BenchmarkAgainstLoop(b *testing.B) {
	needUring(b)
	image := filepath.Join(b.TempDir(), "image")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+image, "bs=1M", "count=1024", "oflag=direct", "conv=fsync").CombinedOutput(); err != nil {
		b.Fatalf("dd: %v\n%s", err, out)
	}
	for _, job := range []struct{ name, args string }{
		{"randread-4k-qd1", "--rw=randread --bs=4k --iodepth=1"},
		{"randwrite-4k-qd1", "--rw=randwrite --bs=4k --iodepth=1"},
		{"randread-4k-qd32", "--rw=randread --bs=4k --iodepth=32"},
		{"randwrite-4k-qd32", "--rw=randwrite --bs=4k --iodepth=32"},
		{"read-256k-qd8", "--rw=read --bs=256k --iodepth=8"},
		{"write-256k-qd8", "--rw=write --bs=256k --iodepth=8"},
	} {
		b.Run(job.name, func(b *testing.B) {
			var raw, classic, uring float64
			for b.Loop() {
				raw += onLoop(b, image, job.args)
				classic += onExport(b, image, job.args, Options{Name: testName()})
				uring += onExport(b, image, job.args, Options{Name: testName(), IOUring: true})
			}
			b.ReportMetric(raw/float64(b.N), "raw-iops")
			b.ReportMetric(classic/float64(b.N), "iops")
			b.ReportMetric(100*classic/raw, "%raw")
			b.ReportMetric(uring/float64(b.N), "uring-iops")
			b.ReportMetric(100*uring/raw, "uring-%raw")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func onLoop(b *testing.B, image, args string) float64 {
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", image).CombinedOutput()
	if err != nil {
		b.Fatalf("losetup: %v\n%s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", dev).Run()
	return fio(b, dev, args)
}

func onExport(b *testing.B, image, args string, o Options) float64 {
	dev, err := blockdev.Open(image)
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	e, err := New(b.Context(), dev, o)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := e.Close(b.Context()); err != nil {
			b.Error(err)
		}
	}()
	return fio(b, e.Path(), args)
}

// fio runs a job and returns its I/O operations a second.
func fio(b *testing.B, dev, args string) float64 {
	all := append([]string{"--name=job", "--filename=" + dev, "--direct=1", "--ioengine=libaio",
		"--time_based", "--ramp_time=1", "--runtime=3", "--norandommap", "--output-format=json"}, strings.Fields(args)...)
	cmd := exec.Command("fio", all...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	var result struct {
		Jobs []struct {
			Read, Write struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.Jobs) != 1 {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	return result.Jobs[0].Read.IOPS + result.Jobs[0].Write.IOPS
}

package restore_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// hostile makes an image whose log was written by somebody who follows the
// format, but not its rules: ops are copies from anywhere to anywhere, three
// bytes each. Then patches change single bytes of block 0, or of the block that
// the first of their three bytes names.
func hostile(extension, noChecksums bool, ops, patches []byte) []byte {
	m := newImage(512, extension)
	m.noChecksums = noChecksums
	for ; len(ops) >= 3; ops = ops[3:] {
		n := 1 + int(ops[2]>>4)%4
		source, dest := int(ops[0])%(blocks-n), int(ops[1])%(blocks-n)
		switch ops[2] & 15 {
		case 0:
			m.turnOver(dest)
		case 1:
			m.moveLive(max(dest, 1))
		case 2:
			m.scribble(source, n)
			m.writeLog()
		default:
			if !m.log.Full() {
				m.save(source, dest, n)
			}
		}
	}
	for ; len(patches) >= 3; patches = patches[3:] {
		b := 0
		if patches[0] >= 128 {
			b = int(patches[0]) % blocks
		}
		m.block(b, 1)[int(patches[1])*2+int(patches[0]&1)] = patches[2]
	}
	return m.data
}

// FuzzRestore restores small hostile images. It must not panic, must not write
// after an error, and otherwise write nothing but what some entry names as a
// source, and block 0 last.
func FuzzRestore(f *testing.F) {
	valid := []byte{4, 40, 0x33, 0, 45, 0, 41, 50, 0x13, 12, 55, 0x13, 0, 52, 1, 10, 32, 3}
	for _, extension := range []bool{false, true} {
		f.Add(extension, false, valid, []byte{})
		f.Add(extension, true, valid, []byte{0, 6, 1})
		f.Add(extension, true, []byte{4, 40, 3, 4, 40, 3, 40, 4, 3}, []byte{128 + 45, 8, 2})
	}
	f.Fuzz(func(t *testing.T, extension, noChecksums bool, ops, patches []byte) {
		data := hostile(extension, noChecksums, ops, patches)
		d := &disk{data: bytes.Clone(data), unit: 512}
		report, inspectErr := restore.Inspect(d)
		_, dryErr := restore.Restore(ctx, d, restore.Options{DryRun: true})
		if len(d.writes) > 0 {
			t.Fatal("inspecting or a dry run has written")
		}
		_, err := restore.Restore(ctx, d, restore.Options{})
		if (err == nil) != (dryErr == nil) {
			t.Fatalf("error %v, but of the dry run %v", err, dryErr)
		}
		if err != nil {
			if len(d.writes) > 0 {
				t.Fatalf("writes %v and error %v", d.writes, err)
			}
			if !errors.Is(err, bowlog.ErrNoLog) && !errors.Is(err, bowlog.ErrUnsupported) && !errors.Is(err, bowlog.ErrTorn) &&
				!errors.Is(err, bowlog.ErrCorrupt) && !errors.Is(err, restore.ErrDamaged) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if inspectErr != nil || report.Damage != "" {
			t.Fatalf("restored, but inspecting says %+v, %v", report, inspectErr)
		}
		source := make([]bool, len(data)/512)
		for _, b := range report.LogBlocks {
			for _, e := range b.Entries {
				for i := range uint64(e.Size) / 512 {
					source[e.Source+i] = true
				}
			}
		}
		// The log is written and marked first, and given back at the end.
		writes := d.writes
		for range 2 {
			if len(writes) > 0 && !report.HalfRestored && writes[0] == [2]int64{0, int64(report.BlockSize)} {
				writes = writes[1:]
			}
		}
		ended := false // block 0 is being given back
		for _, w := range writes {
			if w[0] < int64(report.BlockSize) {
				ended = true
				continue
			}
			for s := w[0] / 512; s < w[1]/512; s++ {
				if !source[s] || ended {
					t.Fatalf("write of [%d, %d), no source or after block 0", w[0], w[1])
				}
			}
		}
	})
}

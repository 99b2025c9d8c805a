package restore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

var ctx = context.Background()

func TestRestore(t *testing.T) {
	for _, bs := range []int{512, 1024, 2048, 4096} {
		for _, ext := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/extension=%v", bs, ext), func(t *testing.T) {
				m := sample(bs, ext)
				d := m.disk()
				var last restore.Progress
				r, err := restore.Restore(ctx, d, restore.Options{Progress: func(p restore.Progress) { last = p }})
				if err != nil {
					t.Fatal(err)
				}
				m.check(t, d.data)
				// Blocks 0, 4 to 7, 9, 10, 12 and 13.
				if want := int64(9 * bs); r.PutBack != want || r.LogBlocks != 3 || r.Entries != 11 {
					t.Errorf("result %+v, expected %d bytes put back, 3 log blocks, 11 entries", r, want)
				}
				if want := (restore.Progress{Phase: restore.PhaseRestore, Done: int64(8 * bs), Total: int64(8 * bs)}); last != want {
					t.Errorf("last progress %+v, expected %+v", last, want)
				}
				first := d.writes[len(d.writes)-1]
				for _, w := range d.writes {
					if w[0] >= int64(firstFree*bs) {
						t.Errorf("write of [%d, %d), which was free", w[0], w[1])
					}
				}
				if first[0] != 0 {
					t.Errorf("the last write is at %d and not block 0", first[0])
				}
			})
		}
	}
}

func TestDryRunAndVerifyWriteNothing(t *testing.T) {
	m := sample(1024, true)
	d := m.disk()
	r, err := restore.Restore(ctx, d, restore.Options{DryRun: true})
	if err != nil || r.PutBack != 9*1024 {
		t.Errorf("dry run: %+v, %v", r, err)
	}
	if err := restore.Verify(ctx, d, nil); err != nil {
		t.Error(err)
	}
	if len(d.writes) > 0 {
		t.Errorf("writes %v", d.writes)
	}
}

func TestInspect(t *testing.T) {
	m := sample(512, true)
	r, err := restore.Inspect(m.disk())
	if err != nil {
		t.Fatal(err)
	}
	want := restore.Totals{LogBlocks: 3, Entries: 11, Copied: 16 * 512, PutBack: 9 * 512, Moved: 4 * 512}
	if r.Totals != want || r.Damage != "" {
		t.Errorf("totals %+v (%s), expected %+v", r.Totals, r.Damage, want)
	}
	if len(r.LogBlocks) != 3 || r.LogBlocks[1].Sector != 53 || len(r.LogBlocks[1].Entries) != 4 {
		t.Errorf("log blocks %+v", r.LogBlocks)
	}
	p, err := json.Marshal(r)
	if err != nil || !bytes.Contains(p, []byte(`"sequence":2,`)) {
		t.Errorf("%s, %v", p, err)
	}
}

func TestRollForward(t *testing.T) {
	m := sample(1024, true)
	copy(m.block(53, 1), "damage") // the log block before
	d := m.disk()
	if err := restore.RollForward(ctx, d); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(m.data)
	copy(want, m.block(52, 1))
	if !bytes.Equal(d.data, want) {
		t.Error("the content is not the current one")
	}

	m = sample(1024, true)
	m.log.Partial = true
	m.writeLog()
	d = m.disk()
	if err := restore.RollForward(ctx, d); !errors.Is(err, restore.ErrHalfRestored) || len(d.writes) > 0 {
		t.Errorf("half-restored: %v, writes %v", err, d.writes)
	}
}

func TestInterruptedEnds(t *testing.T) {
	for _, phase := range []bowlog.Phase{bowlog.PhaseOpening, bowlog.PhaseClosing} {
		m := sample(1024, true)
		m.log.Entries, m.log.Ext.Phase = nil, phase
		m.writeLog()
		d := m.disk()
		r, err := restore.Restore(ctx, d, restore.Options{DryRun: true})
		if err != nil || r.Phase != phase || len(d.writes) > 0 {
			t.Errorf("dry run, %v: %+v, %v", phase, r, err)
		}
		r, err = restore.Restore(ctx, d, restore.Options{})
		if err != nil || r.Phase != phase || !bytes.Equal(d.data[:1024], m.block(52, 1)) {
			t.Errorf("%v: %+v, %v", phase, r, err)
		}
		d = m.disk()
		if err := restore.RollForward(ctx, d); err != nil || !bytes.Equal(d.data[:1024], m.block(52, 1)) {
			t.Errorf("rolling forward, %v: %v", phase, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	d := sample(1024, true).disk()
	if _, err := restore.Restore(ctx, d, restore.Options{}); !errors.Is(err, context.Canceled) || len(d.writes) > 0 {
		t.Errorf("%v, writes %v", err, d.writes)
	}
}

func TestSmallerThanTheDevice(t *testing.T) {
	d := sample(512, true).disk()
	d.unit = 4096
	for name, f := range map[string]func() error{
		"restore":      func() error { _, err := restore.Restore(ctx, d, restore.Options{}); return err },
		"verify":       func() error { return restore.Verify(ctx, d, nil) },
		"roll forward": func() error { return restore.RollForward(ctx, d) },
	} {
		if err := f(); !errors.Is(err, restore.ErrBlockSize) {
			t.Errorf("%s: %v, expected ErrBlockSize", name, err)
		}
	}
}

func TestUnreadable(t *testing.T) {
	m := sample(1024, true)
	d := m.disk()
	d.bad = [2]int64{44 * 1024, 44*1024 + 1}
	_, err := restore.Restore(ctx, d, restore.Options{})
	if !errors.Is(err, restore.ErrDamaged) || !errors.Is(err, errBad) || !strings.Contains(err.Error(), "log block 0, entry 2 (source 18 dest 88") {
		t.Errorf("%v", err)
	}
	if len(d.writes) > 0 {
		t.Errorf("writes %v", d.writes)
	}
}

// TestHostile changes good images. Each error must name the place, and nothing
// may be written.
func TestHostile(t *testing.T) {
	const bs = 1024
	le32 := func(m *image, block, off int, v uint32) {
		copy(m.block(block, 1)[off:], []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
	}
	// older changes the log block of sequence 1, at block 53, and everything
	// that its successor says of it.
	older := func(m *image, change func(b *bowlog.Block)) {
		b, err := bowlog.Unmarshal(m.block(53, 1))
		if err != nil {
			t.Fatal(err)
		}
		change(b)
		p := make([]byte, b.BlockSize)
		if err := b.Marshal(p); err != nil {
			t.Fatal(err)
		}
		copy(m.block(53, 1), p)
		m.log.Entries[0].Checksum = bowlog.Checksum(0, m.block(53, 1))
		m.writeLog()
	}
	last := func(m *image) *bowlog.Entry { return &m.log.Entries[len(m.log.Entries)-1] }
	for _, test := range []struct {
		name   string
		ext    bool
		change func(m *image)
		err    error
		place  string
	}{
		{"huge count", false, func(m *image) { le32(m, 0, 12, math.MaxUint32) }, bowlog.ErrCorrupt, "4294967295 entries"},
		{"no entries", false, func(m *image) { le32(m, 0, 12, 0) }, bowlog.ErrCorrupt, "no entries"},
		{"huge sequence", false, func(m *image) { le32(m, 0, 16, math.MaxUint32) }, bowlog.ErrCorrupt, "log block 4294967294 at sector 106: corrupt log: its sequence is 1"},
		{"sequence skipped", false, func(m *image) { le32(m, 0, 16, 3) }, bowlog.ErrCorrupt, "log block 2 at sector 106"},
		{"sequence too low", false, func(m *image) { le32(m, 0, 16, 1) }, bowlog.ErrCorrupt, "log block 0 at sector 106"},
		{"sequence ends early", false, func(m *image) { le32(m, 0, 16, 0) }, bowlog.ErrCorrupt, "leads to log block 1"},
		{"leads to itself", false, func(m *image) {
			m.turnOver(60)
			m.log.Entries[0].Checksum = 0
			m.writeLog()
			copy(m.block(60, 1), m.block(0, 1))
		}, bowlog.ErrCorrupt, "log block 2 at sector 120: corrupt log: its sequence is 3"},
		{"two log blocks in one place", true, func(m *image) {
			older(m, func(b *bowlog.Block) { b.Entries[0].Dest = m.sector(53) })
		}, bowlog.ErrCorrupt, "log block 1, entry 0"},
		{"first entry leads nowhere", false, func(m *image) { m.log.Entries[0].Source = 8; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 0"},
		{"older block of another size", false, func(m *image) {
			older(m, func(b *bowlog.Block) { b.BlockSize, b.Entries = 512, b.Entries[:1] })
		}, bowlog.ErrCorrupt, "log block 1 at sector 106"},
		{"older block of another checkpoint", true, func(m *image) {
			older(m, func(b *bowlog.Block) { b.Ext.Checkpoint[5]++ })
		}, bowlog.ErrCorrupt, "log block 1 at sector 106"},
		{"older block without extension", true, func(m *image) {
			older(m, func(b *bowlog.Block) { b.Ext = nil })
		}, bowlog.ErrCorrupt, "log block 1 at sector 106"},
		{"older block closing", true, func(m *image) {
			older(m, func(b *bowlog.Block) { b.Ext.Phase, b.Entries = bowlog.PhaseClosing, nil })
		}, bowlog.ErrCorrupt, "log block 1 at sector 106"},
		{"older block half-restored", false, func(m *image) {
			older(m, func(b *bowlog.Block) { b.Partial = true })
		}, bowlog.ErrCorrupt, "log block 1 at sector 106"},
		{"older block with an entry outside", false, func(m *image) {
			older(m, func(b *bowlog.Block) { b.Entries[1].Source = 1 << 40 })
		}, bowlog.ErrCorrupt, "log block 1, entry 1"},
		{"older block overwritten", false, func(m *image) { m.scribble(53, 1) }, bowlog.ErrCorrupt, "log block 1 at sector 106: corrupt log: its checksum"},
		{"source outside", false, func(m *image) { last(m).Source = math.MaxUint64 - 1; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"dest outside", false, func(m *image) { last(m).Dest = blocks * bs / 512; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"size outside", false, func(m *image) { last(m).Size = 1 << 31; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"size 0", false, func(m *image) { last(m).Size = 0; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"size not whole", false, func(m *image) { last(m).Size = 512; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"misaligned", false, func(m *image) { last(m).Source++; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"copy onto itself", false, func(m *image) { last(m).Dest = last(m).Source; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"copy over the log", false, func(m *image) { last(m).Dest = 0; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"block 0 copied", false, func(m *image) { last(m).Source = 0; m.writeLog() }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"two copies in one place", true, func(m *image) {
			e := m.entry(15, 62, 1)
			e.Dest, e.Checksum = m.sector(40), bowlog.Checksum(15, m.block(40, 1))
			m.log.Entries = append(m.log.Entries, e)
			m.writeLog()
		}, bowlog.ErrCorrupt, "log block 0, entry 1"},
		{"a copy in place of a log block", true, func(m *image) {
			m.log.Entries = append(m.log.Entries, bowlog.Entry{Source: m.sector(15), Dest: m.sector(45), Size: bs})
			m.writeLog()
		}, bowlog.ErrCorrupt, "log block 1, entry 0"},
		{"a copy in a block in use", false, func(m *image) { m.save(15, 9, 1) }, bowlog.ErrCorrupt, "sector 18 was in use"},
		{"live block 0 outside", false, func(m *image) { m.log.Sector0 = 1 << 50; m.writeLog() }, bowlog.ErrCorrupt, "live content of block 0"},
		{"live block 0 in a block in use", false, func(m *image) { m.log.Sector0 = m.sector(9); m.writeLog() }, bowlog.ErrCorrupt, "sector 18 was in use"},
		{"copy overwritten", false, func(m *image) { m.scribble(44, 1) }, restore.ErrDamaged,
			"log block 0, entry 2 (source 18 dest 88 size 1024"},
		{"moved part of a copy overwritten", false, func(m *image) { m.scribble(54, 1) }, restore.ErrDamaged, "its checksum is"},
		{"original block 0 overwritten", false, func(m *image) { m.scribble(firstFree+1, 1) }, restore.ErrDamaged, "log block 0, entry 0"},
		{"device cut short", true, func(m *image) { m.data = m.data[:60*bs] }, bowlog.ErrCorrupt, "had 65536 bytes"},
		{"device cut short, version 1.0", false, func(m *image) { m.data = m.data[:57*bs] }, bowlog.ErrCorrupt, "log block 2, entry 3"},
		{"unknown extension", true, func(m *image) { le32(m, 0, 28, 0) }, bowlog.ErrUnsupported, "extension"},
		{"torn, no shadow", true, func(m *image) { m.data[int(m.data[6])+6] ^= 1 }, bowlog.ErrTorn, "no such shadow"},
		{"garbage", true, func(m *image) { m.scribble(0, 1) }, bowlog.ErrNoLog, "magic"},
		{"nearly nothing", true, func(m *image) { m.data = m.data[:512] }, bowlog.ErrCorrupt, "block size 1024 in 512 bytes"},
		{"nothing", true, func(m *image) { m.data = nil }, bowlog.ErrNoLog, "only 0 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := sample(bs, test.ext)
			test.change(m)
			d := m.disk()
			_, err := restore.Restore(ctx, d, restore.Options{})
			if !errors.Is(err, test.err) || !strings.Contains(err.Error(), test.place) {
				t.Errorf("error %q,\nexpected %q with %q", err, test.err, test.place)
			}
			if len(d.writes) > 0 || !bytes.Equal(d.data, m.data) {
				t.Errorf("writes %v", d.writes)
			}
			switch report, inspectErr := restore.Inspect(d); {
			case inspectErr != nil && !errors.Is(inspectErr, test.err):
				t.Errorf("inspecting: %v", inspectErr)
			case inspectErr == nil && errors.Is(err, bowlog.ErrCorrupt) && !strings.Contains(report.Damage, test.place):
				t.Errorf("inspecting: damage %q", report.Damage)
			}
		})
	}
}

// TestLiveBlock0Moves: where the live content of block 0 was is not put back,
// also if a half-restored device has lost the entry of the last move.
func TestLiveBlock0Moves(t *testing.T) {
	for _, ext := range []bool{false, true} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("extension=%v/lost=%v", ext, lost), func(t *testing.T) {
				m := newImage(1024, ext)
				m.moveLive(40)
				m.moveLive(41)
				m.save(4, 45, 1)
				m.turnOver(46)
				m.save(5, 47, 1)
				m.moveLive(42)
				if lost {
					m.log.Partial = true
					m.log.Entries = m.log.Entries[:2]
					m.writeLog()
				}
				d := m.disk()
				if _, err := restore.Restore(ctx, d, restore.Options{}); err != nil {
					t.Fatal(err)
				}
				m.check(t, d.data)
				if at := firstFree * 1024; !bytes.Equal(d.data[at:], m.data[at:]) {
					t.Error("wrote to blocks that were free")
				}
			})
		}
	}
}

// TestReusedAndLost: the first home of the live content of block 0 takes a copy
// later on, and the entry that tells of the move after that is undone and gone.
func TestReusedAndLost(t *testing.T) {
	for _, ext := range []bool{false, true} {
		m := newImage(1024, ext)
		m.moveLive(40)
		m.save(4, firstFree, 1)
		m.moveLive(41)
		m.log.Partial = true
		m.log.Entries = m.log.Entries[:3]
		m.writeLog()
		d := m.disk()
		if _, err := restore.Restore(ctx, d, restore.Options{}); err != nil {
			t.Fatalf("extension=%v: %v", ext, err)
		}
		m.check(t, d.data)
	}
}

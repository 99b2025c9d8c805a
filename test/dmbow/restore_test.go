package dmbow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/bowline-csi/bowline/test/dmbow"
)

var blockSizes = []int{512, 1024, 2048, 4096}

// scenarios calls f with many images; those that are small have several log
// blocks nevertheless, except with blocks of 4096 bytes.
func scenarios(t *testing.T, seeds int, small bool, f func(t *testing.T, s *dmbow.Scenario)) {
	for _, bs := range blockSizes {
		for seed := range seeds {
			for _, refree := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d/seed=%d/refree=%v", bs, seed, refree), func(t *testing.T) {
					perLog := (bs - 28) / 24
					logBlocks, blocks := 5, max(200, 10*perLog)
					if small {
						logBlocks, blocks = 3, max(200, 6*perLog)
					}
					s, err := dmbow.NewScenario(uint64(seed), bs, blocks, logBlocks, refree)
					if err != nil {
						t.Fatal(err)
					}
					f(t, s)
				})
			}
		}
	}
}

func restoreAndCheck(t *testing.T, s *dmbow.Scenario, image []byte, unit int) {
	t.Helper()
	d := newDisk(image, unit)
	if _, err := restore.Restore(context.Background(), d, restore.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(d.now); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.now, d.durable) {
		t.Fatal("not everything is flushed")
	}
	if _, err := restore.Restore(context.Background(), d, restore.Options{}); !errors.Is(err, bowlog.ErrNoLog) {
		t.Fatalf("restoring again: %v, expected ErrNoLog", err)
	}
}

func TestToolRestoresModel(t *testing.T) {
	scenarios(t, 3, false, func(t *testing.T, s *dmbow.Scenario) {
		d := newDisk(s.Image, 512)
		tool := dmbow.Tool{Dev: d, MaxWrites: -1}
		if err := tool.Restore(); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(d.now); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRestore(t *testing.T) {
	scenarios(t, 4, false, func(t *testing.T, s *dmbow.Scenario) {
		for _, unit := range []int{512, s.BlockSize} {
			d := newDisk(s.Image, unit)
			if err := restore.Verify(context.Background(), d, nil); err != nil {
				t.Fatal(err)
			}
			report, err := restore.Inspect(d)
			if err != nil || report.Damage != "" || report.Totals.LogBlocks != s.LogBlocks() {
				t.Fatalf("inspect: %+v, %v", report, err)
			}
			if !bytes.Equal(d.now, s.Image) {
				t.Fatal("verifying or inspecting has written")
			}
			restoreAndCheck(t, s, s.Image, unit)
		}
	})
}

func TestRollForward(t *testing.T) {
	scenarios(t, 3, false, func(t *testing.T, s *dmbow.Scenario) {
		d := newDisk(s.Image, 512)
		if err := restore.RollForward(context.Background(), d); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(d.now, s.Current) {
			t.Fatal("other content than before")
		}
		tool := newDisk(s.Image, 512)
		if err := (&dmbow.Tool{Dev: tool, MaxWrites: -1}).RollForward(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tool.now, s.Current) {
			t.Fatal("the tool rolls forward to something else")
		}
	})
}

// TestHalfRestored looks at the device after each write of the other tool, as if
// that had been stopped there.
func TestHalfRestored(t *testing.T) {
	scenarios(t, 2, true, func(t *testing.T, s *dmbow.Scenario) {
		restoreAndCheck(t, s, s.Image, 512)
		d := newDisk(s.Image, 512)
		tool := dmbow.Tool{Dev: d, MaxWrites: -1}
		marks := 0
		d.written = func(image []byte) {
			n := d.writes
			if bowlogGone(image) || s.BlockSize > 1024 && n%41 != 0 && tool.Marks == marks {
				return
			}
			marks = tool.Marks
			restoreAndCheck(t, s, image, 512)
			if n%7 != 0 {
				return
			}
			again := newDisk(image, 512)
			if err := (&dmbow.Tool{Dev: again, MaxWrites: -1}).Restore(); err != nil {
				t.Fatalf("stopped after %d writes: the tool itself cannot go on: %v", n, err)
			}
			if err := s.Check(again.now); err != nil {
				t.Fatalf("stopped after %d writes: the tool itself goes on wrongly: %v", n, err)
			}
		}
		if err := tool.Restore(); err != nil {
			t.Fatal(err)
		}
		if s.LogBlocks() > 1 && tool.Marks < s.LogBlocks()-1 {
			t.Fatalf("%d marks with %d log blocks", tool.Marks, s.LogBlocks())
		}
	})
}

// TestInterrupted cuts the power at each write of a restore and restores again.
// With large blocks it is some of the writes, and each of the last ones.
func TestInterrupted(t *testing.T) {
	scenarios(t, 1, true, func(t *testing.T, s *dmbow.Scenario) {
		for _, unit := range []int{512, s.BlockSize} {
			whole := newDisk(s.Image, unit)
			if _, err := restore.Restore(context.Background(), whole, restore.Options{}); err != nil {
				t.Fatal(err)
			}
			for cut := range whole.writes {
				if s.BlockSize > 1024 && cut%9 != 0 && cut < whole.writes-6 {
					continue
				}
				d := newDisk(s.Image, unit)
				d.cutAt = cut
				_, err := restore.Restore(context.Background(), d, restore.Options{})
				if !errors.Is(err, errPowerCut) {
					t.Fatalf("cut at write %d: %v", cut, err)
				}
				rng := rand.New(rand.NewPCG(uint64(cut), 1))
				for range 3 {
					image := d.afterPowerCut(rng)
					again := newDisk(image, unit)
					_, err := restore.Restore(context.Background(), again, restore.Options{})
					// The last write may have arrived, and been all.
					if err != nil && !errors.Is(err, bowlog.ErrNoLog) {
						t.Fatalf("cut at write %d: %v", cut, err)
					}
					if err := s.Check(again.now); err != nil {
						t.Fatalf("cut at write %d: %v", cut, err)
					}
				}
			}
		}
	})
}

// TestHalfRestoredTwice: what the other tool left half-restored, and a restore
// of ours that was interrupted, can be finished by either.
func TestHalfRestoredTwice(t *testing.T) {
	scenarios(t, 2, true, func(t *testing.T, s *dmbow.Scenario) {
		rng := rand.New(rand.NewPCG(7, uint64(s.BlockSize)))
		for range 4 {
			d := newDisk(s.Image, 512)
			tool := dmbow.Tool{Dev: d, MaxWrites: rng.IntN(100)}
			if err := tool.Restore(); err == nil {
				continue
			}
			d = newDisk(d.now, s.BlockSize)
			d.cutAt = rng.IntN(20)
			if _, err := restore.Restore(context.Background(), d, restore.Options{}); err == nil {
				continue
			}
			image := d.afterPowerCut(rng)
			if bowlogGone(image) {
				continue
			}
			restoreAndCheck(t, s, image, 512)
			d = newDisk(image, 512)
			if err := (&dmbow.Tool{Dev: d, MaxWrites: -1}).Restore(); err != nil {
				t.Fatal(err)
			}
			if err := s.Check(d.now); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func bowlogGone(image []byte) bool {
	_, err := bowlog.Unmarshal(image)
	return errors.Is(err, bowlog.ErrNoLog)
}

var _ blockdev.Device = (*disk)(nil)

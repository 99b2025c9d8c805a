package faultdev_test

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/blockdevtest"
	"github.com/bowline-csi/bowline/driver/blockdev/faultdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
)

const size = 64 << 10

// TestTransparent: without rules, and with rules that never apply, nothing is
// different.
func TestTransparent(t *testing.T) {
	blockdevtest.Run(t, func(*testing.T) blockdev.Device {
		return faultdev.New(memdev.New(size, 512),
			faultdev.Fail(unix.EIO, faultdev.Not(faultdev.Always)),
			faultdev.Delay(nil, faultdev.Nth(1<<40)))
	})
}

// requests makes one request of each kind for the first two blocks.
func requests(d blockdev.Device) map[faultdev.Kind]error {
	p := bytes.Repeat([]byte{1}, 1024)
	_, write := d.WriteAt(p, 0)
	_, read := d.ReadAt(p, 0)
	return map[faultdev.Kind]error{
		faultdev.Write:   write,
		faultdev.Read:    read,
		faultdev.Discard: d.Discard(0, 1024),
		faultdev.Zero:    d.WriteZeroes(0, 1024),
		faultdev.Flush:   d.Flush(),
	}
}

func TestFailByKind(t *testing.T) {
	for kind := range requests(memdev.New(size, 512)) {
		t.Run(kind.String(), func(t *testing.T) {
			inner := memdev.New(size, 512)
			history := inner.Record()
			rule := faultdev.Fail(unix.ENOSPC, faultdev.OnKind(kind))
			d := faultdev.New(inner, rule)
			for got, err := range requests(d) {
				if (got == kind) != errors.Is(err, unix.ENOSPC) {
					t.Errorf("%v: %v", got, err)
				}
				if got != kind && err != nil {
					t.Errorf("%v: %v", got, err)
				}
			}
			if rule.Hits() != 1 {
				t.Errorf("%d hits", rule.Hits())
			}
			want := 4 // kinds that the history knows
			if kind != faultdev.Read {
				want--
			}
			if history.Len() != want {
				t.Errorf("the device did %v", history.Ops())
			}
		})
	}
}

// failing returns which of n writes of a block, at ascending positions, fail
// with EIO.
func failing(t *testing.T, d blockdev.Device, n int) []int {
	t.Helper()
	var failed []int
	for i := range n {
		done, err := d.WriteAt(make([]byte, 512), int64(i)*512)
		switch {
		case err == nil && done == 512:
		case errors.Is(err, unix.EIO) && done == 0:
			failed = append(failed, i)
		default:
			t.Fatalf("write %d: %d, %v", i, done, err)
		}
	}
	return failed
}

func TestPredicates(t *testing.T) {
	third := func(o faultdev.Op) bool { return o.Count == 3 }
	for _, test := range []struct {
		name string
		when []faultdev.Predicate
		want []int
	}{
		{"none", nil, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{"Always", []faultdev.Predicate{faultdev.Always}, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{"Nth", []faultdev.Predicate{faultdev.Nth(3)}, []int{2}},
		{"After", []faultdev.Predicate{faultdev.After(5)}, []int{5, 6, 7}},
		{"InRange", []faultdev.Predicate{faultdev.InRange(1024, 1024)}, []int{2, 3}},
		{"InRange inside a block", []faultdev.Predicate{faultdev.InRange(1100, 1)}, []int{2}},
		{"Nth in range", []faultdev.Predicate{faultdev.InRange(1024, 2048), faultdev.Nth(2)}, []int{3}},
		{"Nth of all in range", []faultdev.Predicate{faultdev.Nth(2), faultdev.InRange(1024, 2048)}, nil},
		{"Not", []faultdev.Predicate{faultdev.Not(faultdev.InRange(512, size))}, []int{0}},
		{"Any", []faultdev.Predicate{faultdev.Any(faultdev.Nth(1), faultdev.InRange(3584, 512))}, []int{0, 7}},
		{"All", []faultdev.Predicate{faultdev.All(faultdev.After(2), faultdev.Nth(2))}, []int{3}},
		{"Count", []faultdev.Predicate{third}, []int{2}},
		{"another kind", []faultdev.Predicate{faultdev.OnKind(faultdev.Read, faultdev.Flush)}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			rule := faultdev.Fail(unix.EIO, test.when...)
			d := faultdev.New(memdev.New(size, 512), rule)
			if got := failing(t, d, 8); !slices.Equal(got, test.want) {
				t.Errorf("writes %v failed, not %v", got, test.want)
			}
			if rule.Hits() != len(test.want) {
				t.Errorf("%d hits", rule.Hits())
			}
		})
	}
}

func TestShort(t *testing.T) {
	for n, want := range map[int64]int{0: 0, 511: 0, 512: 512, 1000: 512, 1 << 20: 2048} {
		inner := memdev.New(size, 512)
		d := faultdev.New(inner, faultdev.Short(n, unix.EIO))
		ones := bytes.Repeat([]byte{1}, 2048)
		if done, err := d.WriteAt(ones, 512); done != want || !errors.Is(err, unix.EIO) {
			t.Errorf("short at %d: %d, %v", n, done, err)
		}
		got := make([]byte, 2048)
		if done, err := d.ReadAt(got, 512); done != want || !errors.Is(err, unix.EIO) {
			t.Errorf("short at %d: %d, %v", n, done, err)
		}
		if !bytes.Equal(got[:want], ones[:want]) {
			t.Errorf("short at %d: what was read is wrong", n)
		}
		if _, err := inner.ReadAt(got, 512); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:want], ones[:want]) || bytes.IndexByte(got[want:], 1) >= 0 {
			t.Errorf("short at %d: the device has %d", n, bytes.Count(got, []byte{1}))
		}
		if err := d.WriteZeroes(512, 2048); !errors.Is(err, unix.EIO) {
			t.Errorf("short at %d: zeroing: %v", n, err)
		}
		if _, err := inner.ReadAt(got, 512); err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(got, 1) >= 0 {
			t.Errorf("short at %d: not zeroed as far as written", n)
		}
	}
}

func TestBadSectors(t *testing.T) {
	d := faultdev.New(memdev.New(size, 512), faultdev.BadSectors(1024, 512))
	p := make([]byte, 4096)
	for _, test := range []struct {
		off, length int64
		want        int
	}{
		{0, 4096, 1024}, {512, 1024, 512}, {1024, 512, 0}, {1024, 2048, 0},
	} {
		if n, err := d.ReadAt(p[:test.length], test.off); n != test.want || !errors.Is(err, unix.EIO) {
			t.Errorf("[%d, +%d): %d, %v", test.off, test.length, n, err)
		}
	}
	for _, off := range []int64{0, 1536} {
		if n, err := d.ReadAt(p[:1024], off); n != 1024 || err != nil {
			t.Errorf("good sectors at %d: %d, %v", off, n, err)
		}
	}
	if _, err := d.WriteAt(p, 0); err != nil {
		t.Error(err)
	}
}

// TestDelay: an operation that waits holds up nobody else, and has not been done
// before it may go on.
func TestDelay(t *testing.T) {
	inner := memdev.New(size, 512)
	gate := make(chan struct{})
	rule := faultdev.Delay(gate, faultdev.OnKind(faultdev.Write), faultdev.InRange(0, 512))
	d := faultdev.New(inner, rule, faultdev.Fail(unix.EIO, faultdev.InRange(0, 512)))
	done := make(chan error)
	go func() {
		_, err := d.WriteAt(make([]byte, 512), 0)
		done <- err
	}()
	<-rule.Hit()
	history := inner.Record()
	if _, err := d.WriteAt(make([]byte, 512), 512); err != nil {
		t.Error(err)
	}
	d.Remove(rule) // too late for the one that waits
	select {
	case err := <-done:
		t.Errorf("did not wait: %v", err)
	default:
	}
	if history.Len() != 1 {
		t.Errorf("the device did %v", history.Ops())
	}
	close(gate)
	if err := <-done; !errors.Is(err, unix.EIO) {
		t.Errorf("the rule after the delay: %v", err)
	}
}

// TestInvalidMeetsNoRule: the caller's own mistakes stay what they are.
func TestInvalidMeetsNoRule(t *testing.T) {
	rule := faultdev.Fail(unix.EIO)
	d := faultdev.New(memdev.New(size, 512), rule)
	if _, err := d.ReadAt(make([]byte, 512), size); !errors.Is(err, blockdev.ErrOutOfRange) {
		t.Error(err)
	}
	if err := d.Discard(1, 512); !errors.Is(err, blockdev.ErrMisaligned) {
		t.Error(err)
	}
	if rule.Hits() != 0 {
		t.Errorf("%d hits", rule.Hits())
	}
}

// TestRulesChangeMeanwhile adds and removes rules under load.
func TestRulesChangeMeanwhile(t *testing.T) {
	d := faultdev.New(memdev.New(size, 512))
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					for kind, err := range requests(d) {
						if err != nil && !errors.Is(err, unix.EIO) {
							t.Errorf("%v: %v", kind, err)
						}
					}
				}
			}
		})
	}
	for range 100 {
		rule := faultdev.Fail(unix.EIO, faultdev.Nth(2))
		d.Add(rule)
		<-rule.Hit()
		d.Remove(rule)
	}
	close(stop)
	group.Wait()
	for kind, err := range requests(d) {
		if err != nil {
			t.Errorf("%v, with all rules gone: %v", kind, err)
		}
	}
}

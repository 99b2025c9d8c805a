package bowlog_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// unprovenLog is a disk with a log block of generation 11 that was written together
// with two copies: one continues the last copy of generation 10, one is new.
type unprovenLog struct {
	*disk
	bs         int
	before, b  *bowlog.Block
	tail, next bowlog.Entry // what b adds
}

func newUnprovenLog(t *testing.T, bs int) *unprovenLog {
	per := uint64(bs / 512)
	d := newDisk(diskSize, 512)
	// copyTo copies a block and returns the entry for it.
	copyTo := func(source, dest uint64) bowlog.Entry {
		from := d.data[source*512:][:bs]
		copy(d.data[dest*512:], from)
		return bowlog.Entry{Source: source, Dest: dest, Size: uint32(bs), Checksum: bowlog.Checksum(bowlog.Seed(source, bs), from)}
	}
	u := &unprovenLog{disk: d, bs: bs}
	u.before = sampleBlock(bs)
	u.before.Ext.Generation = 10
	u.before.Entries = append(u.before.Entries, copyTo(128, 256))
	u.tail, u.next = copyTo(128+per, 256+per), copyTo(192, 320)
	ext := *u.before.Ext
	u.b = &bowlog.Block{BlockSize: bs, Sector0: live, Ext: &ext, Entries: slices.Clone(u.before.Entries)}
	ext.Generation, ext.Unproven = 11, true
	bowlog.Extend(&u.b.Entries[1], u.tail, bs)
	u.b.Entries = append(u.b.Entries, u.next)
	put(t, d, u.before, shadow0)
	put(t, d, u.b, shadow1)
	put(t, d, u.b, 0)
	return u
}

// wipe overwrites one block.
func (u *unprovenLog) wipe(sector uint64) {
	for i := range u.data[sector*512:][:u.bs] {
		u.data[int(sector)*512+i] ^= 0x5a
	}
}

func (u *unprovenLog) inForce(t *testing.T) *bowlog.Block {
	t.Helper()
	b, err := bowlog.Load(u)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = bowlog.Prove(u, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProve(t *testing.T) {
	for _, bs := range []int{512, 4096} {
		for name, c := range map[string]struct {
			change func(t *testing.T, u *unprovenLog)
			want   uint64 // generation
		}{
			"all arrived":      {func(*testing.T, *unprovenLog) {}, 11},
			"new copy missing": {func(_ *testing.T, u *unprovenLog) { u.wipe(u.next.Dest) }, 10},
			"tail missing":     {func(_ *testing.T, u *unprovenLog) { u.wipe(u.tail.Dest) }, 10},
			"all missing":      {func(_ *testing.T, u *unprovenLog) { u.wipe(u.tail.Dest); u.wipe(u.next.Dest) }, 10},
			"tail missing, what the entry had before is overwritten": {func(_ *testing.T, u *unprovenLog) {
				u.wipe(u.tail.Dest)
				u.wipe(u.before.Entries[1].Source)
			}, 10},
			"damaged: missing, and overwritten": {func(_ *testing.T, u *unprovenLog) {
				u.wipe(u.next.Dest)
				u.wipe(u.next.Source)
			}, 11},
			"damaged: missing, and another overwritten": {func(_ *testing.T, u *unprovenLog) {
				u.wipe(u.tail.Dest)
				u.wipe(u.next.Source)
			}, 11},
			"the shadow is of the next one": {func(t *testing.T, u *unprovenLog) {
				u.wipe(u.next.Dest)
				next := *u.b
				ext := *u.b.Ext
				ext.Generation, next.Ext = 12, &ext
				put(t, u.disk, &next, shadow0)
			}, 11},
			"the next one tore the shadow": {func(_ *testing.T, u *unprovenLog) { u.wipe(shadow0) }, 11},
			"not unproven": {func(t *testing.T, u *unprovenLog) {
				u.wipe(u.next.Dest)
				u.b.Ext.Unproven = false
				put(t, u.disk, u.b, 0)
			}, 11},
			"torn, no shadow of its own": {func(_ *testing.T, u *unprovenLog) {
				u.data[int(u.data[6])+6] ^= 1
				u.wipe(shadow1)
			}, 10},
			"torn, with its shadow": {func(_ *testing.T, u *unprovenLog) { u.data[int(u.data[6])+6] ^= 1 }, 11},
			"torn, with its shadow, copy missing": {func(_ *testing.T, u *unprovenLog) {
				u.data[int(u.data[6])+6] ^= 1
				u.wipe(u.next.Dest)
			}, 10},
		} {
			t.Run(name, func(t *testing.T) {
				u := newUnprovenLog(t, bs)
				c.change(t, u)
				b := u.inForce(t)
				if b.Ext.Generation != c.want {
					t.Errorf("generation %d is in force, want %d", b.Ext.Generation, c.want)
				}
			})
		}
	}
}

// TestProveRefuses: an unproven log block that does not follow the one before is
// damage, or hostile.
func TestProveRefuses(t *testing.T) {
	for name, change := range map[string]func(before, b *bowlog.Block){
		"sequence":         func(before, b *bowlog.Block) { b.Sequence++ },
		"live block 0":     func(before, b *bowlog.Block) { b.Sector0 += 8 },
		"fewer entries":    func(before, b *bowlog.Block) { b.Entries = b.Entries[:1] },
		"another entry":    func(before, b *bowlog.Block) { b.Entries[1].Dest += 8 },
		"shorter entry":    func(before, b *bowlog.Block) { before.Entries[1].Size *= 3 },
		"changed checksum": func(before, b *bowlog.Block) { b.Entries[1].Size = before.Entries[1].Size },
		"no checksum":      func(before, b *bowlog.Block) { b.Entries[2].Checksum = 0 },
		"not the last one": func(before, b *bowlog.Block) { b.Entries[0].Checksum++ },
	} {
		t.Run(name, func(t *testing.T) {
			u := newUnprovenLog(t, 4096)
			change(u.before, u.b)
			put(t, u.disk, u.before, shadow0)
			put(t, u.disk, u.b, 0)
			b, err := bowlog.Load(u)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bowlog.Prove(u, b); !errors.Is(err, bowlog.ErrCorrupt) {
				t.Errorf("error %v, want ErrCorrupt", err)
			}
		})
	}
}

// TestSettleCut: whatever a power cut in Settle leaves, the same log is in force,
// whether it was the newest block or the one before.
func TestSettleCut(t *testing.T) {
	for _, bs := range []int{512, 1024, 4096} {
		for _, arrived := range []bool{true, false} {
			for cut := 0; ; cut++ {
				done := false
				for mask := range 1 << (bs / 512) {
					u := newUnprovenLog(t, bs)
					if !arrived {
						u.wipe(u.next.Dest)
					}
					b := u.inForce(t)
					u.cutAt, u.mask = cut, mask
					_, err := bowlog.Settle(u, b)
					done = err == nil
					u.cutAt = -1
					after := u.inForce(t)
					if !slices.Equal(after.Entries, b.Entries) {
						t.Fatalf("block size %d, arrived %t, cut in write %d with units %08b: generation %d with %v, was %d with %v",
							bs, arrived, cut, mask, after.Ext.Generation, after.Entries, b.Ext.Generation, b.Entries)
					}
					if done && (after.Ext.Unproven || after.Ext.Generation <= 11) {
						t.Fatalf("settled as %+v", after.Ext)
					}
				}
				if done {
					break
				}
			}
		}
	}
}

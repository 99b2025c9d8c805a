package pool_test

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"github.com/bowline-csi/bowline/driver/pool"
)

// A change is something that a crash may interrupt. It is done to the volume
// "target", which is there before, or not.
type change struct {
	name   string
	before *pool.CreateOptions
	do     func(p *pool.Pool) error
	// done tells whether the change has been made. err is that of Get.
	done func(v pool.Volume, err error) bool
}

var (
	keptID   = pool.ID("kept", node)
	targetID = pool.ID("target", node)
	target   = &pool.CreateOptions{Name: "target", Size: 4 * MiB}
)

func made(_ pool.Volume, err error) bool { return err == nil }

var changes = []change{
	{"Create", nil, func(p *pool.Pool) error {
		_, err := p.Create(context.Background(), *target)
		return err
	}, made},
	{"CreateThin", nil, func(p *pool.Pool) error {
		_, err := p.Create(context.Background(), pool.CreateOptions{Name: "target", Size: 4 * MiB, Thin: true})
		return err
	}, made},
	{"Clone", nil, func(p *pool.Pool) error {
		_, err := p.Clone(context.Background(), keptID, *target, nil)
		return err
	}, made},
	{"Grow", target, func(p *pool.Pool) error {
		_, err := p.Grow(context.Background(), targetID, 12*MiB)
		return err
	}, func(v pool.Volume, _ error) bool { return v.Size == 12*MiB }},
	{"MarkUsed", target, func(p *pool.Pool) error {
		return p.MarkUsed(context.Background(), targetID, "xfs")
	}, func(v pool.Volume, _ error) bool { return v.Used && v.FSType == "xfs" }},
	{"Wipe", target, func(p *pool.Pool) error {
		return p.Wipe(context.Background(), targetID)
	}, made},
	{"Delete", target, func(p *pool.Pool) error {
		return p.Delete(context.Background(), targetID)
	}, func(_ pool.Volume, err error) bool { return err != nil }},
}

// prepare makes a pool with a volume that has content, and what c needs. It
// returns the content.
func prepare(t *testing.T, p *pool.Pool) []byte {
	v := create(t, p, "kept", 3*MiB)
	content := bytes.Repeat([]byte("precious"), 2*MiB/8)
	writeAt(t, v.Path, content, 0)
	if err := p.MarkUsed(context.Background(), v.ID, "ext4"); err != nil {
		t.Fatal(err)
	}
	return append(content, make([]byte, MiB)...)
}

func (c *change) prepare(t *testing.T, p *pool.Pool) {
	t.Helper()
	if err := p.Delete(context.Background(), targetID); err != nil {
		t.Fatal(err)
	}
	if c.before != nil {
		if _, err := p.Create(context.Background(), *c.before); err != nil {
			t.Fatal(err)
		}
	}
}

// check looks at a pool after a crash in c, which had returned acknowledged or not,
// and then makes the change again.
func (c *change) check(t *testing.T, dir string, acknowledged bool, content []byte) {
	t.Helper()
	p := openPool(t, dir)
	defer p.Close()
	checkPool(t, p, dir)
	verify := func() (pool.Volume, bool) {
		t.Helper()
		kept, err := p.Get(keptID)
		if err != nil || !kept.Used || !bytes.Equal(readFile(t, kept.Path), content) {
			t.Errorf("the other volume has changed: %+v, %v", kept, err)
		}
		v, err := p.Get(targetID)
		done := c.done(v, err)
		if done && v.Source != "" && !bytes.Equal(readFile(t, v.Path)[:len(content)], content) {
			t.Error("the clone does not have the content of its source")
		}
		return v, done
	}
	v, done := verify()
	switch {
	case acknowledged && !done:
		t.Errorf("it was done, and now is not: %+v", v)
	case !done && (v.ID != "") != (c.before != nil):
		t.Errorf("neither before nor after: %+v", v)
	case !done && c.before != nil && (v.Size != c.before.Size || v.Used):
		t.Errorf("neither before nor after: %+v", v)
	}
	if err := c.do(p); err != nil {
		t.Errorf("done again: %v", err)
	}
	if v, done := verify(); !done {
		t.Errorf("done again, and it is not: %+v", v)
	}
	checkPool(t, p, dir)
}

// TestCrash ends the file system after each step of each change. Either it had just
// written everything, as if only the process had been killed, or the power is cut.
func TestCrash(t *testing.T) {
	for _, test := range []struct {
		name   string
		layout layout
		flush  bool
	}{
		{"ext4-killed", ext4, true},
		{"ext4-power-cut", ext4, false},
		{"xfs-killed", xfs, true},
		{"xfs-power-cut", xfs, false},
		{"no-extents-power-cut", noExtents, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDisk(t, test.layout)
			dir := filepath.Join(d.dir, "pool")
			p := openPool(t, dir)
			content := prepare(t, p)
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			for _, c := range changes {
				t.Run(c.name, func(t *testing.T) {
					step := 0
					for c.crashAt(t, d, dir, step, test.flush, content) && !t.Failed() {
						step++
					}
					if step == 0 {
						t.Error("no steps")
					}
				})
			}
		})
	}
}

// crashAt crashes at one step, or afterwards if there are not so many, of which it
// tells.
func (c *change) crashAt(t *testing.T, d *disk, dir string, step int, flush bool, content []byte) (more bool) {
	t.Helper()
	p := openPool(t, dir)
	c.prepare(t, p)
	p.OnStep(func(name string) {
		if step == 0 {
			t.Logf("crash after: %s", name)
			d.stop(t, flush)
			more = true
		}
		step--
	})
	err := c.do(p)
	if !more {
		t.Log("crash after: done")
		d.stop(t, flush)
		if err != nil {
			t.Error(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	d.unmount(t)
	d.mount(t)
	c.check(t, dir, err == nil, content)
	return more
}

package device

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// checkJournal fails the test unless the first n lines of the journal in dir are
// there: those that the writer had been told are durable.
func checkJournal(t *testing.T, dir string, n int64) {
	t.Helper()
	journal, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 || int64(len(journal)) < n*lineBytes {
		t.Fatalf("the journal has %d bytes, %d lines were durable", len(journal), n)
	}
	for i := range n {
		if got := string(journal[i*lineBytes : (i+1)*lineBytes]); got != line(i+1) {
			t.Fatalf("line %d of %d of the journal is %q", i+1, n, got)
		}
	}
}

// wreckAgain is wreck for a tree that may have been wrecked already.
func wreckAgain(t *testing.T, r *rand.Rand, dir string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, "new")); err != nil {
		t.Fatal(err)
	}
	wreck(t, r, dir, 2*mib)
}

// The process that serves is killed, again and again, while a checkpoint is open
// and writers are busy. Each time the volume is attached again, carries on with the
// checkpoint, and has everything that was acknowledged. In the end it is rolled
// back, or committed.
func TestCarriesOn(t *testing.T) {
	for _, k := range both {
		for _, commit := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/commit=%v", k.name, commit), func(t *testing.T) {
				r := newRand(t)
				v := newHost(t).newImage("image", k.size)
				k.make(t, v.path)
				v.attachInBackground()
				v.mount()
				plant(t, r, v.in("still"), 5*mib)
				want := readTree(t, v.in("still"))
				v.must("checkpoint", v.mountpoint)
				id := v.status().Checkpoint
				for round := range 3 {
					wreckAgain(t, r, v.in("still"))
					dir := v.in(fmt.Sprint("load", round))
					l := startLoad(t, dir)
					time.Sleep(300 * time.Millisecond)
					synced := l.before().journal
					if err := syscall.Kill(v.peer(), syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					eventually(t, "a writer sees an error", func() bool {
						l.mu.Lock()
						defer l.mu.Unlock()
						return len(l.failed) > 0
					})
					l.end()
					v.umount()
					v.attachInBackground()
					if s := v.status(); s.State != "checkpoint" || s.Checkpoint != id {
						t.Fatalf("attached in state %s with checkpoint %s, want %s", s.State, s.Checkpoint, id)
					}
					v.mount()
					checkJournal(t, dir, synced)
					before := v.status().Free
					v.must("trim", v.mountpoint)
					if after := v.status().Free; after <= before {
						t.Errorf("free space was %d, and is %d after looking for it", before, after)
					}
				}
				wreckAgain(t, r, v.in("still"))
				now := readTree(t, v.in("still"))
				if commit {
					v.must("commit", v.mountpoint)
					v.umount()
					v.detach()
					k.check(t, v.path)
					v.attachInBackground()
					v.mount()
					readTree(t, v.in("still")).mustEqual(t, now, "after the commit")
				} else {
					v.umount()
					v.detach()
					v.restoreDetached(k)
					readTree(t, v.in("still")).mustEqual(t, want, "after the rollback")
				}
				v.finish(k)
			})
		}
	}
}

package bow_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/cockroachdb/datadriven"
)

// TestScenarios runs the stories in testdata/scenarios. They say what happens to a
// small device and what it looks like then; `go test -rewrite` writes what is so.
//
//	new blocks=N free=A-B     a device of blocks of 512 bytes, block i full of letters, blocks
//	                          A to B-1 reported free
//	checkpoint, commit        also: trim, flush
//	write A-B LETTER          blocks A to B-1; also: discard A-B, zero A-B
//	free A-B                  the file system says so
//	crash                     the power is cut, nothing unflushed arrives, the device is attached again
//	detach                    the device is attached again
//	rollback                  detached, restored, attached again
//	read                      what the user sees, a letter a block, '.' for zeros
//	disk                      what is on the device; '#' for a log block, '+' for a free map
//	types                     a letter a block: u(nchanged) f(ree) s(pare) t(stale) c(hanged)
//	                          w(ritten) b(ackup) 0 (log) 1 (live block 0)
//	log                       the log, newest block first, in sectors, which are blocks here
//	stats
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenarios", func(t *testing.T, path string) {
		s := &scenario{t: t}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			return s.run(d)
		})
	})
}

const scenarioBlock = 512

type scenario struct {
	t      *testing.T
	dev    *memdev.Device
	engine *bow.Engine
}

func (s *scenario) run(d *datadriven.TestData) string {
	var out strings.Builder
	for _, line := range append([]string{d.Cmd + args(d)}, strings.Split(d.Input, "\n")...) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		text, err := s.do(words)
		if err != nil {
			text = "error: " + err.Error()
		}
		if text != "" {
			fmt.Fprintln(&out, text)
		}
	}
	if s.engine != nil {
		if err := s.engine.Check(); err != nil {
			d.Fatalf(s.t, "invariants: %v", err)
		}
	}
	return out.String()
}

// args puts the words of a command together again.
func args(d *datadriven.TestData) string {
	var b strings.Builder
	for _, a := range d.CmdArgs {
		b.WriteString(" " + a.String())
	}
	return b.String()
}

// blocks reads A-B or A.
func (s *scenario) blocks(word string) (off, length int64) {
	from, to, found := strings.Cut(word, "-")
	a, err := strconv.ParseInt(from, 10, 64)
	b := a + 1
	if err == nil && found {
		b, err = strconv.ParseInt(to, 10, 64)
	}
	if err != nil {
		s.t.Fatalf("no blocks: %q", word)
	}
	return a * scenarioBlock, (b - a) * scenarioBlock
}

func (s *scenario) do(words []string) (string, error) {
	switch words[0] {
	case "new":
		return "", s.newDevice(words[1:])
	case "write":
		off, length := s.blocks(words[1])
		_, err := s.engine.WriteAt([]byte(strings.Repeat(words[2], int(length))), off)
		return "", err
	case "discard":
		off, length := s.blocks(words[1])
		return "", s.engine.Discard(off, length)
	case "zero":
		off, length := s.blocks(words[1])
		return "", s.engine.WriteZeroes(off, length)
	case "free":
		off, length := s.blocks(words[1])
		return "", s.engine.MarkFree(off, length)
	case "trim":
		return "", s.engine.StartTrim()
	case "checkpoint":
		return "", s.engine.Checkpoint(s.t.Context(), bow.CheckpointOptions{})
	case "commit":
		return "", s.engine.Commit()
	case "flush":
		return "", s.engine.Flush()
	case "crash":
		s.dev = s.dev.Record().Cut(0).Nothing()
		return "", s.attach()
	case "detach":
		return "", s.attach()
	case "rollback":
		if _, err := restore.Restore(s.t.Context(), s.dev, restore.Options{}); err != nil {
			return "", err
		}
		return "", s.attach()
	case "read":
		return picture(s.engine)
	case "disk":
		return picture(s.dev)
	case "types":
		return s.engine.Types(), nil
	case "log":
		return s.log()
	case "stats":
		st := s.engine.Stats()
		b := int64(scenarioBlock)
		return fmt.Sprintf("%s free=%d backed-up=%d changed=%d backup-used=%d moved=%d sequence=%d", st.State,
			st.Free/b, st.BackedUp/b, st.Changed/b, st.BackupUsed/b, st.Moved/b, st.LogSequence), nil
	}
	s.t.Fatalf("unknown command %q", words[0])
	return "", nil
}

func (s *scenario) newDevice(words []string) error {
	free := ""
	for _, w := range words {
		switch key, value, _ := strings.Cut(w, "="); key {
		case "blocks":
			n, err := strconv.Atoi(value)
			if err != nil {
				return err
			}
			s.dev = memdev.New(int64(n)*scenarioBlock, scenarioBlock)
			for i := range n {
				letter := []byte{"ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i%26]}
				if _, err := s.dev.WriteAt([]byte(strings.Repeat(string(letter), scenarioBlock)), int64(i)*scenarioBlock); err != nil {
					return err
				}
			}
		case "free":
			free = value
		}
	}
	if err := s.dev.Flush(); err != nil {
		return err
	}
	if err := s.attach(); err != nil {
		return err
	}
	if err := s.engine.StartTrim(); err != nil {
		return err
	}
	off, length := s.blocks(free)
	return s.engine.MarkFree(off, length)
}

func (s *scenario) attach() (err error) {
	s.engine, err = bow.Open(s.dev, scenarioBlock)
	return err
}

func (s *scenario) log() (string, error) {
	r, err := restore.Inspect(s.dev)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, l := range r.LogBlocks {
		fmt.Fprintf(&b, "%d: block 0 at %d\n", l.Sequence, l.Sector0)
		for _, e := range l.Entries {
			fmt.Fprintf(&b, "  %d -> %d", e.Source, e.Dest)
			if n := e.Size / scenarioBlock; n > 1 {
				fmt.Fprintf(&b, " (%d blocks)", n)
			}
			b.WriteString("\n")
		}
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// picture shows each block of dev as a letter.
func picture(dev blockdev.Device) (string, error) {
	p := make([]byte, dev.Size())
	if _, err := dev.ReadAt(p, 0); err != nil {
		return "", err
	}
	var b strings.Builder
	for ; len(p) > 0; p = p[scenarioBlock:] {
		switch block := p[:scenarioBlock]; {
		case isLog(block):
			b.WriteByte('#')
		case string(block[:4]) == "BOWF":
			b.WriteByte('+')
		case block[0] == 0:
			b.WriteByte('.')
		default:
			b.WriteByte(block[0])
		}
	}
	return b.String(), nil
}

func isLog(block []byte) bool {
	_, err := bowlog.Unmarshal(block)
	return err == nil
}

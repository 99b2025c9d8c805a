package bow_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// Deeds are in units, which are whole blocks whatever the size of those.
const (
	unit  = 4096 // bytes
	units = 96   // of the device
)

// deed is something that a user does. Requests are to the units [start, end).
type deed struct {
	kind       string
	start, end int
}

func (d deed) String() string {
	if d.end == 0 {
		return d.kind
	}
	return fmt.Sprintf("%s [%d, %d)", d.kind, d.start, d.end)
}

// request tells whether d changes content that a power cut may take away again.
func (d deed) request() bool {
	return d.kind == "write" || d.kind == "zero" || d.kind == "discard"
}

// content is what deed i writes.
func (d deed) content(i int) []byte {
	p := blockdev.Buffer((d.end - d.start) * unit)
	for k := 0; k < len(p); k += 8 {
		binary.LittleEndian.PutUint64(p[k:], uint64(i+1)<<32|uint64(k))
	}
	return p
}

func checkpointID(i int) bowlog.ID { return bowlog.ID{byte(i), byte(i >> 8), 1} }

// kindOf returns what a user can tell of an error.
func kindOf(err error) string {
	for kind, is := range map[string]error{
		"state": bow.ErrState, "space": bow.ErrNoSpace, "open": bow.ErrCheckpointOpen,
		"no log": bowlog.ErrNoLog, "range": blockdev.ErrOutOfRange, "align": blockdev.ErrMisaligned,
	} {
		if errors.Is(err, is) {
			return kind
		}
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// status is what a user is told of the checkpoint.
type status struct {
	open   bool
	asked  bool // for a rollback
	policy bool // CommitWhenFull
	id     bowlog.ID
}

// plain is a volume that is nothing but an array.
type plain struct {
	status
	trim bool // since StartTrim

	now       []byte
	undefined []bool // by unit: discarded or never written

	kept          []byte // content at the checkpoint
	keptUndefined []bool
	untouched     []bool // free at the checkpoint and not written since
}

func newPlain() *plain {
	return &plain{now: make([]byte, units*unit), undefined: slices.Repeat([]bool{true}, units)}
}

// do does deed i. It returns the kind of its error.
func (p *plain) do(i int, d deed) string {
	switch d.kind {
	case "write":
		if d.end > units {
			return "range"
		}
		p.set(d, d.content(i))
	case "zero":
		p.set(d, make([]byte, (d.end-d.start)*unit))
	case "discard":
		for u := d.start; u < d.end; u++ {
			p.undefined[u] = true
		}
	case "free":
		if !p.open && !p.trim {
			return "state"
		}
	case "trim":
		if p.open {
			return "state"
		}
		p.trim = true
	case "stop":
		p.trim = false
	case "checkpoint":
		if p.open {
			return "state"
		}
		p.trim = false
		p.status = status{open: true, policy: i%2 == 0, id: checkpointID(i)}
		p.kept, p.keptUndefined = bytes.Clone(p.now), slices.Clone(p.undefined)
		p.untouched = slices.Clone(p.undefined)
	case "commit":
		if !p.open || p.asked {
			return "state"
		}
		p.status = status{}
	case "ask":
		if !p.open {
			return "state"
		}
		p.asked = true
	case "rollback":
		p.trim = false
		if !p.open {
			return "no log"
		}
		p.status = status{}
		p.now, p.undefined = p.kept, p.keptUndefined
	}
	return ""
}

func (p *plain) set(d deed, content []byte) {
	copy(p.now[d.start*unit:], content)
	for u := d.start; u < d.end; u++ {
		p.undefined[u] = false
		if p.open {
			p.untouched[u] = false
		}
	}
}

func count(list []bool, of bool) (n int) {
	for _, is := range list {
		if is == of {
			n++
		}
	}
	return n
}

// fits tells whether there is space for what d writes and for backups of all that
// was in use at the checkpoint, even after a power cut: under no circumstances may
// it be missing.
func (p *plain) fits(d deed) bool {
	if d.kind != "write" && d.kind != "zero" {
		return true
	}
	const most, log = 34, 14 // units in use, and for the log and what is lost in power cuts
	free, untouched := count(p.undefined, true), 0
	if p.open {
		untouched = count(p.untouched, true)
	}
	for u := d.start; u < min(d.end, units); u++ {
		if p.undefined[u] {
			free--
		}
		if p.open && p.untouched[u] {
			untouched--
		}
	}
	return units-free <= most && (!p.open || untouched >= count(p.keptUndefined, false)+log)
}

// someDeeds returns a random list of deeds, several checkpoints long, the last of
// which is ended.
func someDeeds(seed uint64) []deed {
	rng := rand.New(rand.NewPCG(seed, 0))
	p := newPlain()
	var list []deed
	add := func(kind string, start, end int) {
		d := deed{kind, start, end}
		if p.fits(d) {
			p.do(len(list), d)
			list = append(list, d)
		}
	}
	// odd is what has an answer of its own in the state that the volume is in.
	odd := func() {
		u := rng.IntN(units)
		switch kinds := []string{"trim", "again", "checkpoint", "stop", "ask", "commit", "free", "rollback"}; {
		case rng.IntN(4) == 0:
			add("write", units-1, units+1)
		case p.open && !p.asked:
			add(kinds[rng.IntN(4)], 0, 0)
		case p.open:
			add(kinds[rng.IntN(6)], 0, 0)
		case p.undefined[u] && rng.IntN(2) == 0:
			add("free", u, u+1)
		case !p.trim:
			add(kinds[4+rng.IntN(4)], 0, 0)
		}
	}
	some := func(n int) {
		for range n {
			start := rng.IntN(units)
			if rng.IntN(6) == 0 {
				start = 0
			}
			end := min(start+1+rng.IntN(1+rng.IntN(6)), units)
			switch rng.IntN(12) {
			case 0, 1:
				add("discard", start, end)
			case 2:
				add("zero", start, end)
			case 3:
				add("flush", 0, 0)
			case 4:
				odd()
			default:
				add("write", start, end)
			}
		}
	}
	for range 4 {
		some(12)
		if rng.IntN(3) == 0 {
			add("trim", 0, 0)
			some(3)
			add("stop", 0, 0)
		}
		add("trim", 0, 0)
		some(6)
		add("checkpoint", 0, 0)
		some(80)
		switch rng.IntN(3) {
		case 0:
			add("commit", 0, 0)
		case 1:
			add("ask", 0, 0)
			some(10)
			fallthrough
		case 2:
			add("rollback", 0, 0)
		}
		some(6)
	}
	return list
}

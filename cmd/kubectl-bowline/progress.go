package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

const barWidth = 30

// progress tells of something that takes its time: on a terminal in one line that
// is drawn anew, elsewhere in a line for each message that differs from the one
// before, without bars.
type progress struct {
	out      io.Writer
	terminal bool
	columns  int // of the terminal, 0 if not known
	last     string
	began    time.Time // of the bar
	from     int64     // where the bar began
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = true
		p.columns, _, _ = term.GetSize(int(f.Fd()))
	}
	return p
}

// say shows a message.
func (p *progress) say(message string) {
	if message == p.last {
		return
	}
	if p.terminal {
		// What is wrapped to a second line could not be drawn anew.
		line := []rune(message)
		if p.columns > 1 && len(line) >= p.columns {
			line = append(line[:p.columns-2], '…')
		}
		fmt.Fprintf(p.out, "\r\x1b[K%s", string(line))
	} else {
		fmt.Fprintln(p.out, message)
	}
	p.last = message
}

// bar shows that done of total bytes of what are done.
func (p *progress) bar(what string, done, total int64, now time.Time) {
	if total <= 0 || !p.terminal {
		p.say(what)
		return
	}
	if p.began.IsZero() {
		p.began, p.from = now, done
	}
	done = min(max(done, 0), total)
	n := int(float64(done) / float64(total) * barWidth)
	rate := ""
	if s := now.Sub(p.began).Seconds(); s > 1 && done > p.from {
		rate = "  " + bytes(int64(float64(done-p.from)/s)) + "/s"
	}
	p.say(fmt.Sprintf("%s [%s%s] %3d %%  %s of %s%s", what, strings.Repeat("=", n), strings.Repeat(" ", barWidth-n),
		int(float64(done)/float64(total)*100), bytes(done), bytes(total), rate))
}

// end leaves the line on a terminal.
func (p *progress) end() {
	if p.terminal && p.last != "" {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.last = ""
	}
}

// bytes writes a number of bytes for people, in the units of Kubernetes.
func bytes(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	units := []string{"Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	v := float64(n)
	i := -1
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if v < 10 {
		return fmt.Sprintf("%.1f%s", v, units[i])
	}
	return fmt.Sprintf("%.0f%s", v, units[i])
}

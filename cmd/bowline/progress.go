package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// progressBar draws on a terminal how far something long has come. Elsewhere it
// draws nothing.
type progressBar struct {
	out   io.Writer // nil if it is not a terminal
	what  string
	began time.Time
	last  time.Time
	drawn bool
}

const (
	barWidth    = 30
	barInterval = 100 * time.Millisecond
)

func newProgressBar(out io.Writer) *progressBar {
	b := &progressBar{}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.out = out
	}
	return b
}

// show draws that done of total bytes of what are done.
func (b *progressBar) show(what string, done, total int64) {
	if b.out == nil || total <= 0 {
		return
	}
	now := time.Now()
	if what != b.what {
		b.end()
		b.what, b.began = what, now
	} else if now.Sub(b.last) < barInterval && done < total {
		return
	}
	b.last, b.drawn = now, true
	n := int(done * barWidth / total)
	rate := ""
	if s := now.Sub(b.began).Seconds(); s > 0.2 {
		rate = size(int64(float64(done)/s)) + "/s"
	}
	fmt.Fprintf(b.out, "\r%-8s [%s%s] %3d %%  %s of %s  %-12s", what,
		strings.Repeat("=", n), strings.Repeat(" ", barWidth-n), done*100/total, size(done), size(total), rate)
}

// end leaves the line of the bar.
func (b *progressBar) end() {
	if b.drawn {
		fmt.Fprintln(b.out)
		b.drawn = false
	}
}

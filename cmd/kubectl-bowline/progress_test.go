package main

import (
	"strings"
	"testing"
	"time"
)

func TestProgress(t *testing.T) {
	var out strings.Builder
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	p := &progress{out: &out}
	p.say("waiting")
	p.say("waiting")
	p.bar("rolling back", 1, 2, now)
	p.bar("rolling back", 2, 2, now)
	p.end()
	if got := out.String(); got != "waiting\nrolling back\n" {
		t.Errorf("without a terminal: %q", got)
	}

	out.Reset()
	p = &progress{out: &out, terminal: true, columns: 100}
	p.bar("rolling back", 0, 1<<30, now)
	p.bar("rolling back", 1<<29, 1<<30, now.Add(2*time.Second))
	p.end()
	const want = "\r\x1b[Krolling back [                              ]   0 %  0 B of 1.0Gi" +
		"\r\x1b[Krolling back [===============               ]  50 %  512Mi of 1.0Gi  256Mi/s" +
		"\r\x1b[K"
	if got := out.String(); got != want {
		t.Errorf("on a terminal:\n%q, want\n%q", got, want)
	}

	out.Reset()
	p = &progress{out: &out, terminal: true, columns: 10}
	p.say("grüße an alle")
	if got := out.String(); got != "\r\x1b[Kgrüße an…" {
		t.Errorf("on a narrow terminal: %q", got)
	}
}

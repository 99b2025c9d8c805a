package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		list []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 2, 100}, 3},
	} {
		if got := median(c.list); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.list, got, c.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	ratio := func(goal float64) *row {
		r := &row{against: "raw", goal: goal}
		// A round in which the machine was busy changes both figures. The median
		// of the figures would be 100 to 50.
		r.compare(100, 80)
		r.compare(50, 40)
		r.compare(1000, 50)
		return r
	}
	limit := func(goal float64) *row {
		r := &row{goal: goal}
		r.add(0.02)
		r.add(0.04)
		return r
	}
	for name, c := range map[string]struct {
		row  *row
		want string
	}{
		"ratio above":  {ratio(0.7), "met"},
		"ratio equal":  {ratio(0.8), "met"},
		"ratio below":  {ratio(0.9), "missed"},
		"ratio alone":  {ratio(0), ""},
		"figure below": {limit(0.05), "met"},
		"figure equal": {limit(0.03), "met"},
		"figure above": {limit(0.02), "missed"},
		"figure alone": {limit(0), ""},
	} {
		if got := c.row.verdict(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func sample() *Results {
	rs := &Results{rounds: 3, run: 2 * time.Second, date: time.Now()}
	for _, got := range []float64{80, 90, 70} {
		rs.row(row{key: "a", work: "reading", against: "raw", goal: 0.75}).compare(100, got)
		rs.row(row{key: "b", work: "memory", unit: amount, goal: 20 * mib}).add(30 * mib)
	}
	return rs
}

func TestTable(t *testing.T) {
	var out strings.Builder
	if err := sample().Print(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for i, want := range []string{
		"WORK COMPARED WITH ITS FIGURE BOWLINE RATIO OF THE ROUNDS GOAL",
		"reading raw 100/s 80/s 0.80 0.70 - 0.90 >= 0.75 met",
		"memory 30.0 MiB 30.0 MiB - 30.0 MiB <= 20.0 MiB missed",
	} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
}

func TestHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "history.jsonl")
	rs := sample()
	want := rs.record()
	for range 2 {
		if err := rs.AppendHistory(path); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines after 2 runs", len(lines))
	}
	for _, line := range lines {
		var got record
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		if got.Ratios["a"] != 0.8 || got.Figures["b"] != 30*mib || got.Kernel != want.Kernel || got.Rounds != 3 {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestParseFio(t *testing.T) {
	report := func(job string) []byte { return []byte(`{"jobs": [` + job + `]}`) }
	got, err := parseFio(report(`{"error": 0, "read": {"io_bytes": 0, "total_ios": 0, "runtime": 0}, "write": {"io_bytes": 8192, "total_ios": 2, "runtime": 500}}`), true)
	if want := (tally{ops: 2, bytes: 8192, time: 500 * time.Millisecond}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got.rate(operations) != 4 || got.rate(throughput) != 16384 {
		t.Errorf("rates are %v and %v, want 4 and 16384", got.rate(operations), got.rate(throughput))
	}
	for name, out := range map[string][]byte{
		"no report": []byte("fio: out of memory"),
		"no job":    report(""),
		"an error":  report(`{"error": 5, "write": {"io_bytes": 8192, "total_ios": 2, "runtime": 500}}`),
		"no work":   report(`{"error": 0, "write": {"io_bytes": 0, "total_ios": 0, "runtime": 0}}`),
	} {
		if got, err := parseFio(out, true); err == nil {
			t.Errorf("%s: got %+v and no error", name, got)
		}
	}
}

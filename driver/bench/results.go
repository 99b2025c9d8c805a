package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Results are what a run has measured.
type Results struct {
	date   time.Time
	rounds int
	run    time.Duration // for one figure

	rows    []*row // in the order in which they came up first
	skipped []string
}

// row is one line of the table: what one work costs.
type row struct {
	key  string // in the history; stable
	work string // for people
	unit unit

	// against names what Bowline is compared with. If it is empty there is
	// nothing to compare with, and the figure itself is what counts.
	against string

	// goal is the smallest ratio that is wanted, or without a comparison the
	// largest figure in its unit; 0 if there is none.
	goal float64

	// One figure for each round. With a comparison, more is better.
	base, got []float64
}

// unit is what a figure counts.
type unit int

const (
	operations unit = iota // operations a second
	throughput             // bytes a second
	duration               // seconds
	amount                 // bytes
)

// String names the unit in JSON.
func (u unit) String() string {
	return [...]string{"operations per second", "bytes per second", "seconds", "bytes"}[u]
}

func (u unit) format(v float64) string {
	switch u {
	case operations:
		return fmt.Sprintf("%.0f/s", v)
	case throughput:
		return fmt.Sprintf("%.0f MB/s", v/1e6)
	case duration:
		return fmt.Sprintf("%.1f ms", v*1e3)
	}
	return fmt.Sprintf("%.1f MiB", v/(1<<20))
}

// row returns the line with the key of r, which is added if there is none.
func (rs *Results) row(r row) *row {
	for _, have := range rs.rows {
		if have.key == r.key {
			return have
		}
	}
	rs.rows = append(rs.rows, &r)
	return &r
}

// compare adds the figures of one round.
func (r *row) compare(base, got float64) {
	r.base = append(r.base, base)
	r.got = append(r.got, got)
}

// add adds the figure of one round where there is nothing to compare with.
func (r *row) add(got float64) { r.got = append(r.got, got) }

// ratios are those of the rounds. The two figures of a round were measured one
// after the other, so their ratio is steadier than either of them.
func (r *row) ratios() []float64 {
	list := make([]float64, len(r.base))
	for i := range r.base {
		list[i] = r.got[i] / r.base[i]
	}
	return list
}

// value is what is held against the goal: the median of the ratios, or of the
// figures.
func (r *row) value() float64 {
	if r.against != "" {
		return median(r.ratios())
	}
	return median(r.got)
}

// verdict tells whether the goal is met, or "" if there is none.
func (r *row) verdict() string {
	switch met := r.value() >= r.goal == (r.against != ""); {
	case r.goal == 0:
		return ""
	case met || r.value() == r.goal:
		return "met"
	}
	return "missed"
}

// median is the middle of list, which is not empty, or the mean of the two
// middle ones.
func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Print writes the table for people, with a line below it for what was not measured.
func (rs *Results) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WORK\tCOMPARED WITH\tITS FIGURE\tBOWLINE\tRATIO\tOF THE ROUNDS\tGOAL\t")
	for _, r := range rs.rows {
		fmt.Fprintln(w, strings.Join(r.cells(), "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range rs.skipped {
		if _, err := fmt.Fprintln(out, "not measured:", s); err != nil {
			return err
		}
	}
	return nil
}

func (r *row) cells() []string {
	got := r.unit.format(median(r.got))
	if r.against == "" {
		goal := ""
		if r.goal != 0 {
			goal = "<= " + r.unit.format(r.goal)
		}
		spread := r.unit.format(slices.Min(r.got)) + " - " + r.unit.format(slices.Max(r.got))
		return []string{r.work, "", "", got, "", spread, goal, r.verdict()}
	}
	goal := ""
	if r.goal != 0 {
		goal = fmt.Sprintf(">= %.2f", r.goal)
	}
	ratios := r.ratios()
	spread := fmt.Sprintf("%.2f - %.2f", slices.Min(ratios), slices.Max(ratios))
	return []string{r.work, r.against, r.unit.format(median(r.base)), got, fmt.Sprintf("%.2f", r.value()), spread, goal, r.verdict()}
}

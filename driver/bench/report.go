package bench

import (
	"encoding/json"
	"runtime"
	"time"
)

// report is the JSON form of results, which is part of the interface. What has
// one figure for each round lists them all.
type report struct {
	Date    time.Time `json:"date"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Rounds  int       `json:"rounds"`
	Seconds float64   `json:"seconds"` // for one figure
	Rows    []line    `json:"rows"`
	Skipped []string  `json:"skipped,omitempty"`
}

type line struct {
	Key     string    `json:"key"` // stable
	Work    string    `json:"work"`
	Unit    string    `json:"unit"` // of the figures
	Against string    `json:"against,omitempty"`
	Base    []float64 `json:"base,omitempty"` // figures of what Bowline is compared with
	Figures []float64 `json:"figures"`

	// Ratio is the median of figure to base in the same round, 0 where there is
	// nothing to compare with.
	Ratio float64 `json:"ratio,omitempty"`
	// Goal is for the ratio, which should not be smaller, or else for the median
	// of the figures, which should not be larger; 0 if there is none.
	Goal float64 `json:"goal,omitempty"`
	Met  *bool   `json:"met,omitempty"` // nothing if there is no goal
}

// MarshalJSON returns all that was measured.
func (rs *Results) MarshalJSON() ([]byte, error) {
	r := report{
		Date: rs.date.UTC().Truncate(time.Second), Kernel: kernel(), CPUs: runtime.NumCPU(),
		Rounds: rs.rounds, Seconds: rs.run.Seconds(), Rows: []line{}, Skipped: rs.skipped,
	}
	for _, row := range rs.rows {
		l := line{
			Key: row.key, Work: row.work, Unit: row.unit.String(), Against: row.against,
			Base: row.base, Figures: row.got, Goal: row.goal,
		}
		if row.against != "" {
			l.Ratio = rounded(row.value(), 1e3)
		}
		if verdict := row.verdict(); verdict != "" {
			met := verdict == "met"
			l.Met = &met
		}
		r.Rows = append(r.Rows, l)
	}
	return json.Marshal(r)
}

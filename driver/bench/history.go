package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// record is one line of the history.
type record struct {
	Date    time.Time `json:"date"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Rounds  int       `json:"rounds"`
	Seconds float64   `json:"seconds"` // for one figure

	// Ratios and Figures are by the key of the row: the ratio where there is a
	// comparison, otherwise the figure, in seconds or bytes.
	Ratios  map[string]float64 `json:"ratios"`
	Figures map[string]float64 `json:"figures"`
}

func (rs *Results) record() record {
	r := record{
		Date: rs.date.UTC().Truncate(time.Second), Kernel: kernel(), CPUs: runtime.NumCPU(),
		Rounds: rs.rounds, Seconds: rs.run.Seconds(),
		Ratios: map[string]float64{}, Figures: map[string]float64{},
	}
	for _, row := range rs.rows {
		if row.against != "" {
			r.Ratios[row.key] = rounded(row.value(), 1e3)
		} else {
			r.Figures[row.key] = rounded(row.value(), 1e6)
		}
	}
	return r
}

// rounded is v to the nearest part of so many.
func rounded(v, parts float64) float64 { return math.Round(v*parts) / parts }

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// AppendHistory adds the results to a file as one line of JSON. The file and its
// directory are made if they are not there.
func (rs *Results) AppendHistory(path string) error {
	line, err := json.Marshal(rs.record())
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("history: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

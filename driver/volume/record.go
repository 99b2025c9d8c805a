package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// record is what is remembered of a volume across restarts of the node plugin and
// of the node. All of it can be lost: then a static volume is found again when it
// is staged, and a checkpoint that has ended is not known to have.
type record struct {
	ID string `json:"id"`

	// Device is the backing device of a static volume.
	Device string `json:"device,omitempty"`

	// IOUring is set if its requests are to come over io_uring where that can be.
	IOUring bool `json:"ioUring,omitempty"`

	// StagingPath is where the volume was staged last. It tells the mount that
	// is the kubelet's from those of pods.
	StagingPath string `json:"stagingPath,omitempty"`

	// Formatting is set while a file system is being made on a static volume that
	// was found blank, so that what mkfs has written is not taken for data when it
	// is interrupted.
	Formatting bool `json:"formatting,omitempty"`

	// Frozen is set while the file system is frozen or about to be.
	Frozen bool `json:"frozen,omitempty"`

	// Checkpoint is the last one of the volume.
	Checkpoint *checkpointRecord `json:"checkpoint,omitempty"`
}

// checkpointRecord is written before an operation begins and after it is done, so
// that together with the volume, which tells whether a checkpoint is open, it
// tells what became of a checkpoint that is not: see outcome.
type checkpointRecord struct {
	UID    string    `json:"uid"`
	Stage  stage     `json:"stage"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	Bytes  int64     `json:"bytes,omitempty"` // put back by a rollback

	// Restoring is set while old content may be being put back. A checkpoint that
	// was to be rolled back and is gone without that was given up by hand.
	Restoring bool `json:"restoring,omitempty"`

	// Frozen is for how long the file system was frozen when it was opened.
	Frozen time.Duration `json:"frozen,omitempty"`

	// XFSCycle is the cycle that the log of an XFS is being advanced to after a
	// rollback, see advanceLog; 0 if it is not. The file system is clean then, and its
	// log perhaps half advanced.
	XFSCycle    int64 `json:"xfsCycle,omitempty"`
	XFSAdvanced bool  `json:"xfsAdvanced,omitempty"` // it is done
}

// asksForRollback tells whether the checkpoint uid was to be rolled back when the
// record was written.
func (r record) asksForRollback(uid string) bool {
	c := r.Checkpoint
	return c != nil && c.Stage == rollingBack && sameUID(c.UID, uid)
}

type stage string

const (
	opening     stage = "Opening"
	opened      stage = "Open"
	committing  stage = "Committing"
	committed   stage = "Committed"
	rollingBack stage = "RollingBack"
	rolledBack  stage = "RolledBack"
)

func (m *Manager) recordDir() string { return filepath.Join(m.stateDir, "volumes") }

// mappingName is the name of a volume in the engine, in the kernel and in files:
// its ID, with what file names cannot have escaped.
func mappingName(id string) string {
	name := url.PathEscape(id)
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	return name
}

// maxName is how long the name of a record may be, bytes; file names have 255.
const maxName = 240

func (m *Manager) recordPath(id string) (string, error) {
	name := mappingName(id)
	if id == "" || len(name) > maxName {
		return "", fmt.Errorf("volume ID %.40q is empty or too long: %w", id, ErrInvalid)
	}
	return filepath.Join(m.recordDir(), name+".json"), nil
}

// loadRecord returns an empty record for a volume that has none.
func (m *Manager) loadRecord(id string) (record, error) {
	path, err := m.recordPath(id)
	if err != nil {
		return record{}, err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return record{ID: id}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("volume %s: reading its record: %w", id, err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil || r.ID != id {
		// It is written as a whole, so this is a damaged disk. Whatever it
		// said can be found out again or was history.
		m.log.Warn("a record is unreadable and taken for lost", "volume", id, "file", path, "error", err)
		return record{ID: id}, nil
	}
	return r, nil
}

// updateRecord changes a record durably; not if change changes nothing.
func (m *Manager) updateRecord(id string, change func(*record)) (record, error) {
	m.records.Lock()
	defer m.records.Unlock()
	r, err := m.loadRecord(id)
	if err != nil {
		return r, err
	}
	before, _ := json.Marshal(r)
	change(&r)
	after, err := json.Marshal(r)
	if err != nil {
		return r, fmt.Errorf("volume %s: its record: %w", id, err)
	}
	if string(before) == string(after) {
		return r, nil
	}
	path, err := m.recordPath(id)
	if err != nil {
		return r, err
	}
	// A disk may have been mounted above the directory that New has made.
	err = os.MkdirAll(m.recordDir(), 0o700)
	if err == nil {
		err = replaceFile(path, after)
	}
	if err != nil {
		return r, fmt.Errorf("volume %s: writing its record: %w", id, err)
	}
	return r, nil
}

func (m *Manager) forgetRecord(id string) error {
	path, err := m.recordPath(id)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("volume %s: removing its record: %w", id, err)
	}
	return nil
}

// recorded returns the IDs of all volumes that have a record.
func (m *Manager) recorded() ([]string, error) {
	entries, err := os.ReadDir(m.recordDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listing records of volumes: %w", err)
	}
	var ids []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		if id, err := url.PathUnescape(name); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// replaceFile writes a file so that after a crash either the old or the new
// content is there.
func replaceFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

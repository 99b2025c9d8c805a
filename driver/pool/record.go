package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Names inside a volume's directory.
const (
	imageFile  = "image"
	recordFile = "volume.json"
	recordNew  = recordFile + ".new" // becomes recordFile
)

// recordVersion is the format of volume.json.
const recordVersion = 1

// record is the content of volume.json. See the package comment.
type record struct {
	Version int       `json:"version"`
	Name    string    `json:"name"`
	Size    int64     `json:"size"`
	Thin    bool      `json:"thin,omitempty"`
	Used    bool      `json:"used,omitempty"`
	FSType  string    `json:"fsType,omitempty"`
	Source  string    `json:"source,omitempty"`
	Shares  bool      `json:"shares,omitempty"`
	Growing bool      `json:"growing,omitempty"`
	Created time.Time `json:"created"`
}

// read returns the record of the volume id, with the size of its image.
func (p *Pool) read(id string) (record, error) {
	if err := p.check(id); err != nil {
		return record{}, err
	}
	r, err := p.readOnce(id)
	if errors.Is(err, ErrDamaged) {
		// Perhaps it was deleted between two looks.
		r, err = p.readOnce(id)
	}
	return r, err
}

func (p *Pool) readOnce(id string) (record, error) {
	dir := p.volumeDir(id)
	st, err := os.Lstat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return record{}, ErrNotFound
	case err != nil:
		return record{}, err
	case !st.IsDir():
		return record{}, fmt.Errorf("%w: %s is not a directory", ErrDamaged, dir)
	}
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return record{}, fmt.Errorf("%w: there is no %s in %s", ErrDamaged, recordFile, dir)
	case err != nil:
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, fmt.Errorf("%w: %s in %s: %w", ErrDamaged, recordFile, dir, err)
	}
	switch {
	case r.Version != recordVersion:
		return record{}, fmt.Errorf("%w: %s in %s has version %d; this program knows %d",
			ErrDamaged, recordFile, dir, r.Version, recordVersion)
	case ID(r.Name, p.node) != id:
		return record{}, fmt.Errorf("%w: %s in %s is that of another volume, %q", ErrDamaged, recordFile, dir, r.Name)
	}
	st, err = os.Lstat(filepath.Join(dir, imageFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return record{}, fmt.Errorf("%w: there is no %s in %s", ErrDamaged, imageFile, dir)
	case err != nil:
		return record{}, err
	case !st.Mode().IsRegular():
		return record{}, fmt.Errorf("%w: %s in %s is not a regular file", ErrDamaged, imageFile, dir)
	case st.Size() < r.Size || r.Size < MinSize:
		return record{}, fmt.Errorf("%w: %s in %s has %d bytes instead of %d",
			ErrDamaged, imageFile, dir, st.Size(), r.Size)
	}
	if !r.Growing {
		// Whoever attaches the image sees its size, whatever the record says.
		r.Size = st.Size() &^ (Alignment - 1)
	}
	return r, nil
}

// write replaces volume.json in the directory dir, durably.
func (p *Pool) write(dir string, r *record) error {
	r.Version = recordVersion
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	temporary := filepath.Join(dir, recordNew)
	if err := writeFile(temporary, append(data, '\n')); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	p.step("record written")
	if err := os.Rename(temporary, filepath.Join(dir, recordFile)); err != nil {
		return err
	}
	p.step("record renamed")
	return syncDir(dir)
}

func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes durable what was created, renamed and removed in the directory.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (r *record) volume(p *Pool, id string) Volume {
	return Volume{
		ID:      id,
		Path:    filepath.Join(p.volumeDir(id), imageFile),
		Name:    r.Name,
		Size:    r.Size,
		Thin:    r.Thin,
		Used:    r.Used,
		FSType:  r.FSType,
		Source:  r.Source,
		Created: r.Created,
	}
}

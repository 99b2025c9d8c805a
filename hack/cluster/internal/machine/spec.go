package machine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A Spec says what a machine is made of. All of it is fixed when the machine
// starts.
type Spec struct {
	// Name is the host name.
	Name string
	// Dir is the machine's directory on the host, an absolute path.
	Dir string
	// RootFS is the directory below the machine's root file system. It is
	// never written, so machines can share it.
	RootFS string
	// Binds are directories of the host that the machine sees.
	Binds []Bind
	// Cgroup is where all of the machine's processes are, in every hierarchy.
	Cgroup Cgroup
	// Path is the PATH of services and commands.
	Path string
	// Services run as long as the machine does.
	Services []Service
	// Forward is the TCP address inside the machine to which connections to
	// the listener given to Start are passed on; empty if there is none.
	Forward string `json:",omitempty"`
}

// A Bind is a directory of the host at a place in the machine.
type Bind struct {
	Source   string
	Target   string
	ReadOnly bool
}

// A Service is a program that is started again, after a second, when it ends.
type Service struct {
	Name string
	Args []string // Args[0] is found by the machine's Path
}

const (
	specFile    = "machine.json"
	processFile = "process.json"
	initLog     = "init.log"
)

// Load reads the Spec of the machine in dir.
func Load(dir string) (*Spec, error) {
	var s Spec
	if err := readJSON(filepath.Join(dir, specFile), &s); err != nil {
		return nil, fmt.Errorf("reading what the machine is made of: %w", err)
	}
	return &s, nil
}

// LogFile is where the output of a service is, on the host.
func (s *Spec) LogFile(service string) string {
	return filepath.Join(s.Dir, "log", "services", service+".log")
}

// InitLog is where the machine's first process says what it does, on the host.
func (s *Spec) InitLog() string { return filepath.Join(s.Dir, initLog) }

func (s *Spec) path(name string) string { return filepath.Join(s.Dir, name) }

// prepare makes the machine's directory. What is there stays.
func (s *Spec) prepare() error {
	// They are options of an overlay mount, where these separate.
	if strings.ContainsAny(s.Dir+s.RootFS, `,:\`) {
		return fmt.Errorf("the paths %q and %q must not contain any of , : \\", s.Dir, s.RootFS)
	}
	for _, name := range []string{"upper", "work", "lib", "log/services", "root"} {
		if err := os.MkdirAll(s.path(name), 0o755); err != nil {
			return err
		}
	}
	return writeJSON(s.path(specFile), s)
}

func readJSON(name string, to any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func writeJSON(name string, from any) error {
	b, err := json.MarshalIndent(from, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

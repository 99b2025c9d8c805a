package machine

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What Start gives to the first process, besides its arguments.
const (
	goFD       = 3 // reading a byte: the network is there; end of file: give up
	reportFD   = 4 // what went wrong is written here, or reportOK
	listenerFD = 5 // the listener to forward from, if the Spec says so
)

const reportOK = "ok"

// Init is what the first process of the machine in dir does. It returns only
// if the machine cannot be started.
func Init(dir string) error {
	report := os.NewFile(reportFD, "report")
	err := run(dir, report)
	fmt.Fprint(report, err)
	return err
}

func run(dir string, report *os.File) error {
	if os.Getpid() != 1 {
		return errors.New("this is not the first process of a machine")
	}
	for _, fd := range []int{goFD, reportFD, listenerFD} {
		unix.CloseOnExec(fd)
	}
	s, err := Load(dir)
	if err != nil {
		return err
	}
	var listener net.Listener
	if s.Forward != "" {
		if listener, err = inheritedListener(); err != nil {
			return err
		}
	}
	if err := s.Cgroup.Child(ownCgroup).join(); err != nil {
		return err
	}
	if err := s.mountRoot(); err != nil {
		return fmt.Errorf("mounting the root file system: %w", err)
	}
	if err := s.configure(); err != nil {
		return err
	}
	if n, err := os.NewFile(goFD, "go").Read(make([]byte, 1)); n == 0 {
		return fmt.Errorf("the starting process gave up: %w", err)
	}
	if _, err := io.WriteString(report, reportOK); err != nil {
		return err
	}
	report.Close()
	if listener != nil {
		go forward(listener, s.Forward)
	}
	return supervise(s)
}

func inheritedListener() (net.Listener, error) {
	file := os.NewFile(listenerFD, "listener")
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("taking over the listener: %w", err)
	}
	return listener, nil
}

// configure does what the boot of a distribution does: the host name and files
// that name it, limits, and forwarding of packets for the pods.
func (s *Spec) configure() error {
	// Containers inherit it; the limit of the user's shell may be too low.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raising the limit of open files: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := os.Setenv("PATH", s.Path); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"/etc/hostname": s.Name + "\n",
		"/etc/hosts":    "127.0.0.1 localhost\n127.0.1.1 " + s.Name + "\n",
		// There is no name server; pods would inherit the host's otherwise.
		"/etc/resolv.conf":              "",
		"/proc/sys/net/ipv4/ip_forward": "1",
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	id, err := os.ReadFile("/etc/machine-id")
	if err == nil && len(strings.TrimSpace(string(id))) > 0 {
		return nil // kept across starts
	}
	id, err = os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	return os.WriteFile("/etc/machine-id", []byte(strings.ReplaceAll(string(id), "-", "")), 0o444)
}

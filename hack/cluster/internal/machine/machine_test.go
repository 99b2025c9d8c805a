package machine

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestProcess(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := false
	t.Cleanup(func() {
		if !waited {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !p.alive() {
		t.Error("a running process is not alive")
	}
	for what, other := range map[string]process{
		"an earlier process of that number": {PID: p.PID, Start: "1", Boot: p.Boot},
		"a process before a reboot":         {PID: p.PID, Start: p.Start, Boot: "another"},
		"no process":                        {},
	} {
		if other.alive() {
			t.Errorf("%s is alive", what)
		}
		if err := other.kill(); err != nil {
			t.Errorf("killing %s: %v", what, err)
		}
	}
	if !p.alive() {
		t.Fatal("killing others killed the process")
	}
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	if p.alive() {
		t.Error("a killed process that nobody waited for is alive")
	}
	_ = cmd.Wait()
	waited = true
	if p.alive() {
		t.Error("a killed process is alive")
	}
	if err := p.kill(); err != nil {
		t.Errorf("killing a dead process: %v", err)
	}
}

func TestForward(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	// Answers when the request has ended, as HTTP/1.0 may do.
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			request, _ := io.ReadAll(conn)
			_, _ = io.WriteString(conn, strings.ToUpper(string(request)))
			conn.Close()
		}
	}()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		forward(listener, server.Addr().String())
		close(done)
	}()
	for _, request := range []string{"first", "second", ""} {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || string(answer) != strings.ToUpper(request) {
			t.Errorf("the answer to %q is %q, %v", request, answer, err)
		}
		conn.Close()
	}
	listener.Close()
	<-done
}

func TestForwardWithoutServer(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server.Close() // its address is free now
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go forward(listener, server.Addr().String())
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection to nobody is not closed: %v", err)
	}
}

func TestPrepareRefusesOverlaySeparators(t *testing.T) {
	for _, name := range []string{"a,b", "a:b", `a\b`} {
		s := &Spec{Name: "m", Dir: filepath.Join(t.TempDir(), name)}
		if err := s.prepare(); err == nil {
			t.Errorf("a directory %q is accepted", name)
		}
	}
}

func TestLoad(t *testing.T) {
	s := &Spec{
		Name: "m", Dir: t.TempDir(), RootFS: "/root", Path: "/bin", Cgroup: "/a/b",
		Binds:    []Bind{{Source: "/a", Target: "/b", ReadOnly: true}},
		Services: []Service{{Name: "x", Args: []string{"x", "-y"}}},
	}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	got, err := Load(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Services[0].Args[1] != "-y" || got.Binds[0] != s.Binds[0] || got.Cgroup != s.Cgroup {
		t.Errorf("read %+v, written %+v", got, s)
	}
	if got.Running() || got.PID() != 0 {
		t.Error("a machine that was never started runs")
	}
}

// The loop driver's numbers and those of stat agree for every file system.
func TestKernelDev(t *testing.T) {
	for _, d := range []struct{ major, minor uint32 }{{0, 40}, {7, 3}, {8, 300}, {254, 1<<20 - 1}, {4095, 256}} {
		// As the kernel's huge_encode_dev.
		encoded := uint64(d.minor&0xff) | uint64(d.major)<<8 | uint64(d.minor&^0xff)<<12
		if got, want := kernelDev(encoded), unix.Mkdev(d.major, d.minor); got != want {
			t.Errorf("device %d:%d is %#x, not %#x", d.major, d.minor, got, want)
		}
	}
}

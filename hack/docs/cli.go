package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// programs are the commands that are documented.
var programs = []struct{ name, shown, intro string }{
	{"bowline", "bowline", "The program of all of Bowline's pods, and `bowline device` for people on a machine."},
	{"kubectl-bowline", "kubectl bowline", "The plugin of kubectl. It only reads and writes what the API server has."},
}

// available is a line of the list of subcommands.
var available = regexp.MustCompile(`(?m)^  ([a-z][-a-z]*) +\S`)

func writeCommands(root string, out *bytes.Buffer) error {
	fmt.Fprint(out, "# Commands\n\nWhat `--help` says.\n")
	dir, err := os.MkdirTemp("", "bowline-docs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, p := range programs {
		fmt.Fprintf(out, "\n## %s\n\n%s\n", p.shown, p.intro)
		path := filepath.Join(dir, p.name)
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "./cmd/"+p.name)
		build.Dir = root
		if said, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", p.name, err, said)
		}
		if err := writeCommand(out, path, p.shown); err != nil {
			return err
		}
	}
	return nil
}

// writeCommand writes the help of a command and of those below it.
func writeCommand(out *bytes.Buffer, program, shown string, below ...string) error {
	help := exec.Command(program, append(below, "--help")...)
	help.Env = []string{"HOME=/", "PATH=" + os.Getenv("PATH")} // the same on every machine
	said, err := help.Output()
	if err != nil {
		return fmt.Errorf("%s %s --help: %w", shown, strings.Join(below, " "), err)
	}
	title := strings.TrimSpace(shown + " " + strings.Join(below, " "))
	if len(below) > 0 {
		fmt.Fprintf(out, "\n### %s\n", title)
	}
	fmt.Fprintf(out, "\n```text\n%s\n```\n", strings.TrimRight(string(said), "\n"))
	_, list, ok := strings.Cut(string(said), "Available Commands:\n")
	if !ok {
		return nil
	}
	list, _, _ = strings.Cut(list, "\n\n")
	for _, m := range available.FindAllStringSubmatch(list, -1) {
		if m[1] == "help" || m[1] == "completion" {
			continue
		}
		if err := writeCommand(out, program, shown, append(below[:len(below):len(below)], m[1])...); err != nil {
			return err
		}
	}
	return nil
}

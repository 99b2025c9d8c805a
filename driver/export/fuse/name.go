package fuse

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// NameOf returns the name of the export whose loop device has the path device, such
// as /dev/loop3, served or dead; "" if it is no export.
func NameOf(device string) string {
	name, _, err := readName(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		return ""
	}
	return name
}

// readName returns the name of an export from the backing_file attribute of its loop
// device. It is not ours if it is of something else, or detached in the meantime.
func readName(file string) (name string, ours bool, err error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	name, ours = strings.CutPrefix(strings.TrimSuffix(string(b), "\n"), "/"+prefix)
	if !ours {
		return "", false, nil
	}
	return name, true, nil
}

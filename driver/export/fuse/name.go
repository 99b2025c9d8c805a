package fuse

import (
	"os"
	"path/filepath"
	"strings"
)

// NameOf returns the name of the export whose loop device has the path device, such
// as /dev/loop3, served or dead; "" if it is no export.
func NameOf(device string) string {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		return ""
	}
	name, ours := strings.CutPrefix(strings.TrimSuffix(string(b), "\n"), "/"+prefix)
	if !ours {
		return ""
	}
	return name
}

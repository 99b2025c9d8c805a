package main

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

const recorded = `bowline
	ffffffff81000010 fuse_dev_do_read ([kernel.kallsyms])
	ffffffff81000020 vfs_read ([kernel.kallsyms])
	    49d3a0 internal/runtime/syscall.Syscall6 (/usr/bin/bowline)

bowline
	ffffffff81000020 vfs_read ([kernel.kallsyms])
	               0 [unknown] ([unknown])
	    49d3a0 internal/runtime/syscall.Syscall6 (/usr/bin/bowline)

bowline
	    49d3a1 main.(*T[go.shape.int]).work<x> (/usr/bin/bowline)
`

func TestRead(t *testing.T) {
	root, err := read(strings.NewReader(recorded))
	if err != nil {
		t.Fatal(err)
	}
	call := root.called["syscall.Syscall6"]
	if root.samples != 3 || call == nil || call.samples != 2 || call.kernel {
		t.Fatalf("%+v", root)
	}
	vfs := call.called["vfs_read"]
	if vfs == nil || vfs.samples != 2 || !vfs.kernel || vfs.called["fuse_dev_do_read"].samples != 1 {
		t.Errorf("%+v", vfs)
	}
}

// TestDraw checks that the picture is XML with all functions in it.
func TestDraw(t *testing.T) {
	var b strings.Builder
	if err := run("a < b", strings.NewReader(recorded), &b); err != nil {
		t.Fatal(err)
	}
	names := 0
	for d := xml.NewDecoder(strings.NewReader(b.String())); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "title" {
			names++
		}
	}
	if names != 5 {
		t.Errorf("%d boxes, want 5:\n%s", names, b.String())
	}
	if err := run("", strings.NewReader("\n\n"), io.Discard); err == nil {
		t.Error("a picture of nothing")
	}
}

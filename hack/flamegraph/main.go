// Command flamegraph draws what perf has recorded: it reads the output of
//
//	perf script --fields comm,ip,sym,dso
//
// and writes a picture (SVG). Each box is a function, as wide as the share of samples
// in which it was on the stack; below it is who called it. Point at a box for its name
// and its share.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"html"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	title := flag.String("title", "", "what is to be written above the picture")
	flag.Parse()
	if err := run(*title, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "flamegraph:", err)
		os.Exit(1)
	}
}

func run(title string, r io.Reader, w io.Writer) error {
	root, err := read(r)
	if err != nil {
		return err
	}
	if root.samples == 0 {
		return errors.New("no samples")
	}
	b := bufio.NewWriter(w)
	draw(b, title, root)
	return b.Flush()
}

// frame is a function with all that was called by it on one way to it.
type frame struct {
	name    string
	kernel  bool
	samples int // in which it was on the stack
	called  map[string]*frame
}

// add counts a sample with the stack of functions below f, the innermost first.
func (f *frame) add(stack []function) {
	f.samples++
	if len(stack) == 0 {
		return
	}
	next := stack[len(stack)-1]
	c := f.called[next.name]
	if c == nil {
		c = &frame{name: next.name, kernel: next.kernel, called: map[string]*frame{}}
		f.called[next.name] = c
	}
	c.add(stack[:len(stack)-1])
}

type function struct {
	name   string
	kernel bool
}

// read reads the output of perf script: for each sample a line, then a line for each
// function, the innermost first, then an empty one.
func read(r io.Reader) (*frame, error) {
	root := &frame{name: "all", called: map[string]*frame{}}
	var stack []function
	in := false // a sample
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := s.Text()
		switch {
		case strings.TrimSpace(line) == "":
			if in {
				root.add(stack)
			}
			stack, in = nil, false
		case line[0] != ' ' && line[0] != '\t' || !in:
			in = true
		default:
			if f, ok := parse(line); ok {
				stack = append(stack, f)
			}
		}
	}
	if in {
		root.add(stack)
	}
	return root, s.Err()
}

// parse reads a line such as
//
//	ffffffff81a2b3c4 fuse_dev_do_read ([kernel.kallsyms])
func parse(line string) (function, bool) {
	line = strings.TrimSpace(line)
	_, rest, ok := strings.Cut(line, " ")
	open := strings.LastIndex(rest, " (")
	if !ok || open < 0 {
		return function{}, false
	}
	name, object := rest[:open], rest[open+2:]
	if name == "[unknown]" || name == "" {
		return function{}, false
	}
	if last := strings.LastIndexByte(name, '/'); last >= 0 {
		name = name[last+1:] // of the path of a Go package
	}
	return function{name, strings.HasPrefix(object, "[kernel") || strings.HasPrefix(object, "[guest.kernel") || strings.HasSuffix(object, ".ko)")}, true
}

// Sizes of the picture, pixels.
const (
	width   = 1200.0
	height  = 16.0 // of a box
	border  = 10.0
	heading = 44.0
	least   = 1.0 // width of a box that is drawn
	letter  = 6.6 // width
)

func depth(f *frame, perSample float64) int {
	deepest := 0
	for _, c := range f.called {
		if float64(c.samples)*perSample >= least {
			deepest = max(deepest, depth(c, perSample))
		}
	}
	return deepest + 1
}

func draw(w io.Writer, title string, root *frame) {
	perSample := (width - 2*border) / float64(root.samples)
	total := heading + float64(depth(root, perSample))*height + border
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="monospace" font-size="11">`+"\n", width, total)
	fmt.Fprintf(w, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	fmt.Fprintf(w, `<text x="%.0f" y="18" font-size="14">%s</text>`+"\n", border, html.EscapeString(title))
	fmt.Fprintf(w, `<text x="%.0f" y="34" fill="#666">%d samples; orange: kernel, blue: Bowline and the Go runtime</text>`+"\n", border, root.samples)
	box(w, root, root.samples, border, total-border-height, perSample)
	fmt.Fprintln(w, "</svg>")
}

// box draws f with its lower left corner at x, y, and above it what it called.
func box(w io.Writer, f *frame, all int, x, y, perSample float64) {
	wide := float64(f.samples) * perSample
	if wide < least {
		return
	}
	color := "#9fc5e8"
	switch {
	case f.samples == all:
		color = "#ddd"
	case f.kernel:
		color = "#f6b26b"
	}
	name := html.EscapeString(f.name)
	fmt.Fprintf(w, `<g><title>%s: %.1f %%</title><rect x="%.1f" y="%.0f" width="%.1f" height="%.0f" fill="%s" stroke="#fff" stroke-width="0.5"/>`,
		name, 100*float64(f.samples)/float64(all), x, y, wide, height-1, color)
	if room := int((wide - 4) / letter); room >= 3 {
		text := f.name
		if len(text) > room {
			text = text[:room-1] + "…"
		}
		fmt.Fprintf(w, `<text x="%.1f" y="%.0f">%s</text>`, x+2, y+11, html.EscapeString(text))
	}
	fmt.Fprintln(w, "</g>")
	for _, name := range slices.Sorted(maps.Keys(f.called)) {
		c := f.called[name]
		box(w, c, all, x, y-height, perSample)
		x += float64(c.samples) * perSample
	}
}

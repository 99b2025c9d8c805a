package iomem

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"sync"
	"testing"
)

// mapping is what the kernel says of the mapping that holds mem.
func mapping(t *testing.T, mem []byte) string {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip("needs /proc/self/smaps: ", err)
	}
	heads := regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) .*$`).FindAllSubmatchIndex(smaps, -1)
	for i, h := range heads {
		begin, _ := strconv.ParseUint(string(smaps[h[2]:h[3]]), 16, 64)
		end, _ := strconv.ParseUint(string(smaps[h[4]:h[5]]), 16, 64)
		if a := uint64(address(mem)); begin <= a && a < end {
			to := len(smaps)
			if i+1 < len(heads) {
				to = heads[i+1][0]
			}
			return string(smaps[h[0]:to])
		}
	}
	return ""
}

// kilobytes is a figure of a mapping.
func kilobytes(t *testing.T, mapping, name string) int {
	t.Helper()
	m := regexp.MustCompile(name + `: +([0-9]+) kB`).FindStringSubmatch(mapping)
	if m == nil {
		t.Fatalf("no %s in %q", name, mapping)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func TestMap(t *testing.T) {
	for _, size := range []int{1, 4096, 5000, hugePage - 1, hugePage, hugePage + 1, 5*hugePage + 4096} {
		left := mapAndUnmap(t, size)
		// The runtime may have mapped something there in between, but not each time.
		for range 4 {
			if left != "" {
				left = mapAndUnmap(t, size)
			}
		}
		if left != "" {
			t.Errorf("%d bytes are still mapped: %s", size, left)
		}
	}
}

// mapAndUnmap returns what is mapped where the memory was.
func mapAndUnmap(t *testing.T, size int) (left string) {
	t.Helper()
	mem, err := Map(size)
	if err != nil {
		t.Fatal(err)
	}
	if len(mem) != size || address(mem)%4096 != 0 || size >= hugePage && address(mem)%hugePage != 0 {
		t.Errorf("%d bytes: got %d at %#x", size, len(mem), address(mem))
	}
	for i := range mem {
		if mem[i] != 0 {
			t.Fatalf("%d bytes: byte %d is not 0", size, i)
		}
	}
	mem[0], mem[size-1] = 1, 1
	if err := Unmap(mem); err != nil {
		t.Error(err)
	}
	return mapping(t, mem)
}

// Where the machine has huge pages, they are what is used.
func TestHugePages(t *testing.T) {
	enabled, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil || bytes.Contains(enabled, []byte("[never]")) {
		t.Skipf("needs transparent huge pages: %s, %v", enabled, err)
	}
	mem, err := Map(4 * hugePage)
	if err != nil {
		t.Fatal(err)
	}
	defer Unmap(mem)
	if err := Hold(mem); err != nil {
		t.Fatal(err)
	}
	m := mapping(t, mem)
	if all := kilobytes(t, m, "Rss"); all != 4*hugePage>>10 {
		t.Errorf("%d kB of %d are there", all, 4*hugePage>>10)
	}
	// There may be few that are not in pieces.
	if huge := kilobytes(t, m, "AnonHugePages"); huge == 0 {
		t.Skip("needs memory that is not in pieces: the kernel had no huge page")
	}
}

func TestPool(t *testing.T) {
	for _, size := range []int{4096, 64 << 10, 260 << 10, hugePage, hugePage + 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := NewPool(size)
			var pieces [][]byte
			// Two slabs and a piece.
			for i := range 2*max(hugePage/size, 1) + 1 {
				piece, err := p.Get()
				if err != nil {
					t.Fatal(err)
				}
				if len(piece) != size || cap(piece) != size || address(piece)%4096 != 0 {
					t.Fatalf("%d bytes, room for %d, at %#x", len(piece), cap(piece), address(piece))
				}
				for j := range piece {
					piece[j] = byte(i)
				}
				pieces = append(pieces, piece)
			}
			if len(p.slabs) != 3 {
				t.Errorf("%d slabs for %d pieces", len(p.slabs), len(pieces))
			}
			for i, piece := range pieces {
				if !bytes.Equal(piece, bytes.Repeat([]byte{byte(i)}, size)) {
					t.Errorf("piece %d is not what was written to it", i)
				}
			}
			// What is given back is used again before there is more.
			p.Put(pieces[0])
			again, err := p.Get()
			if err != nil || address(again) != address(pieces[0]) && size < hugePage {
				t.Errorf("got %#x in place of %#x: %v", address(again), address(pieces[0]), err)
			}
			p.Put(again)
			for _, piece := range pieces[1:] {
				p.Put(piece)
			}
			if len(p.slabs) != 0 {
				t.Errorf("%d slabs are left", len(p.slabs))
			}
		})
	}
}

func TestPoolTogether(t *testing.T) {
	p := NewPool(64 << 10)
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			for range 200 {
				var mine [5][]byte
				for j := range mine {
					var err error
					if mine[j], err = p.Get(); err != nil {
						t.Error(err)
						return
					}
					mine[j][0], mine[j][len(mine[j])-1] = byte(i), byte(j)
				}
				for j, piece := range mine {
					if piece[0] != byte(i) || piece[len(piece)-1] != byte(j) {
						t.Error("somebody else has it as well")
					}
					p.Put(piece)
				}
			}
		})
	}
	g.Wait()
	if len(p.slabs) != 0 {
		t.Errorf("%d slabs are left", len(p.slabs))
	}
}

// Many who come at once share what is mapped.
func TestPoolAtOnce(t *testing.T) {
	const pieces, size = 64, 64 << 10
	p := NewPool(size)
	var g sync.WaitGroup
	mine := make([][]byte, pieces)
	for i := range mine {
		g.Go(func() {
			var err error
			if mine[i], err = p.Get(); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if want := pieces * size / hugePage; len(p.slabs) != want {
		t.Errorf("%d slabs in place of %d", len(p.slabs), want)
	}
	for _, piece := range mine {
		p.Put(piece)
	}
}

func TestPutWrong(t *testing.T) {
	p := NewPool(8192)
	keep, err := p.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Put(keep)
	twice, err := p.Get()
	if err != nil {
		t.Fatal(err)
	}
	p.Put(twice)
	for name, piece := range map[string][]byte{
		"not from there": make([]byte, 8192), "put twice": twice, "cut": keep[4096:],
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("the pool took it")
				}
			}()
			p.Put(piece)
		})
	}
}

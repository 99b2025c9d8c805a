package filesystem

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"
)

// patch overwrites bytes of a file.
func patch(t *testing.T, path string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestProbe(t *testing.T) {
	const size = 320 << 20 // XFS has no smaller ones
	const uuid = "3f0c8d5e-6d1b-4a8e-9b7a-0123456789ab"
	mkfs := func(name string, args ...string) func(*testing.T, string) {
		return func(t *testing.T, path string) { tool(t, name, append(args, path)...) }
	}
	bytes := func(off int64, b ...byte) func(*testing.T, string) {
		return func(t *testing.T, path string) { patch(t, path, off, b...) }
	}
	ext := func(typ string, args ...string) func(*testing.T, string) {
		return mkfs("mke2fs", append([]string{"-q", "-F", "-t", typ, "-U", uuid, "-L", "a label"}, args...)...)
	}
	xfs := func(args ...string) func(*testing.T, string) {
		return mkfs("mkfs.xfs", append([]string{"-q", "-m", "uuid=" + uuid, "-L", "a label"}, args...)...)
	}
	filesystem := func(typ string, block, sector int) Content {
		return Content{Kind: Filesystem, Type: typ, UUID: uuid, Label: "a label", BlockSize: block, SectorSize: sector}
	}
	other := func(typ string) Content { return Content{Kind: Other, Type: typ} }
	type steps []func(*testing.T, string)

	for _, test := range []struct {
		name string
		make steps
		want Content
	}{
		{"nothing", nil, Content{Kind: Empty}},
		{"a byte at the beginning", steps{bytes(0, 1)}, other("unknown data")},
		{"a byte in the first MiB", steps{bytes(edgeBytes-1, 1)}, other("unknown data")},
		{"a byte in the last MiB", steps{bytes(size-edgeBytes, 1)}, other("unknown data")},
		{"a byte at the end", steps{bytes(size-1, 1)}, other("unknown data")},
		{"ext2 with 1 KiB", steps{ext("ext2", "-b", "1024")}, filesystem("ext2", 1024, 1024)},
		{"ext3 with 2 KiB", steps{ext("ext3", "-b", "2048")}, filesystem("ext3", 2048, 2048)},
		{"ext4 with 4 KiB", steps{ext("ext4", "-b", "4096")}, filesystem("ext4", 4096, 4096)},
		{"ext4 with 64 KiB", steps{ext("ext4", "-b", "65536")}, filesystem("ext4", 65536, 65536)},
		{"ext4 without a journal", steps{ext("ext4", "-O", "^has_journal", "-b", "4096")}, filesystem("ext4", 4096, 4096)},
		{"a journal", steps{mkfs("mke2fs", "-q", "-F", "-O", "journal_dev")}, other("jbd")},
		{"xfs with sectors of 512", steps{xfs("-s", "size=512")}, filesystem("xfs", 4096, 512)},
		{"xfs with sectors of 4096", steps{xfs("-s", "size=4096")}, filesystem("xfs", 4096, 4096)},
		{"xfs version 4", steps{xfs("-m", "crc=0", "-b", "size=512")}, filesystem("xfs", 512, 512)},
		{"xfs over ext4", steps{ext("ext4"), xfs("-f")}, filesystem("xfs", 4096, 512)},
		{"unfinished xfs", steps{xfs(), unfinishXFS}, Content{Kind: Other, Type: "unfinished xfs", unfinished: true}},
		{"xfs whose checksum is wrong", steps{xfs(), bytes(8, 0xff)}, other("damaged xfs")},
		{"ext4 and the superblock of an xfs", steps{ext("ext4"), bytes(0, xfsHead(4096, 512)[:256]...)}, other("ext4")},
		{"a log over ext4", steps{ext("ext4"), bytes(0, 'B', 'O', 'W', 0, 0, 1, 28, 0, 0, 8, 0, 0)}, Content{Kind: Log, Type: "bow", BlockSize: 2048}},
		{"a log half restored", steps{bytes(0, 'W', 'O', 'B', 0, 0, 1, 28, 0, 0, 16, 0, 0)}, Content{Kind: Log, Type: "bow", BlockSize: 4096}},
		{"a log with a wild block size", steps{bytes(0, 'B', 'O', 'W', 0, 0, 1, 28, 0, 0, 0, 0, 0xff)}, Content{Kind: Log, Type: "bow"}},
		{"swap space", steps{mkfs("mkswap", "-q")}, other("swap")},
		{"partitions", steps{
			bytes(446, 0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0), bytes(510, 0x55, 0xaa),
		}, other("partitions (dos)")},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := newImage(t, size)
			for _, step := range test.make {
				step(t, path)
			}
			got, err := Probe(context.Background(), path)
			if err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// unfinishXFS makes an XFS look as if mkfs were still at work.
func unfinishXFS(t *testing.T, path string) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const crcAt = 224 // u32 little-endian, over the sector with this field zero
	sector := make([]byte, 512)
	if _, err := f.ReadAt(sector, 0); err != nil {
		t.Fatal(err)
	}
	sector[xfsInProgress] = 1
	binary.LittleEndian.PutUint32(sector[crcAt:], 0)
	binary.LittleEndian.PutUint32(sector[crcAt:], crc32.Checksum(sector, crc32.MakeTable(crc32.Castagnoli)))
	patch(t, path, 0, sector...)
}

func TestProbeErrors(t *testing.T) {
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		path string
	}{
		{"no such device", context.Background(), "/dev/no-such-device"},
		{"directory", context.Background(), t.TempDir()},
		{"character device", context.Background(), "/dev/zero"},
		{"no bytes", context.Background(), newImage(t, 0)},
		{"cancelled", cancelled, newImage(t, 4096)},
	} {
		if c, err := Probe(test.ctx, test.path); err == nil {
			t.Errorf("%s: no error, found %v", test.name, c)
		}
	}
}

func TestProbeOfSmallImages(t *testing.T) {
	for _, size := range []int64{1, 512, 1000, 4096} {
		path := newImage(t, size)
		if c, err := Probe(context.Background(), path); err != nil || c.Kind != Empty {
			t.Errorf("%d zeros: got %v, %v", size, c, err)
		}
		patch(t, path, size-1, 1)
		if c, err := Probe(context.Background(), path); err != nil || c.Kind != Other {
			t.Errorf("%d bytes: got %v, %v", size, c, err)
		}
	}
}

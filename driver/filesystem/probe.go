package filesystem

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"k8s.io/utils/exec"
)

// Kind is the sort of thing that is on a device.
type Kind int

const (
	// Other is something that is neither of the rest: partitions, a file system
	// or volume manager of another kind, several at once, or just bytes.
	Other Kind = iota
	// Empty is no file system, partition table or the like: no signature, and zeros
	// at both ends. There may be data of another kind in between.
	Empty
	// Filesystem is an ext2, ext3, ext4 or XFS file system.
	Filesystem
	// Log is the log of a checkpoint in block 0. What is below it is known only
	// to whoever serves or restores the checkpoint.
	Log
)

func (k Kind) String() string {
	switch k {
	case Empty:
		return "empty"
	case Filesystem:
		return "file system"
	case Log:
		return "checkpoint log"
	}
	return "other"
}

// Content is what is on a device. Fields that have no meaning for its Kind are
// zero.
type Content struct {
	Kind Kind
	// Type is what mount calls it ("ext4", "xfs"), for Other what blkid calls it
	// or a word or two ("unknown data"), for Log "bow".
	Type string
	// UUID is in the usual form of 36 characters, lower case.
	UUID  string
	Label string
	// BlockSize is the unit of allocation of a file system, or the block size of
	// a log, in bytes. It is 0 for a log that does not tell a valid one.
	BlockSize int
	// SectorSize is the largest logical block size of a device, in bytes, on
	// which the file system can be mounted.
	SectorSize int

	// unfinished is true for a file system that mkfs did not finish, so that
	// nobody can ever have mounted it.
	unfinished bool
}

func (c Content) String() string {
	if c.Type == "" {
		return c.Kind.String()
	}
	return fmt.Sprintf("%s (%s)", c.Kind, c.Type)
}

// What block 0 begins with while a checkpoint is open, or half restored by
// Android's tool.
const (
	logMagic        = 0x00574f42
	logMagicPartial = 0x00424f57
)

// edgeBytes is how much of either end of a device must be zero for it to count
// as empty. File systems, volume managers and partition tables all write there.
const edgeBytes = 1 << 20

// Probe tells what is on a device or in an image file. It only reads.
//
// Empty is said only if blkid finds nothing and the first and the last MiB are
// zeros. A file system is said to be one only if our reading of its superblock
// and blkid agree, so that the remains of an earlier one, or a member of a RAID
// that looks like one, are Other.
func Probe(ctx context.Context, path string) (Content, error) {
	head, tail, err := readEdges(path)
	if err != nil {
		return Content{}, fmt.Errorf("probe %s: %w", path, err)
	}
	if c, ok := decodeLog(head); ok {
		return c, nil
	}
	format, err := diskFormat(ctx, path)
	if err != nil {
		return Content{}, fmt.Errorf("probe %s: %w", path, err)
	}
	claims := decodeSuperblocks(head)
	switch {
	case len(claims) == 1 && format != "" && sameFamily(claims[0].Type, format):
		return claims[0], nil
	case len(claims) == 1 && format == "":
		// blkid verifies what we do not, checksums for instance.
		return Content{Kind: Other, Type: "damaged " + claims[0].Type}, nil
	case format != "":
		return Content{Kind: Other, Type: format}, nil
	case len(claims) == 0 && allZero(head) && allZero(tail):
		return Content{Kind: Empty}, nil
	}
	return Content{Kind: Other, Type: "unknown data"}, nil
}

// MappingBlockSize returns the block size in bytes, 512 to 4096, for a mapping
// under what is on the device: the largest that the file system can live with,
// that of the log, 4096 for an empty device, and 512, which suits everything,
// for the rest.
func MappingBlockSize(c Content) int {
	size := 512
	switch c.Kind {
	case Empty:
		size = 4096
	case Filesystem:
		size = c.SectorSize
	case Log:
		size = c.BlockSize
	}
	return min(max(size, 512), 4096)
}

// readEdges returns the first and the last MiB, or what there is of them.
func readEdges(path string) (head, tail []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if m := info.Mode(); !m.IsRegular() && m.Type() != fs.ModeDevice {
		return nil, nil, errors.New("neither a block device nor a file")
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil, err
	}
	if size == 0 {
		return nil, nil, errors.New("it has no bytes at all")
	}
	head = make([]byte, min(size, edgeBytes))
	tail = make([]byte, len(head))
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, nil, err
	}
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return nil, nil, err
	}
	return head, tail, nil
}

func decodeLog(head []byte) (Content, bool) {
	if len(head) < 12 {
		return Content{}, false
	}
	magic := binary.LittleEndian.Uint32(head)
	if magic != logMagic && magic != logMagicPartial {
		return Content{}, false
	}
	c := Content{Kind: Log, Type: "bow"}
	if size := int(binary.LittleEndian.Uint32(head[8:])); powerOfTwo(size, 512, 4096) {
		c.BlockSize = size
	}
	return c, true
}

// diskFormat returns what blkid finds on the device, "" if nothing.
func diskFormat(ctx context.Context, path string) (string, error) {
	const nothing, ambivalent = 2, 8 // exit statuses
	out, err := output(ctx, "blkid", "--probe", "--output", "export", "--match-tag", "TYPE", "--match-tag", "PTTYPE", path)
	if exit := exec.ExitError(nil); errors.As(err, &exit) {
		switch exit.ExitStatus() {
		case nothing:
			// It says the same of a device that it cannot read, which is why
			// Probe reads it first.
			return "", nil
		case ambivalent:
			return "several things at once", nil
		}
	}
	if err != nil {
		return "", err
	}
	format := ""
	for line := range strings.Lines(out) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "TYPE":
			format = value
		case "PTTYPE":
			return "partitions (" + value + ")", nil
		}
	}
	return format, nil
}

// sameFamily tells whether our name of a file system and blkid's mean the same.
// The members of the ext family differ by features only, and the limits are
// drawn differently by everybody.
func sameFamily(ours, blkid string) bool {
	if strings.HasPrefix(blkid, "ext") {
		blkid = "ext"
	}
	return strings.Contains(ours, blkid)
}

func allZero(b []byte) bool {
	return bytes.Count(b, []byte{0}) == len(b)
}

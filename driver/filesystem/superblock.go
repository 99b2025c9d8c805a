package filesystem

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// superblockBytes is how much of the beginning of a device decodeSuperblocks
// looks at.
const superblockBytes = 4096

// Where fields of the ext2/3/4 superblock are, in bytes from the beginning of
// the device. All are little-endian.
const (
	extBase      = 1024
	extLogBlock  = extBase + 0x18 // u32, block size = 1024 << it
	extMagic     = extBase + 0x38 // u16
	extCompat    = extBase + 0x5c // u32
	extIncompat  = extBase + 0x60 // u32
	extROCompat  = extBase + 0x64 // u32
	extUUID      = extBase + 0x68 // 16 bytes
	extLabel     = extBase + 0x78 // 16 bytes, padded with zeros
	extMagicWant = 0xef53

	extCompatJournal      = 0x4
	extIncompatJournalDev = 0x8
	// Incompatible features that ext3 has too: file types in directories, a
	// journal that must be replayed, meta block groups.
	extIncompatOld = 0x2 | 0x4 | 0x10
	// Read-only compatible ones: sparse superblocks, large files, and directories
	// as binary trees, which nobody ever had.
	extROCompatOld = 0x1 | 0x2 | 0x4
)

// The same for XFS. All are big-endian.
const (
	xfsMagic      = 0  // 4 bytes
	xfsBlockSize  = 4  // u32
	xfsUUID       = 32 // 16 bytes
	xfsSectorSize = 102
	xfsLabel      = 108 // 12 bytes, padded with zeros
	xfsInProgress = 126 // u8, not 0 until mkfs has finished
)

// decodeSuperblocks returns the file systems that the beginning of a device
// claims to be. Whether a claim is true is for the caller to judge: more than
// one means that at least one is a remnant. Superblocks that contradict
// themselves claim to be of Kind Other.
func decodeSuperblocks(head []byte) []Content {
	var claims []Content
	if len(head) < superblockBytes {
		head = append(bytes.Clone(head), make([]byte, superblockBytes-len(head))...)
	}
	if binary.LittleEndian.Uint16(head[extMagic:]) == extMagicWant {
		claims = append(claims, decodeExt(head))
	}
	if string(head[xfsMagic:xfsMagic+4]) == "XFSB" {
		claims = append(claims, decodeXFS(head))
	}
	return claims
}

func decodeExt(head []byte) Content {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(head[at:]) }
	incompat := u32(extIncompat)
	logBlock := u32(extLogBlock)
	switch {
	case incompat&extIncompatJournalDev != 0:
		return Content{Kind: Other, Type: "ext journal"}
	case logBlock > 6: // 64 KiB is the largest there is
		return Content{Kind: Other, Type: "damaged ext"}
	}
	c := Content{
		Kind:      Filesystem,
		Type:      "ext2",
		UUID:      formatUUID(head[extUUID:]),
		Label:     cString(head[extLabel : extLabel+16]),
		BlockSize: 1024 << logBlock,
	}
	// The kernel mounts ext4 on any block device with logical blocks no larger
	// than its own, and does no smaller I/O than that afterwards.
	c.SectorSize = c.BlockSize
	switch {
	case incompat&^extIncompatOld != 0 || u32(extROCompat)&^extROCompatOld != 0:
		c.Type = Ext4
	case u32(extCompat)&extCompatJournal != 0:
		c.Type = "ext3"
	}
	return c
}

func decodeXFS(head []byte) Content {
	c := Content{
		Kind:       Filesystem,
		Type:       XFS,
		UUID:       formatUUID(head[xfsUUID:]),
		Label:      cString(head[xfsLabel : xfsLabel+12]),
		BlockSize:  int(binary.BigEndian.Uint32(head[xfsBlockSize:])),
		SectorSize: int(binary.BigEndian.Uint16(head[xfsSectorSize:])),
	}
	switch {
	case !powerOfTwo(c.BlockSize, 512, 65536) || !powerOfTwo(c.SectorSize, 512, min(c.BlockSize, 32768)):
		return Content{Kind: Other, Type: "damaged xfs"}
	case head[xfsInProgress] != 0:
		return Content{Kind: Other, Type: "unfinished xfs", unfinished: true}
	}
	return c
}

func powerOfTwo(n, low, high int) bool {
	return n >= low && n <= high && n&(n-1) == 0
}

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

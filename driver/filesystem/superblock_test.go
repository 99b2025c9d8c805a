package filesystem

import (
	"encoding/binary"
	"testing"
)

// extHead returns the beginning of a device with an ext superblock.
func extHead(logBlock, compat, incompat, roCompat uint32) []byte {
	head := make([]byte, superblockBytes)
	binary.LittleEndian.PutUint16(head[extMagic:], extMagicWant)
	binary.LittleEndian.PutUint32(head[extLogBlock:], logBlock)
	binary.LittleEndian.PutUint32(head[extCompat:], compat)
	binary.LittleEndian.PutUint32(head[extIncompat:], incompat)
	binary.LittleEndian.PutUint32(head[extROCompat:], roCompat)
	return head
}

// xfsHead returns the beginning of a device with an XFS superblock.
func xfsHead(blockSize uint32, sectorSize uint16) []byte {
	head := make([]byte, superblockBytes)
	copy(head, "XFSB")
	binary.BigEndian.PutUint32(head[xfsBlockSize:], blockSize)
	binary.BigEndian.PutUint16(head[xfsSectorSize:], sectorSize)
	return head
}

func TestDecodeSuperblocks(t *testing.T) {
	unfinished := xfsHead(4096, 512)
	unfinished[xfsInProgress] = 1
	labelled := xfsHead(4096, 512)
	copy(labelled[xfsLabel:], "twelve bytes")
	for _, test := range []struct {
		name  string
		head  []byte
		kind  Kind
		typ   string
		block int
	}{
		{"ext2", extHead(0, 0, 0x2, 0x1), Filesystem, "ext2", 1024},
		{"ext3", extHead(1, 0x4, 0x2, 0x3), Filesystem, "ext3", 2048},
		{"ext4 by extents", extHead(2, 0x4, 0x42, 0x3), Filesystem, "ext4", 4096},
		{"ext4 by huge files", extHead(2, 0, 0x2, 0x8), Filesystem, "ext4", 4096},
		{"ext with 64 KiB", extHead(6, 0, 0, 0), Filesystem, "ext2", 65536},
		{"ext with too large blocks", extHead(7, 0, 0, 0), Other, "damaged ext", 0},
		{"ext with 2 to the 4 billion", extHead(0xffffffff, 0, 0, 0), Other, "damaged ext", 0},
		{"ext journal", extHead(2, 0, 0x8, 0), Other, "ext journal", 0},
		{"xfs", xfsHead(4096, 512), Filesystem, "xfs", 4096},
		{"xfs with small blocks", xfsHead(512, 512), Filesystem, "xfs", 512},
		{"xfs with odd blocks", xfsHead(4095, 512), Other, "damaged xfs", 0},
		{"xfs without blocks", xfsHead(0, 512), Other, "damaged xfs", 0},
		{"xfs with sectors larger than blocks", xfsHead(1024, 4096), Other, "damaged xfs", 0},
		{"xfs with negative blocks", xfsHead(1<<31, 512), Other, "damaged xfs", 0},
		{"xfs that mkfs did not finish", unfinished, Other, "unfinished xfs", 0},
		{"xfs with a full label", labelled, Filesystem, "xfs", 4096},
		{"short", xfsHead(4096, 512)[:512], Filesystem, "xfs", 4096},
	} {
		t.Run(test.name, func(t *testing.T) {
			claims := decodeSuperblocks(test.head)
			if len(claims) != 1 {
				t.Fatalf("got %d claims: %v", len(claims), claims)
			}
			c := claims[0]
			if c.Kind != test.kind || c.Type != test.typ || c.BlockSize != test.block {
				t.Errorf("got %v with blocks of %d, want %v (%s) with %d", c, c.BlockSize, test.kind, test.typ, test.block)
			}
		})
	}
	if claims := decodeSuperblocks(labelled); claims[0].Label != "twelve bytes" {
		t.Errorf("got label %q", claims[0].Label)
	}
	both := extHead(2, 0, 0, 0)
	copy(both, xfsHead(4096, 512)[:256])
	if claims := decodeSuperblocks(both); len(claims) != 2 {
		t.Errorf("remains of two file systems make %d claims", len(claims))
	}
	if claims := decodeSuperblocks(nil); len(claims) != 0 {
		t.Errorf("nothing claims to be %v", claims)
	}
}

func TestMappingBlockSize(t *testing.T) {
	for _, test := range []struct {
		content Content
		want    int
	}{
		{Content{Kind: Empty}, 4096},
		{Content{Kind: Other, Type: "unknown data"}, 512},
		{Content{Kind: Filesystem, Type: Ext4, BlockSize: 1024, SectorSize: 1024}, 1024},
		{Content{Kind: Filesystem, Type: Ext4, BlockSize: 65536, SectorSize: 65536}, 4096},
		{Content{Kind: Filesystem, Type: XFS, BlockSize: 4096, SectorSize: 512}, 512},
		{Content{Kind: Filesystem, Type: XFS, BlockSize: 4096, SectorSize: 4096}, 4096},
		{Content{Kind: Filesystem, Type: XFS, BlockSize: 65536, SectorSize: 32768}, 4096},
		{Content{Kind: Log, BlockSize: 2048}, 2048},
		{Content{Kind: Log}, 512},
	} {
		if got := MappingBlockSize(test.content); got != test.want {
			t.Errorf("%+v: got %d, want %d", test.content, got, test.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(extHead(2, 0x4, 0x42, 0x3))
	f.Add(xfsHead(4096, 512))
	f.Add([]byte{0x42, 0x4f, 0x57, 0, 0, 1, 28, 0, 0, 16, 0, 0})
	f.Fuzz(func(t *testing.T, head []byte) {
		contents := decodeSuperblocks(head)
		if c, ok := decodeLog(head); ok {
			contents = append(contents, c)
		}
		for _, c := range contents {
			if c.Kind == Filesystem && (!powerOfTwo(c.BlockSize, 512, 65536) || !powerOfTwo(c.SectorSize, 512, c.BlockSize)) {
				t.Errorf("accepted %+v", c)
			}
			if n := MappingBlockSize(c); !powerOfTwo(n, 512, 4096) {
				t.Errorf("%+v: a mapping with blocks of %d", c, n)
			}
		}
	})
}

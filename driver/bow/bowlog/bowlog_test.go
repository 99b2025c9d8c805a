package bowlog_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// golden10 was written down by hand from the description of the format.
const golden10 = `
	42 4f 57 00              magic
	00 01                    header version
	1c 00                    header size 28
	00 02 00 00              block size 512
	02 00 00 00              count
	05 00 00 00              sequence
	34 12 00 00 00 00 00 00  sector0 0x1234

	00 00 00 00 00 00 00 00  source 0
	40 00 00 00 00 00 00 00  dest 64
	00 02 00 00              size 512
	ef be ad de              checksum

	0a 00 00 00 01 00 00 00  source 0x10000000a
	08 07 06 05 04 03 02 01  dest 0x0102030405060708
	00 06 00 00              size 1536
	00 00 00 00              not recorded
`

// goldenExt has the extension; the two checksums are filled in by the test.
const goldenExt = `
	42 4f 57 00  00 01  b0 00  00 10 00 00  01 00 00 00  00 00 00 00
	88 00 00 00 00 00 00 00

	42 4f 57 4c              extension magic, BOWL
	01 00                    extension version
	00 00                    phase open
	00 00 00 00              header_crc
	00 00 00 00              entries_crc
	03 00 00 00              a rollback was asked for; commit when full
	90 00 00 00 00 00 00 00  shadow 0x90
	98 00 00 00 00 00 00 00  shadow 0x98
	00 ca 9a 3b 00 00 00 00  opened one second after 1970 began
	00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
	07 00 00 00 00 00 00 00  generation
	00 00 10 00 00 00 00 00  1 MiB
	a0 00 00 00 00 00 00 00  free map 0xa0
	a8 00 00 00 00 00 00 00  10 00 00 00 00 00 00 00  reserve
	00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
	00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
	c0 00 00 00 00 00 00 00  08 00 00 00 00 00 00 00

	00 00 00 00 00 00 00 00  80 00 00 00 00 00 00 00  00 10 00 00  01 00 00 00
`

// unhex reads the columns of two hex digits at the beginning of each line.
func unhex(t testing.TB, s string, size int) []byte {
	t.Helper()
	var p []byte
	for line := range strings.Lines(s) {
		for _, f := range strings.Fields(line) {
			b, err := hex.DecodeString(f)
			if err != nil || len(b) != 1 {
				break
			}
			p = append(p, b...)
		}
	}
	return append(p, make([]byte, size-len(p))...)
}

// crcBits is reflected CRC, bit by bit, without any inversion.
func crcBits(poly, crc uint32, p []byte) uint32 {
	for _, b := range p {
		for i := range 8 {
			bit := uint32(b)>>i&1 ^ crc&1
			crc >>= 1
			if bit == 1 {
				crc ^= poly
			}
		}
	}
	return crc
}

const castagnoli = 0x82F63B78

func TestGolden10(t *testing.T) {
	want := unhex(t, golden10, 512)
	b := &bowlog.Block{
		BlockSize: 512,
		Sequence:  5,
		Sector0:   0x1234,
		Entries: []bowlog.Entry{
			{Source: 0, Dest: 64, Size: 512, Checksum: 0xdeadbeef},
			{Source: 0x10000000a, Dest: 0x0102030405060708, Size: 1536},
		},
	}
	testGolden(t, b, want)

	// The mark of Android's tool.
	copy(want, []byte{0x57, 0x4f, 0x42, 0x00})
	b.Partial = true
	testGolden(t, b, want)
}

func TestGoldenExtension(t *testing.T) {
	want := unhex(t, goldenExt, 4096)
	put := func(off int, v uint32) {
		copy(want[off:], []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
	}
	put(40, ^crcBits(castagnoli, ^uint32(0), want[176:200]))
	put(36, ^crcBits(castagnoli, ^uint32(0), want[:176]))
	b := &bowlog.Block{
		BlockSize: 4096,
		Sector0:   0x88,
		Ext: &bowlog.Extension{
			RollbackRequested: true,
			CommitWhenFull:    true,
			Shadows:           [2]uint64{0x90, 0x98},
			Opened:            time.Unix(1, 0),
			Checkpoint:        bowlog.ID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
			Generation:        7,
			DeviceSize:        1 << 20,
			FreeMap:           0xa0,
			Reserve:           [4]bowlog.Run{{Start: 0xa8, Sectors: 16}, {}, {}, {Start: 0xc0, Sectors: 8}},
		},
		Entries: []bowlog.Entry{{Dest: 0x80, Size: 4096, Checksum: 1}},
	}
	testGolden(t, b, want)
	if err := b.Validate(1 << 20); err != nil {
		t.Error(err)
	}
	if err := b.Validate(1<<20 - 4096); !errors.Is(err, bowlog.ErrCorrupt) {
		t.Errorf("a device that shrank: %v, expected ErrCorrupt", err)
	}

	for off := range 4096 {
		p := bytes.Clone(want)
		p[off] ^= 0x10
		got, err := bowlog.Unmarshal(p)
		switch {
		case off < 176 && err == nil:
			t.Errorf("byte %d of the header changed: no error", off)
		case off >= 176 && off < 200 && (!errors.Is(err, bowlog.ErrTorn) || got == nil || got.Sector0 != 0x88):
			t.Errorf("byte %d of the entries changed: %v, expected ErrTorn and the header", off, err)
		case off >= 200 && err != nil:
			t.Errorf("byte %d behind the entries changed: %v", off, err)
		}
	}
}

func testGolden(t *testing.T, b *bowlog.Block, want []byte) {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, b.BlockSize)
	if err := b.Marshal(got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%sexpected\n%s", hex.Dump(got[:128]), hex.Dump(want[:128]))
	}
	back, err := bowlog.Unmarshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, b) {
		t.Errorf("decoded %+v, expected %+v", back, b)
	}
}

func TestChecksum(t *testing.T) {
	// By hand: one byte 0x01 on an empty register shifts out a one at first,
	// then seven more bits of the polynomial, as a table's entry 1.
	if got := bowlog.Checksum(0, []byte{1}); got != 0x77073096 {
		t.Errorf("Checksum(0, 01) = %08x, expected 77073096", got)
	}
	if got := bowlog.Checksum(0, make([]byte, 512)); got != 0 {
		t.Errorf("Checksum(0, zeros) = %08x, expected 0: nothing is inverted", got)
	}
	if got := bowlog.Seed(24, 4096); got != 3 {
		t.Errorf("Seed(24, 4096) = %d, expected 3", got)
	}
	if got := bowlog.Seed(0x100000005<<1, 1024); got != 5 {
		t.Errorf("Seed: block number 0x100000005 gives %#x, expected its low 32 bits", got)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		p := make([]byte, rng.IntN(3000))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		seed := rng.Uint32()
		want := crcBits(0xEDB88320, seed, p)
		cut := rng.IntN(len(p) + 1)
		if got := bowlog.Checksum(bowlog.Checksum(seed, p[:cut]), p[cut:]); got != want {
			t.Fatalf("%d bytes from %08x on, in two parts: %08x, expected %08x", len(p), seed, got, want)
		}
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	good := unhex(t, golden10, 512)
	for _, test := range []struct {
		name string
		off  int
		with string
		err  error
	}{
		{"other magic", 0, "00000000", bowlog.ErrNoLog},
		{"newer version", 4, "0002", bowlog.ErrUnsupported},
		{"short header", 6, "1b00", bowlog.ErrCorrupt},
		{"header longer than the block", 6, "0102", bowlog.ErrCorrupt},
		{"unknown extension", 6, "2000", bowlog.ErrUnsupported},
		{"block size 0", 8, "00000000", bowlog.ErrCorrupt},
		{"block size 8192", 8, "00200000", bowlog.ErrCorrupt},
		{"block size 2^31", 8, "00000080", bowlog.ErrCorrupt},
		{"larger than what is there", 8, "00040000", bowlog.ErrCorrupt},
		{"no entries", 12, "00000000", bowlog.ErrCorrupt},
		{"one entry too many", 12, "15000000", bowlog.ErrCorrupt},
		{"2^32-1 entries", 12, "ffffffff", bowlog.ErrCorrupt},
	} {
		p := bytes.Clone(good)
		with, _ := hex.DecodeString(test.with)
		copy(p[test.off:], with)
		if _, err := bowlog.Unmarshal(p); !errors.Is(err, test.err) {
			t.Errorf("%s: %v, expected %v", test.name, err, test.err)
		}
	}
	if _, err := bowlog.Unmarshal(good[:511]); !errors.Is(err, bowlog.ErrNoLog) {
		t.Errorf("511 bytes: %v, expected ErrNoLog", err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(unhex(f, golden10, 512))
	ext := sampleBlock(1024)
	buf := make([]byte, 1024)
	if err := ext.Marshal(buf); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(buf))
	ext.Ext.Phase, ext.Entries = bowlog.PhaseClosing, nil
	if err := ext.Marshal(buf); err != nil {
		f.Fatal(err)
	}
	f.Add(buf)
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := bowlog.Unmarshal(p)
		if errors.Is(err, bowlog.ErrTorn) && b == nil {
			t.Fatal("torn, but no header")
		}
		if err != nil {
			return
		}
		_ = b.Validate(1 << 30)
		again := make([]byte, b.BlockSize)
		if err := b.Marshal(again); err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		back, err := bowlog.Unmarshal(again)
		if err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
		if !reflect.DeepEqual(b, back) {
			t.Fatalf("%+v became %+v", b, back)
		}
	})
}

func TestID(t *testing.T) {
	id := bowlog.NewID()
	for _, s := range []string{id.String(), strings.ToUpper(id.String())} {
		if got, err := bowlog.ParseID(s); err != nil || got != id {
			t.Errorf("%s: %s, %v", s, got, err)
		}
	}
	good := "0b5e4f8a-9e2d-4c43-b3b6-5f1d3a6c7e01"
	for _, s := range []string{"", "-", good[1:], good + "0", "g" + good[1:], "0b5e4f8a9e2d-4c43-b3b6-5f1d3a6c7e01-", strings.ReplaceAll(good, "-", "")} {
		if id, err := bowlog.ParseID(s); err == nil {
			t.Errorf("%q: %s", s, id)
		}
	}
}

// Package bowlog is the on-disk log of a checkpoint: encoding, decoding,
// checksums, and the two moments in which block 0 of a device changes hands. It
// knows nothing of block types or policy.
//
// # The log
//
// While a checkpoint is open, block 0 of the device holds a log block. Its
// entries say where the old content of which blocks was copied to. A full log
// block is copied to a free block like any other backup, and the next log block
// begins with the entry that leads to that copy; so the first entry of a log
// block with sequence > 0 leads to the log block before it, and that of sequence
// 0 to the original content of block 0. The live content of block 0 is kept in
// a free block that the header names (sector0).
//
// The format is that of Android's dm-bow, header version 1.0, so that Bowline
// restores what dm-bow left and a tool for dm-bow restores what Bowline left.
// All integers are little-endian; a sector is 512 bytes whatever the block size.
//
//	offset            type  field
//	0                 u32   magic           0x00574f42, "BOW\0"
//	4                 u16   header_version  0x0100
//	6                 u16   header_size     entries begin here; 28, or 176 with the extension
//	8                 u32   block_size      512, 1024, 2048 or 4096 bytes
//	12                u32   count           entries in this log block
//	16                u32   sequence        0 for the first log block, one more for each that followed
//	20                u64   sector0         sector that holds the live content of block 0
//	header_size+24·i  u64   source          sector backed up
//	             +8   u64   dest            sector that holds the copy
//	             +16  u32   size            bytes, a multiple of block_size
//	             +20  u32   checksum        see Checksum; 0 = not recorded
//
// # The extension
//
// Tools that know version 1.0 begin to read at header_size and so skip what
// Bowline adds behind the 28 bytes. Bowline refuses extensions that it does not
// know: they may say something without which the log cannot be understood.
//
//	offset  type     field
//	28      u32      ext_magic     0x4c574f42, "BOWL"
//	32      u16      ext_version   1
//	34      u16      phase         0 open, 1 opening, 2 closing; see Phase
//	36      u32      header_crc    CRC-32C of the header_size bytes of the header, this field as zero
//	40      u32      entries_crc   CRC-32C of the count·24 bytes of the entries
//	44      u32      flags         bit 0: a rollback was asked for; bit 1: to be committed
//	                               when there is no space for backups; bit 2: unproven,
//	                               see Prove; the others are zero
//	48      u64      shadow[0]     sector of a second copy of the log block
//	56      u64      shadow[1]     the same; they are written in turn; 0 = none
//	64      i64      opened        instant of the checkpoint, nanoseconds since 1970-01-01 UTC
//	72      16 bytes checkpoint    name of the checkpoint, a UUID
//	88      u64      generation    one more with every write of a log block
//	96      u64      device_size   bytes of the device at the checkpoint
//	104     u64      free_map      sector of the first block of the free map; 0 = none
//	112+16i u64      start         the reserve, i = 0..3: sectors that were free at the
//	     +8 u64      sectors       checkpoint and that nobody but the log has written; 0 = none
//
// What restoring needs is all in the log. The free map (see FreeMap) and the
// reserve are for carrying on with a checkpoint after a crash: the map tells what
// was free at the checkpoint, the reserve which of it can still take backups. A
// block of the reserve that an entry or the header names is in use by the log;
// before anybody else writes to one, a log block without it in the reserve is
// durable.
//
// # Tearing
//
// A write of one block is not atomic on every disk: the unit is that of the
// device (blockdev.Device.BlockSize), 512 bytes at the least, and the whole
// header fits in it. So the header is always old or new, and header_crc proves
// it; entries_crc tells whether the rest of the block belongs to it. Each log
// block is written to a shadow as well, those of even generations to shadow[0] and
// those of odd ones to shadow[1]. So when block 0 is torn, the log is the whole
// shadow of the same checkpoint with the generation in the header of block 0 (Load).
//
// # Two flushes, or one
//
// The safe order is: copies and shadow; flush; log block in block 0; flush; and only
// then what was copied may be overwritten. A log block that says that it is unproven
// was written together with the copies and with its shadow, and all of that was
// flushed once. After a crash before the end of that flush, any of it may be missing.
// But then nothing has been overwritten yet, and the log block before it, whose
// shadow is at another place and was flushed then, is as right as it was. So it is
// enough to find out whether the copies are there, by their checksums (Prove). Only
// entries with a checksum are added in this way, the log stays in the same block, and
// nothing else that the header names moves.
//
// # A half-restored device
//
// Android's restore tool marks its progress in block 0: the magic becomes
// 0x00424f57 and count the number of entries that it has still to undo. It
// knows nothing of the checksums in the extension, which therefore are not
// looked at in such a block. Bowline's own restore, which is started again from
// the beginning, makes the same mark before its first write, with the count as it
// was.
package bowlog

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// Part of the format.
const (
	Magic        = 0x00574f42 // "BOW\0": a log block
	MagicPartial = 0x00424f57 // a log block in block 0 of a device that Android's tool left half-restored
	Version      = 0x0100     // header version 1.0

	baseHeaderSize = 28
	extHeaderSize  = 176
	entrySize      = 24

	extMagic   = 0x4c574f42 // "BOWL"
	extVersion = 1
)

// Part of the format: offsets in the extension that are needed twice.
const (
	offHeaderCRC  = 36
	offEntriesCRC = 40
)

var (
	// ErrNoLog says that there is no log: the first bytes are not its magic.
	ErrNoLog = errors.New("no log in block 0")

	// ErrUnsupported says that there is a log, but of a version or with an
	// extension that this program does not know. Nothing is wrong with it.
	ErrUnsupported = errors.New("log format not supported")

	// ErrTorn says that the header is good, but the entries do not belong to
	// it: the write of the log block did not arrive as a whole.
	ErrTorn = errors.New("torn log block")

	// ErrCorrupt says that bytes that were written together do not fit
	// together: damage, or something that is not a log.
	ErrCorrupt = errors.New("corrupt log")
)

// Phase says where a checkpoint stands in its life on the disk. Bowline's own
// logs have one; in a log of version 1.0 it is always PhaseOpen.
type Phase uint16

// Part of the format.
const (
	// PhaseOpen is a checkpoint that can be restored or committed.
	PhaseOpen Phase = 0

	// PhaseOpening is a checkpoint whose log has not been written yet. Only
	// the header is in block 0; sector0 names a whole copy of block 0, which
	// is to be put back. The checkpoint never was.
	PhaseOpening Phase = 1

	// PhaseClosing is a checkpoint that was committed or restored, all but
	// for block 0. Only the header is in block 0; sector0 names the block
	// whose content belongs there.
	PhaseClosing Phase = 2
)

func (p Phase) String() string {
	switch p {
	case PhaseOpen:
		return "open"
	case PhaseOpening:
		return "opening"
	case PhaseClosing:
		return "closing"
	}
	return fmt.Sprintf("phase %d", uint16(p))
}

// ID is the name of a checkpoint: a UUID, chosen by who opened it or at random.
type ID [16]byte

// NewID returns a random ID.
func NewID() ID {
	var id ID
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // RFC 9562, version 4
	return id
}

// ParseID reads what String writes: 32 hexadecimal digits in groups of 8, 4, 4, 4
// and 12.
func ParseID(s string) (ID, error) {
	var id ID
	digits := strings.ReplaceAll(s, "-", "")
	if n, err := hex.Decode(id[:], []byte(digits[:min(len(digits), 2*len(id))])); err != nil || n != len(id) || id.String() != strings.ToLower(s) {
		return ID{}, fmt.Errorf("%q is not a UUID", s)
	}
	return id, nil
}

func (id ID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// Extension is what Bowline adds to the header of version 1.0.
type Extension struct {
	Phase             Phase
	RollbackRequested bool
	CommitWhenFull    bool      // rather than fail writes
	Unproven          bool      // written together with the copies that it adds, see Prove
	Shadows           [2]uint64 // sectors, of the even and the odd generations; 0 = none
	Opened            time.Time
	Checkpoint        ID
	Generation        uint64
	DeviceSize        int64  // bytes
	FreeMap           uint64 // sector; 0 = none
	Reserve           [4]Run // in no order; those of length 0 are none
}

// Run is a run of sectors.
type Run struct{ Start, Sectors uint64 }

// Entry says that Size bytes that were at sector Source when the entry was
// written were copied to sector Dest.
type Entry struct {
	Source, Dest uint64
	Size         uint32 // bytes, a multiple of the log's block size
	Checksum     uint32 // of the bytes, see Checksum; 0 = not recorded
}

// Sectors is the length of the entry in sectors.
func (e Entry) Sectors() uint64 { return uint64(e.Size) / blockdev.SectorSize }

func (e Entry) String() string {
	return fmt.Sprintf("source %d dest %d size %d checksum %08x", e.Source, e.Dest, e.Size, e.Checksum)
}

// Block is one log block, decoded.
type Block struct {
	BlockSize int
	Sequence  uint32
	Sector0   uint64     // sector that holds the live content of block 0
	Partial   bool       // block 0 of a device that Android's tool left half-restored
	Ext       *Extension // nil in a log of version 1.0
	Entries   []Entry    // oldest first
}

// Capacity is the number of entries that fit in a log block of blockSize bytes
// as Bowline writes it.
func Capacity(blockSize int) int { return (blockSize - extHeaderSize) / entrySize }

// Full tells whether no further entry fits in b as Bowline would write it.
func (b *Block) Full() bool { return len(b.Entries) >= Capacity(b.BlockSize) }

func (b *Block) headerSize() int {
	if b.Ext == nil {
		return baseHeaderSize
	}
	return extHeaderSize
}

// Marshal encodes b into buf, which must have BlockSize bytes; the rest of buf
// is zeroed. More entries than fit are a mistake of the caller and an error.
func (b *Block) Marshal(buf []byte) error {
	if !blockdev.ValidBlockSize(b.BlockSize) || len(buf) != b.BlockSize {
		return fmt.Errorf("encoding a log block: block size %d, buffer of %d bytes", b.BlockSize, len(buf))
	}
	hs := b.headerSize()
	if n := (b.BlockSize - hs) / entrySize; len(b.Entries) > n {
		return fmt.Errorf("encoding a log block: %d entries, at most %d fit", len(b.Entries), n)
	}
	clear(buf)
	le := binary.LittleEndian
	magic := uint32(Magic)
	if b.Partial {
		magic = MagicPartial
	}
	le.PutUint32(buf[0:], magic)
	le.PutUint16(buf[4:], Version)
	le.PutUint16(buf[6:], uint16(hs))
	le.PutUint32(buf[8:], uint32(b.BlockSize))
	le.PutUint32(buf[12:], uint32(len(b.Entries)))
	le.PutUint32(buf[16:], b.Sequence)
	le.PutUint64(buf[20:], b.Sector0)
	for i, e := range b.Entries {
		p := buf[hs+i*entrySize:]
		le.PutUint64(p[0:], e.Source)
		le.PutUint64(p[8:], e.Dest)
		le.PutUint32(p[16:], e.Size)
		le.PutUint32(p[20:], e.Checksum)
	}
	if x := b.Ext; x != nil {
		le.PutUint32(buf[28:], extMagic)
		le.PutUint16(buf[32:], extVersion)
		le.PutUint16(buf[34:], uint16(x.Phase))
		var flags uint32
		if x.RollbackRequested {
			flags |= flagRollback
		}
		if x.CommitWhenFull {
			flags |= flagCommitWhenFull
		}
		if x.Unproven {
			flags |= flagUnproven
		}
		le.PutUint32(buf[44:], flags)
		le.PutUint64(buf[48:], x.Shadows[0])
		le.PutUint64(buf[56:], x.Shadows[1])
		le.PutUint64(buf[64:], uint64(x.Opened.UnixNano()))
		copy(buf[72:88], x.Checkpoint[:])
		le.PutUint64(buf[88:], x.Generation)
		le.PutUint64(buf[96:], uint64(x.DeviceSize))
		le.PutUint64(buf[104:], x.FreeMap)
		for i, r := range x.Reserve {
			le.PutUint64(buf[112+16*i:], r.Start)
			le.PutUint64(buf[120+16*i:], r.Sectors)
		}
		le.PutUint32(buf[offEntriesCRC:], entriesCRC(buf, hs, len(b.Entries)))
		le.PutUint32(buf[offHeaderCRC:], headerCRC(buf[:hs]))
	}
	return nil
}

const (
	flagRollback       = 1 << 0
	flagCommitWhenFull = 1 << 1
	flagUnproven       = 1 << 2

	knownFlags = flagRollback | flagCommitWhenFull | flagUnproven
)

// Unmarshal decodes a log block from buf, which begins with it and may be
// longer. Errors wrap ErrNoLog, ErrUnsupported, ErrTorn or ErrCorrupt and name
// the field. With ErrTorn the block is returned as well, without entries: its
// header is good and names the shadows.
//
// What is checked here needs no more than the block itself: whether sectors lie
// inside the device is for the caller, see Block.Validate.
func Unmarshal(buf []byte) (*Block, error) {
	if len(buf) < blockdev.SectorSize {
		return nil, fmt.Errorf("%w: only %d bytes", ErrNoLog, len(buf))
	}
	le := binary.LittleEndian
	b := &Block{}
	switch magic := le.Uint32(buf); magic {
	case Magic:
	case MagicPartial:
		b.Partial = true
	default:
		return nil, fmt.Errorf("%w: magic %#08x", ErrNoLog, magic)
	}
	if v := le.Uint16(buf[4:]); v != Version {
		return nil, fmt.Errorf("%w: header version %#04x", ErrUnsupported, v)
	}
	b.BlockSize = int(min(le.Uint32(buf[8:]), math.MaxInt32))
	if !blockdev.ValidBlockSize(b.BlockSize) {
		return nil, fmt.Errorf("%w: block size %d", ErrCorrupt, le.Uint32(buf[8:]))
	}
	if len(buf) < b.BlockSize {
		return nil, fmt.Errorf("%w: block size %d in %d bytes", ErrCorrupt, b.BlockSize, len(buf))
	}
	hs := int(le.Uint16(buf[6:]))
	if hs < baseHeaderSize || hs > b.BlockSize {
		return nil, fmt.Errorf("%w: header size %d", ErrCorrupt, hs)
	}
	b.Sequence = le.Uint32(buf[16:])
	b.Sector0 = le.Uint64(buf[20:])
	if hs > baseHeaderSize {
		if err := b.unmarshalExt(buf, hs); err != nil {
			return nil, err
		}
	}
	count := le.Uint32(buf[12:])
	if most := (b.BlockSize - hs) / entrySize; count > uint32(most) {
		return nil, fmt.Errorf("%w: %d entries, at most %d fit", ErrCorrupt, count, most)
	}
	phase := PhaseOpen
	if b.Ext != nil {
		phase = b.Ext.Phase
	}
	if phase != PhaseOpen {
		if b.Partial {
			return nil, fmt.Errorf("%w: phase %s on a half-restored device", ErrCorrupt, phase)
		}
		// Only the header is there; the rest of the block is in change.
		if count != 0 {
			return nil, fmt.Errorf("%w: %d entries in phase %s", ErrCorrupt, count, phase)
		}
		return b, nil
	}
	if count == 0 {
		return nil, fmt.Errorf("%w: no entries", ErrCorrupt)
	}
	if b.Ext != nil && !b.Partial {
		if want, got := le.Uint32(buf[offEntriesCRC:]), entriesCRC(buf, hs, int(count)); got != want {
			return b, fmt.Errorf("%w: checksum of the entries is %08x, recorded %08x", ErrTorn, got, want)
		}
	}
	b.Entries = make([]Entry, count)
	for i := range b.Entries {
		p := buf[hs+i*entrySize:]
		b.Entries[i] = Entry{
			Source:   le.Uint64(p[0:]),
			Dest:     le.Uint64(p[8:]),
			Size:     le.Uint32(p[16:]),
			Checksum: le.Uint32(p[20:]),
		}
	}
	return b, nil
}

func (b *Block) unmarshalExt(buf []byte, hs int) error {
	le := binary.LittleEndian
	if hs < 34 || le.Uint32(buf[28:]) != extMagic {
		return fmt.Errorf("%w: unknown extension of %d bytes behind the header", ErrUnsupported, hs-baseHeaderSize)
	}
	if v := le.Uint16(buf[32:]); v != extVersion || hs != extHeaderSize {
		return fmt.Errorf("%w: extension version %d, header size %d; a newer program wrote it", ErrUnsupported, v, hs)
	}
	if want, got := le.Uint32(buf[offHeaderCRC:]), headerCRC(buf[:hs]); !b.Partial && got != want {
		return fmt.Errorf("%w: checksum of the header is %08x, recorded %08x", ErrCorrupt, got, want)
	}
	flags := le.Uint32(buf[44:])
	x := &Extension{
		Phase:             Phase(le.Uint16(buf[34:])),
		RollbackRequested: flags&flagRollback != 0,
		CommitWhenFull:    flags&flagCommitWhenFull != 0,
		Unproven:          flags&flagUnproven != 0,
		Shadows:           [2]uint64{le.Uint64(buf[48:]), le.Uint64(buf[56:])},
		Opened:            time.Unix(0, int64(le.Uint64(buf[64:]))),
		Generation:        le.Uint64(buf[88:]),
		DeviceSize:        int64(le.Uint64(buf[96:])),
		FreeMap:           le.Uint64(buf[104:]),
	}
	for i := range x.Reserve {
		x.Reserve[i] = Run{le.Uint64(buf[112+16*i:]), le.Uint64(buf[120+16*i:])}
	}
	copy(x.Checkpoint[:], buf[72:88])
	if flags&^knownFlags != 0 || x.Phase > PhaseClosing {
		return fmt.Errorf("%w: flags %#x, %s; a newer program wrote it", ErrUnsupported, flags, x.Phase)
	}
	b.Ext = x
	return nil
}

// Validate checks what Unmarshal cannot: that everything which b names lies
// inside a device of size bytes and is aligned to the block size, that no entry
// is empty, and that the first entry leads where it must. Errors wrap
// ErrCorrupt and name the entry.
func (b *Block) Validate(size int64) error {
	sectors := uint64(max(size, 0)) / blockdev.SectorSize
	perBlock := uint64(b.BlockSize) / blockdev.SectorSize
	inside := func(sector, n uint64) bool {
		return n <= sectors && sector <= sectors-n && sector%perBlock == 0
	}
	if b.Sector0 == 0 || !inside(b.Sector0, perBlock) {
		return fmt.Errorf("%w: live content of block 0 at sector %d of a device of %d sectors", ErrCorrupt, b.Sector0, sectors)
	}
	if b.Ext != nil {
		if n := b.Ext.DeviceSize; n < 0 || n/int64(b.BlockSize) > size/int64(b.BlockSize) {
			return fmt.Errorf("%w: the device had %d bytes at the checkpoint and has %d now", ErrCorrupt, b.Ext.DeviceSize, size)
		}
		for i, s := range b.Ext.Shadows {
			if s != 0 && !inside(s, perBlock) {
				return fmt.Errorf("%w: shadow %d at sector %d of a device of %d sectors", ErrCorrupt, i, s, sectors)
			}
		}
	}
	if x := b.Ext; x != nil {
		if x.FreeMap != 0 && !inside(x.FreeMap, perBlock) {
			return fmt.Errorf("%w: free map at sector %d of a device of %d sectors", ErrCorrupt, x.FreeMap, sectors)
		}
		for i, r := range x.Reserve {
			if r.Sectors != 0 && (r.Start == 0 || r.Sectors%perBlock != 0 || !inside(r.Start, r.Sectors)) {
				return fmt.Errorf("%w: run %d of the reserve, %d sectors from %d, of a device of %d", ErrCorrupt, i, r.Sectors, r.Start, sectors)
			}
		}
	}
	for i, e := range b.Entries {
		switch {
		case e.Size == 0 || e.Size%uint32(b.BlockSize) != 0:
			return fmt.Errorf("%w: log block %d, entry %d (%v): size is not a positive multiple of %d", ErrCorrupt, b.Sequence, i, e, b.BlockSize)
		case !inside(e.Source, e.Sectors()):
			return fmt.Errorf("%w: log block %d, entry %d (%v): source is outside the device of %d sectors or not aligned", ErrCorrupt, b.Sequence, i, e, sectors)
		case e.Dest == 0 || !inside(e.Dest, e.Sectors()):
			return fmt.Errorf("%w: log block %d, entry %d (%v): dest is outside the device of %d sectors or not aligned", ErrCorrupt, b.Sequence, i, e, sectors)
		case e.Source < e.Dest+e.Sectors() && e.Dest < e.Source+e.Sectors():
			return fmt.Errorf("%w: log block %d, entry %d (%v): source and dest overlap", ErrCorrupt, b.Sequence, i, e)
		case i == 0 && (e.Source != 0 || e.Size != uint32(b.BlockSize)):
			return fmt.Errorf("%w: log block %d, entry 0 (%v) does not lead to the block before it", ErrCorrupt, b.Sequence, e)
		case i > 0 && e.Source == 0:
			return fmt.Errorf("%w: log block %d, entry %d (%v): only the first entry may be of block 0", ErrCorrupt, b.Sequence, i, e)
		}
	}
	return nil
}

// Checksum continues the checksum of backed-up bytes: reflected CRC-32 with
// polynomial 0xEDB88320 and no inversion before or after. Begin with Seed, and
// pass the result on for bytes that follow.
func Checksum(seed uint32, p []byte) uint32 {
	// hash/crc32 inverts before and after: undo both.
	return ^crc32.Update(^seed, crc32.IEEETable, p)
}

// Seed is the checksum of no bytes at sector source: its block number.
func Seed(source uint64, blockSize int) uint32 {
	return uint32(source / (uint64(blockSize) / blockdev.SectorSize))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func headerCRC(header []byte) uint32 {
	var zero [4]byte
	crc := crc32.Update(0, castagnoli, header[:offHeaderCRC])
	crc = crc32.Update(crc, castagnoli, zero[:])
	return crc32.Update(crc, castagnoli, header[offHeaderCRC+4:])
}

func entriesCRC(buf []byte, hs, count int) uint32 {
	return crc32.Checksum(buf[hs:hs+count*entrySize], castagnoli)
}

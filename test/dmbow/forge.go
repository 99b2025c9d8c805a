package dmbow

// Forge writes a log of version 1.0 whose entries keep no rule but that of the
// encoding: copies go from anywhere to anywhere.
type Forge struct {
	Image []byte

	// NoChecksums leaves them out of the entries that follow.
	NoChecksums bool

	blockSize int
	log       logBlock
}

// NewForge opens a checkpoint on image. The live content of block 0 is in block
// live, its original in block original.
func NewForge(image []byte, blockSize, live, original int) *Forge {
	f := &Forge{Image: image, blockSize: blockSize}
	f.log = logBlock{magic: magicLog, blockSize: blockSize, sector0: f.sector(live)}
	copy(f.blocks(live, 1), f.blocks(0, 1))
	f.Copy(0, original, 1)
	return f
}

// Copy copies n blocks and logs that, if there is room in the log block.
func (f *Forge) Copy(source, dest, n int) {
	if headerSize+(len(f.log.entries)+1)*entrySize > f.blockSize {
		return
	}
	f.log.entries = append(f.log.entries, f.copy(source, dest, n))
	f.Seal()
}

// TurnOver puts the log block away to dest and begins the next one.
func (f *Forge) TurnOver(dest int) {
	e := f.copy(0, dest, 1)
	f.log.sequence++
	f.log.entries = []entry{e}
	f.Seal()
}

// Live says that the live content of block 0 is in block b.
func (f *Forge) Live(b int) {
	f.log.sector0 = f.sector(b)
	f.Seal()
}

// Mark marks the device as half-restored.
func (f *Forge) Mark() {
	f.log.magic = magicPartial
	f.Seal()
}

// Seal writes the log block to block 0.
func (f *Forge) Seal() { copy(f.Image, f.log.encode()) }

func (f *Forge) copy(source, dest, n int) entry {
	e := entry{source: f.sector(source), dest: f.sector(dest), size: uint32(n * f.blockSize)}
	if !f.NoChecksums {
		e.checksum = checksum(uint32(source), f.blocks(source, n))
	}
	copy(f.blocks(dest, n), f.blocks(source, n))
	return e
}

func (f *Forge) blocks(b, n int) []byte { return f.Image[b*f.blockSize : (b+n)*f.blockSize] }

func (f *Forge) sector(b int) uint64 { return uint64(b) * uint64(f.blockSize) / sectorSize }

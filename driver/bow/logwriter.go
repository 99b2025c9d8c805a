package bow

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// logWriter makes log entries durable, those of many requests at once: while one
// batch is being written, the next one gathers.
//
// A batch goes to disk in this order: full log blocks and the shadow of the new
// one; flush, which also covers the copies that the entries name; the new log
// block; flush. If something fails before the log block is written, the batch
// never was. If it fails after that, the disk may have the old log block or the
// new one, so the batch stays in the log, and the log is unsettled until a later
// write of it succeeds.
//
// A batch that only adds entries needs one flush: the shadow and the log block, which
// says that it is unproven (bowlog.Prove), are written together. If something fails,
// the batch is given up, whatever the disk has: it is believed only if all copies are
// there, and then nothing is wrong with it, since nobody overwrites what they are of.
type logWriter struct {
	engine *Engine

	mu    sync.Mutex
	queue []*logRequest // guarded by mu
	led   bool          // guarded by mu: some request leads

	// The log block in force. Owned by the request that leads, and by the
	// change of state, during which there is no request.
	block *bowlog.Block

	// How many generations the next log block leaves out: those after block that
	// the disk may have, though they were given up. Owned as block is.
	skip uint64

	unsettled atomic.Bool
	rollback  atomic.Bool // block says that a rollback was asked for
	sequence  atomic.Uint32
	batches   atomic.Int64 // written since the checkpoint
}

// logRequest is what one request adds to the log. Its copies have been written.
type logRequest struct {
	entries []bowlog.Entry
	sector0 int64    // new block of the live content of block 0, or 0
	shadows [2]int64 // new blocks for the shadows, or 0

	rollback bool // the checkpoint is to be rolled back
	cut      bool // blocks go out of the reserve, because they are to be written

	failures int64 // flushes that had failed before the first copy was written

	written bool
	err     error
	turn    chan bool // true: lead the next batch; closed: it is done
}

// append puts req into the log and waits until it is durable. If written is
// false, the log is as before; if it is true and there is an error, the log on
// disk may have req or not.
func (w *logWriter) append(req *logRequest) (written bool, err error) {
	req.turn = make(chan bool, 1)
	w.mu.Lock()
	w.queue = append(w.queue, req)
	lead := !w.led
	w.led = true
	w.mu.Unlock()
	if !lead {
		lead = <-req.turn
	}
	if lead {
		w.lead()
	}
	return req.written, req.err
}

// lead writes everything that is in the queue, the request of the caller among
// it, and hands over to the first of those that have come in the meantime. So a
// request that is alone changes no thread, and none works for others for long.
func (w *logWriter) lead() {
	w.mu.Lock()
	batch := w.queue
	w.queue = nil
	w.mu.Unlock()
	w.write(batch)

	w.mu.Lock()
	defer w.mu.Unlock()
	for _, req := range batch {
		close(req.turn)
	}
	if w.led = len(w.queue) > 0; w.led {
		w.queue[0].turn <- true
	}
}

// settle makes sure that the log on disk is the one in force.
func (w *logWriter) settle() error {
	if !w.unsettled.Load() {
		return nil
	}
	w.engine.transition.RLock()
	defer w.engine.transition.RUnlock()
	if w.engine.state != Checkpoint {
		return nil
	}
	return w.appendNothing()
}

// settleBlock0 is settle for who is about to write the live content of block 0 and
// holds transition and block 0. The log on disk may lead to where that was before,
// and a successor would find it there: who takes over from a dead process must have
// what that wrote, flushed or not.
func (w *logWriter) settleBlock0() error {
	if !w.unsettled.Load() {
		return nil
	}
	if err := w.appendNothing(); err != nil {
		return fmt.Errorf("writing the log that leads to block 0: %w", err)
	}
	return nil
}

// appendNothing writes the log.
func (w *logWriter) appendNothing() error {
	_, err := w.append(&logRequest{failures: w.engine.dev.failures.Load()})
	return err
}

// resettle writes the log block in force once more, if the disk may have another
// one, or a torn one. Its shadow is durable, and it stays so until this has
// succeeded.
func (w *logWriter) resettle() error {
	if !w.unsettled.Load() {
		return nil
	}
	failures := w.engine.dev.failures.Load()
	if err := bowlog.Write(w.engine.dev, w.block); err != nil {
		w.engine.writeFailed(failures)
		return err
	}
	w.unsettled.Store(false)
	return nil
}

// fullBlock is a log block that has become full, and where it goes.
type fullBlock struct {
	content []byte
	at      extent
}

// write makes one batch durable and says in each request how that went.
func (w *logWriter) write(batch []*logRequest) {
	next := clone(w.block)
	next.Ext.Generation += 1 + w.skip
	var full []fullBlock
	added := make([]*logRequest, 0, len(batch))
	failures := w.engine.dev.failures.Load()
	for _, req := range batch {
		if req.failures != failures {
			req.err = errLostFlush // its copies may be lost
			continue
		}
		blocks, err := w.add(next, req)
		if err != nil {
			req.err = err
			continue
		}
		full = append(full, blocks...)
		added = append(added, req)
	}
	if len(added) == 0 {
		return
	}
	w.engine.mu.Lock()
	next.Ext.Reserve = w.engine.reserveRunsLocked()
	w.engine.mu.Unlock()
	next.Ext.Unproven = w.skip == 0 && provable(w.block, next, added)
	written, err := w.put(next, full, failures)
	if written {
		w.skip = 0
		w.engine.keep(full)
		w.block = next
		w.sequence.Store(next.Sequence)
		w.unsettled.Store(err != nil)
		w.rollback.Store(next.Ext.RollbackRequested) // after unsettled, see RequestRollback
		w.batches.Add(1)
	} else {
		w.skip += bowlog.GivenUp
		for _, f := range full {
			w.engine.giveBack(f.at)
		}
	}
	for _, req := range added {
		req.written, req.err = written, err
	}
}

// provable tells whether next, which has the requests added in addition to block, may
// be written together with their copies: nothing is changed but that entries with a
// checksum are added.
func provable(block, next *bowlog.Block, added []*logRequest) bool {
	for _, req := range added {
		if req.cut || req.rollback || req.sector0 != 0 || req.shadows != [2]int64{} {
			return false
		}
		for _, e := range req.entries {
			if e.Checksum == 0 {
				return false
			}
		}
	}
	return next.Sequence == block.Sequence
}

// giveBack makes one reserved extent free again.
func (e *Engine) giveBack(at extent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.giveBackLocked([]extent{at})
	e.mu.reserved.Broadcast()
}

// keep makes the places of full log blocks Backup.
func (e *Engine) keep(full []fullBlock) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range full {
		e.mu.types.Set(f.at.start, f.at.end, Backup)
	}
	e.mu.reserved.Broadcast()
}

// put writes the log block next, and the full ones before it. It tells whether
// next may be the log from now on. failures is the number of flushes that had failed
// when the batch began.
func (w *logWriter) put(next *bowlog.Block, full []fullBlock, failures int64) (written bool, err error) {
	dev := w.engine.dev
	// Only then may the other shadow be overwritten.
	if err := w.resettle(); err != nil {
		return false, err
	}
	for _, f := range full {
		if _, err := dev.WriteAt(f.content, f.at.start*w.engine.blockSize); err != nil {
			return false, fmt.Errorf("writing a full log block: %w", err)
		}
	}
	if err := bowlog.WriteShadow(dev, next); err != nil {
		return false, err
	}
	if !next.Ext.Unproven {
		if err := w.engine.flush(failures); err != nil {
			return false, fmt.Errorf("flushing the copies: %w", err)
		}
	}
	err = bowlog.Write(dev, next)
	if err != nil {
		w.engine.writeFailed(failures)
	} else {
		err = w.engine.noFailureSince(failures)
	}
	return err == nil || !next.Ext.Unproven, err
}

// add puts the entries of req into b. When b becomes full, its content is
// returned, to be written to the block reserved for it, and b goes on as the
// next log block. With an error b is as before.
func (w *logWriter) add(b *bowlog.Block, req *logRequest) ([]fullBlock, error) {
	before := *clone(b)
	var full []fullBlock
	for _, entry := range req.entries {
		if merge(b, entry) {
			continue
		}
		if b.Full() {
			f, err := w.turnOver(b)
			if err != nil {
				for _, f := range full {
					w.engine.giveBack(f.at)
				}
				*b = before
				return nil, err
			}
			full = append(full, f)
		}
		b.Entries = append(b.Entries, entry)
	}
	if req.sector0 != 0 {
		b.Sector0 = w.engine.sector(req.sector0)
	}
	if req.rollback {
		b.Ext.RollbackRequested = true
	}
	for i, s := range req.shadows {
		if s != 0 {
			b.Ext.Shadows[i] = w.engine.sector(s)
		}
	}
	return full, nil
}

// turnOver makes b the log block after b.
func (w *logWriter) turnOver(b *bowlog.Block) (fullBlock, error) {
	e := w.engine
	e.mu.Lock()
	at, ok := e.takeLocked(1)
	e.mu.Unlock()
	if !ok {
		return fullBlock{}, fmt.Errorf("the log block is full: %w", ErrNoSpace)
	}
	buf := blockdev.Buffer(b.BlockSize)
	if err := b.Marshal(buf); err != nil {
		e.giveBack(at)
		return fullBlock{}, err
	}
	b.Sequence++
	b.Entries = append(b.Entries[:0:0], bowlog.Entry{
		Dest:     e.sector(at.start),
		Size:     uint32(b.BlockSize),
		Checksum: bowlog.Checksum(0, buf),
	})
	return fullBlock{buf, at}, nil
}

// merge makes entry part of the last entry of b, if that ends where it begins in
// both places, and tells whether it did.
func merge(b *bowlog.Block, entry bowlog.Entry) bool {
	if len(b.Entries) < 2 {
		return false // the first one leads to the log block before
	}
	last := &b.Entries[len(b.Entries)-1]
	if last.Checksum == 0 || entry.Checksum == 0 ||
		last.Source+last.Sectors() != entry.Source || last.Dest+last.Sectors() != entry.Dest ||
		last.Size > math.MaxUint32-entry.Size {
		return false
	}
	// An entry is undone as a whole. So what the last one copied must not be
	// what this one moves on.
	size := last.Sectors() + entry.Sectors()
	if last.Source < last.Dest+size && last.Dest < last.Source+size {
		return false
	}
	longer := *last
	bowlog.Extend(&longer, entry, b.BlockSize)
	if longer.Checksum == 0 {
		return false // that would say that there is none
	}
	*last = longer
	return true
}

// clone copies b so that the copy can be changed without b.
func clone(b *bowlog.Block) *bowlog.Block {
	c, ext := *b, *b.Ext
	c.Ext = &ext
	c.Entries = append(make([]bowlog.Entry, 0, bowlog.Capacity(b.BlockSize)), b.Entries...)
	return &c
}

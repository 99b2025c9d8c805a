package bench

import (
	"errors"
	"slices"
)

// closers undo what was done, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c closers) close() error {
	var err error
	for _, f := range slices.Backward(c) {
		err = errors.Join(err, f())
	}
	return err
}

package pool

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
)

var (
	idPattern   = regexp.MustCompile(`^[a-z0-9][-a-z0-9.]{0,99}\.[0-9a-f]{8}$`)
	namePattern = regexp.MustCompile(`^[a-z0-9][-a-z0-9.]{0,99}$`)
	// What hashed looks like. A name that looks like that by itself is hashed
	// too, or it could be the hash of another.
	hashPattern = regexp.MustCompile(`^v-[0-9a-f]{40}$`)
)

// ID returns the id of the volume that is called name on node. It is a file name
// of 109 bytes at most, and different for different names and nodes: the name if
// that is harmless or else a hash of it, a dot, and a hash of the node.
func ID(name, node string) string {
	if !namePattern.MatchString(name) || hashPattern.MatchString(name) ||
		strings.Contains(name, "..") || strings.HasSuffix(name, ".") {
		name = "v-" + hash(name, 40)
	}
	return name + "." + nodeHash(node)
}

func nodeHash(node string) string { return hash(node, 8) }

// hash returns the first n hexadecimal digits of the SHA-256 of s.
func hash(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:n]
}

// check returns nil if the pool is available and id can be one of its own. Nothing
// else becomes a path.
func (p *Pool) check(id string) error {
	if err := p.Available(); err != nil {
		return err
	}
	return p.checkID(id)
}

func (p *Pool) checkID(id string) error {
	if !idPattern.MatchString(id) {
		return ErrNotFound
	}
	if suffix := id[len(id)-8:]; suffix != nodeHash(p.node) {
		return fmt.Errorf("%w: %s is not of %s", ErrForeign, suffix, p.node)
	}
	return nil
}

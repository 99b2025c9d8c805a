package csi

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Limits of the specification.
const (
	maxString     = 128  // bytes of an ID or a name
	maxPath       = 4095 // bytes of a path; the kernel's limit without the NUL
	maxMountFlags = 4096 // bytes of all mount flags of a volume
)

// checkID says what is wrong with a volume ID. IDs become names of files, though
// everywhere with care, so those that are made to lead out of a directory are
// refused here already.
func checkID(field, id string) error {
	switch {
	case id == "":
		return invalid("%s is missing", field)
	case len(id) > maxString:
		return invalid("%s has %d bytes, more than %d", field, len(id), maxString)
	case id == "." || id == ".." || strings.ContainsRune(id, '/') || hasControl(id):
		return invalid("%s %q has a slash or a control character, or is a name of a directory", field, id)
	}
	return nil
}

// checkName says what is wrong with the name of a volume to be.
func checkName(name string) error {
	switch {
	case name == "":
		return invalid("name is missing")
	case len(name) > maxString:
		return invalid("name has %d bytes, more than %d", len(name), maxString)
	case hasControl(name):
		return invalid("name %q has control characters", name)
	}
	return nil
}

// hasControl tells whether s has characters that the specification bans from
// names; other white space is allowed.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool {
		return r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r >= 0x7f && r <= 0x9f
	})
}

// checkPath says what is wrong with a path that the kubelet gives.
func checkPath(field, path string) error {
	switch {
	case path == "":
		return invalid("%s is missing", field)
	case len(path) > maxPath:
		return invalid("%s has %d bytes, more than %d", field, len(path), maxPath)
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
		return invalid("%s %q is not an absolute path", field, path)
	case slices.Contains(strings.Split(path, "/"), ".."):
		return invalid("%s %q leads upwards", field, path)
	case filepath.Clean(path) == "/":
		return invalid("%s is the root directory", field)
	}
	return nil
}

// access is how a volume is to be used.
type access struct {
	block      bool
	fsType     string // "" for block volumes and where any will do
	mountFlags []string
	readOnly   bool // no writer at all
	exclusive  bool // one publisher only
}

// errUnsupported is wrapped where a capability is well-formed but not to be had
// with these volumes. Which code that gets depends on the call.
var errUnsupported = errors.New("not supported")

// fsTypes are the file systems that volumes can have.
var fsTypes = []string{"ext4", "xfs"}

// parseAccess reads a volume capability. The error is a status, or wraps
// errUnsupported.
func parseAccess(c *spec.VolumeCapability) (access, error) {
	var a access
	if c == nil {
		return a, invalid("volume_capability is missing")
	}
	switch t := c.GetAccessType().(type) {
	case *spec.VolumeCapability_Block:
		a.block = true
	case *spec.VolumeCapability_Mount:
		a.fsType, a.mountFlags = t.Mount.GetFsType(), t.Mount.GetMountFlags()
		size := 0
		for _, f := range a.mountFlags {
			size += len(f)
		}
		if size > maxMountFlags {
			return a, invalid("mount_flags have %d bytes, more than %d", size, maxMountFlags)
		}
		if t.Mount.GetVolumeMountGroup() != "" {
			return a, invalid("volume_mount_group is set, but VOLUME_MOUNT_GROUP is not a capability of this driver")
		}
		if a.fsType != "" && !slices.Contains(fsTypes, a.fsType) {
			return a, fmt.Errorf("file system %q is %w; there are %s", a.fsType, errUnsupported, strings.Join(fsTypes, " and "))
		}
	default:
		return a, invalid("volume_capability has neither block nor mount")
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case spec.VolumeCapability_AccessMode_UNKNOWN:
		return a, invalid("volume_capability has no access_mode")
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER:
		a.exclusive = true
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		a.exclusive, a.readOnly = true, true
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	default:
		return a, fmt.Errorf("access mode %v is %w: a volume is on one node", mode, errUnsupported)
	}
	return a, nil
}

// parseAccessAs is parseAccess with the code that the call at hand has for what
// is not supported.
func parseAccessAs(unsupported codes.Code, c *spec.VolumeCapability) (access, error) {
	a, err := parseAccess(c)
	if errors.Is(err, errUnsupported) {
		err = status.Error(unsupported, err.Error())
	}
	return a, err
}

// parseAll reads the capabilities that a volume must have all of, and returns
// what they have in common. The error is as that of parseAccess.
func parseAll(list []*spec.VolumeCapability) (access, error) {
	var all access
	if len(list) == 0 {
		return all, invalid("volume_capabilities are missing")
	}
	for i, c := range list {
		a, err := parseAccess(c)
		if err != nil {
			return all, err
		}
		if i == 0 {
			all = a
			continue
		}
		if a.block != all.block {
			return all, fmt.Errorf("a volume that is both raw and has a file system is %w", errUnsupported)
		}
		if a.fsType != "" && all.fsType != "" && a.fsType != all.fsType {
			return all, fmt.Errorf("a volume that is both %s and %s is %w", all.fsType, a.fsType, errUnsupported)
		}
		if all.fsType == "" {
			all.fsType = a.fsType
		}
	}
	return all, nil
}

// Keys with these prefixes are Kubernetes': what it tells the driver of the claim
// and the pod, and who provisioned the volume.
var foreignKeys = []string{"csi.storage.k8s.io/", "storage.kubernetes.io/"}

// checkKeys refuses keys that are not known, because the one who wrote them
// thinks that they do something.
func checkKeys(field string, m map[string]string, known ...string) error {
	for k := range m {
		isForeign := func(prefix string) bool { return strings.HasPrefix(k, prefix) }
		if !slices.Contains(known, k) && !slices.ContainsFunc(foreignKeys, isForeign) {
			return invalid("%s has the unknown key %q; known are: %s", field, k, strings.Join(known, ", "))
		}
	}
	return nil
}

// Keys of the parameters of a StorageClass and of the attributes of a volume.
const (
	thinKey   = "thin"   // "true": space is taken from the pool when it is written
	deviceKey = "device" // image file or block device on the node

	// transportKey is how requests come to the engine; see the transports.
	transportKey = "transport"
)

// Values of transportKey.
const (
	transportClassic = "classic"  // the default; the engine may be restarted in use
	transportIOUring = "io_uring" // fewer system calls for each request
)

// parseParameters reads the parameters of a StorageClass.
func parseParameters(m map[string]string) (thin, ioUring bool, err error) {
	if err := checkKeys("parameters", m, thinKey, transportKey); err != nil {
		return false, false, err
	}
	switch v, ok := m[thinKey]; {
	case !ok || v == "false":
	case v == "true":
		thin = true
	default:
		return false, false, invalid(`parameter %s is %q, want "true" or "false"`, thinKey, v)
	}
	ioUring, err = parseTransport("parameter", m)
	return thin, ioUring, err
}

// parseTransport tells whether io_uring is asked for.
func parseTransport(where string, m map[string]string) (ioUring bool, err error) {
	switch v, ok := m[transportKey]; {
	case !ok || v == transportClassic:
		return false, nil
	case v == transportIOUring:
		return true, nil
	default:
		return false, invalid("%s %s is %q, want %q or %q", where, transportKey, v, transportClassic, transportIOUring)
	}
}

// parseContext reads the attributes of a PersistentVolume. The device is empty for
// volumes of the pool.
func parseContext(m map[string]string) (device string, ioUring bool, err error) {
	if err := checkKeys("volume_context", m, deviceKey, transportKey); err != nil {
		return "", false, err
	}
	if ioUring, err = parseTransport("volume_context", m); err != nil {
		return "", false, err
	}
	device, ok := m[deviceKey]
	if !ok {
		return "", ioUring, nil
	}
	return device, ioUring, checkPath("volume_context "+deviceKey, device)
}

// Package linuxabi holds the raw numbers and structures of the Linux interfaces
// that Bowline speaks and golang.org/x/sys does not name: ioctl requests,
// messages, flags. It contains no behaviour.
//
// Each file is one topic, and every name in it begins with that topic (FS, Loop,
// Fuse, ...). Sizes and offsets are those of the 64-bit little-endian ABI, and
// ioctl numbers those of the architectures that use the generic encoding
// (amd64, arm64, riscv64).
package linuxabi

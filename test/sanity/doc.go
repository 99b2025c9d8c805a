// Package sanity tests the driver from its CSI socket down to real loop devices,
// file systems and mounts: with the suite that all drivers are held to, and at its
// limits. It has only tests.
package sanity

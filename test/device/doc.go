// Package device tests the program bowline as a black box: real ext4 and XFS file
// systems on images and block devices, attached, checkpointed under load, wrecked,
// rolled back or committed with the commands that a person would type.
//
// The tests need root, loop devices and /dev/fuse, and are skipped without.
package device

//go:build !race

package device

// buildFlags are for the program under test.
var buildFlags []string

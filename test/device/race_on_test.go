//go:build race

package device

// buildFlags are for the program under test: when the tests look for data races,
// it does too. It reports them on standard error and with exit code 66.
var buildFlags = []string{"-race"}

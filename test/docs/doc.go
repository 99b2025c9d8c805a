// Package docs tests that the documentation is true as far as a machine can tell:
// links, commands, objects, completeness; docs/testing.md says what is checked and
// what is not. It has only tests.
package docs

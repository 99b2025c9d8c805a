package main

import (
	"os"
	"testing"

	"github.com/bowline-csi/bowline/test/apiserver"
)

// asProgram makes the test binary the program itself, in a process that can be
// killed.
const asProgram = "BOWLINE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	apiserver.Main(m)
}

package v1alpha1_test

import (
	"testing"

	"github.com/bowline-csi/bowline/test/apiserver"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

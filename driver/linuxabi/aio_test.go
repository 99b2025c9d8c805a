package linuxabi

import (
	"testing"
	"unsafe"
)

func TestAIOSizes(t *testing.T) {
	checkSizes(t, []size{
		{"AIORequest", unsafe.Sizeof(AIORequest{}), 64},
		{"AIORequest.FD", unsafe.Offsetof(AIORequest{}.FD), 20},
		{"AIORequest.Offset", unsafe.Offsetof(AIORequest{}.Offset), 40},
		{"AIORequest.ResFD", unsafe.Offsetof(AIORequest{}.ResFD), 60},
		{"AIOEvent", unsafe.Sizeof(AIOEvent{}), 32},
	})
}

package linuxabi

import (
	"testing"
	"unsafe"
)

func TestUringSizes(t *testing.T) {
	checkSizes(t, []size{
		{"UringParams", unsafe.Sizeof(UringParams{}), 120},
		{"UringSQE", unsafe.Sizeof(UringSQE{}), 128},
		{"UringSQE.UserData", unsafe.Offsetof(UringSQE{}.UserData), 32},
		{"UringSQE.Cmd", unsafe.Offsetof(UringSQE{}.Cmd), 48},
		{"UringCQE", unsafe.Sizeof(UringCQE{}), 16},
		{"FuseUringHeader", unsafe.Sizeof(FuseUringHeader{}), 288},
		{"FuseUringCommand", unsafe.Sizeof(FuseUringCommand{}), 24},
	})
}

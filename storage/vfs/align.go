package vfs

import "unsafe"

// AlignedBytes returns n zero bytes whose address is a multiple of BlockSize,
// as files opened with Direct need.
func AlignedBytes(n int) []byte {
	b := make([]byte, n+BlockSize)
	skip := (BlockSize - misalignment(b)) % BlockSize
	return b[skip : skip+n : skip+n]
}

// misalignment is how far b's address lies behind a multiple of BlockSize.
func misalignment(b []byte) int {
	return int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % BlockSize)
}

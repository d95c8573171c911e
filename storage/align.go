package storage

import (
	"unsafe"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

// alignedBytes returns n bytes whose address suits direct I/O.
func alignedBytes(n int) []byte {
	b := make([]byte, n+vfs.BlockSize)
	skip := (vfs.BlockSize - int(uintptr(unsafe.Pointer(&b[0]))%vfs.BlockSize)) % vfs.BlockSize
	return b[skip : skip+n : skip+n]
}

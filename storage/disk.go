package storage

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

// diskFormat is the version of the data directory's layout.
const diskFormat = 1

// Disk is a data directory: its lock and what it remembers about itself.
type Disk struct {
	fs   vfs.FS
	dir  string
	lock io.Closer
	// Identity is what disk.json holds. Change it with Save.
	Identity Identity
}

// Identity is what a disk remembers: it is refused in another cluster.
type Identity struct {
	Format    int    `json:"format"`
	DiskID    string `json:"disk_id"` // 32 hex digits
	ClusterID string `json:"cluster_id,omitempty"`
	NodeID    int32  `json:"node_id"`
	// Epoch is the highest leader epoch that was used on this disk.
	Epoch int32 `json:"epoch"`
}

// ErrInUse: another process works on the data directory.
var ErrInUse = errors.New("storage: data directory is in use by another process")

// ErrFormat: the data directory was written by another format version.
var ErrFormat = errors.New("storage: data directory has another format version")

// OpenDisk locks the data directory dir, making it if it is missing.
func OpenDisk(fsys vfs.FS, dir string) (*Disk, error) {
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	lock, err := fsys.Lock(filepath.Join(dir, "LOCK"))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w: %s: stop that one or choose another --data-dir", ErrInUse, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	d := &Disk{fs: fsys, dir: dir, lock: lock}
	if err := d.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

func (d *Disk) path() string { return filepath.Join(d.dir, "disk.json") }

func (d *Disk) load() error {
	b, err := readFile(d.fs, d.path(), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		var id [16]byte
		rand.Read(id[:])
		d.Identity = Identity{Format: diskFormat, DiskID: hex.EncodeToString(id[:]), NodeID: -1, Epoch: -1}
		return d.Save()
	}
	if err != nil {
		return fmt.Errorf("read data directory: %w", err)
	}
	if err := json.Unmarshal(b, &d.Identity); err != nil {
		return fmt.Errorf("%w: %s is not readable: %w", ErrDamaged, d.path(), err)
	}
	if d.Identity.Format != diskFormat {
		return fmt.Errorf("%w: %s has format %d, this program knows %d: use the version that wrote it", ErrFormat, d.dir, d.Identity.Format, diskFormat)
	}
	if len(d.Identity.DiskID) != 32 {
		return fmt.Errorf("%w: %s has no valid disk id", ErrDamaged, d.path())
	}
	return nil
}

// Save makes Identity durable.
func (d *Disk) Save() error {
	b, err := json.MarshalIndent(d.Identity, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(d.fs, d.path(), append(b, '\n')); err != nil {
		return fmt.Errorf("write data directory: %w", err)
	}
	return nil
}

// ID returns the disk id.
func (d *Disk) ID() (id [16]byte) {
	b, err := hex.DecodeString(d.Identity.DiskID)
	if err == nil {
		copy(id[:], b)
	}
	return id
}

// Close releases the lock.
func (d *Disk) Close() error { return d.lock.Close() }

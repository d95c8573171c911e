package storage

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/cirrolog/cirrolog/storage/ids"
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

// diskFile is disk.json.
type diskFile struct {
	Identity
	CRC string `json:"crc32c"` // of the identity as compact JSON, 8 hex digits
}

func (i Identity) checksum() (string, error) {
	b, err := json.Marshal(i)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%08x", crc32.Checksum(b, castagnoli)), nil
}

// ErrInUse: another process works on the data directory.
var ErrInUse = errors.New("storage: data directory is in use by another process")

// ErrFormat: the data directory was written by another format version.
var ErrFormat = errors.New("storage: data directory has another format version")

// OpenDisk locks the data directory dir, making it if it is missing.
func OpenDisk(fsys vfs.FS, dir string) (*Disk, error) {
	if err := makeDurable(fsys, dir); err != nil {
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

// PeekDisk reads the identity of a data directory without changing it; one that is not there yet is of no
// cluster and no node (-1). ErrInUse: another process works on it.
func PeekDisk(fsys vfs.FS, dir string) (Identity, error) {
	d := &Disk{fs: fsys, dir: dir}
	name := filepath.Join(dir, "LOCK")
	if _, err := fsys.Stat(name); err == nil {
		lock, err := fsys.Lock(name)
		if errors.Is(err, vfs.ErrLocked) {
			return Identity{}, fmt.Errorf("%w: %s: stop that one or choose another --data-dir", ErrInUse, dir)
		}
		if err != nil {
			return Identity{}, fmt.Errorf("lock data directory: %w", err)
		}
		defer lock.Close()
	}
	b, err := readFile(d.fs, d.path(), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{NodeID: -1, Epoch: -1}, nil
	}
	if err != nil {
		return Identity{}, fmt.Errorf("read data directory: %w", err)
	}
	err = d.decode(b)
	return d.Identity, err
}

// makeDurable makes dir and its name, and those of the parents it had to make.
func makeDurable(fsys vfs.FS, dir string) error {
	dirs := []string{filepath.Dir(dir)}
	for {
		d := dirs[len(dirs)-1]
		if _, err := fsys.Stat(d); err == nil || filepath.Dir(d) == d {
			break
		}
		dirs = append(dirs, filepath.Dir(d))
	}
	if err := fsys.MkdirAll(dir); err != nil {
		return err
	}
	for _, d := range dirs {
		// A parent that may not be read was not made here.
		if err := fsys.SyncDir(d); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
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
	return d.decode(b)
}

// decode reads disk.json. Its format comes first: that of another version may
// have other fields.
func (d *Disk) decode(b []byte) error {
	var f diskFile
	if err := json.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("%w: %s is not readable: %w", ErrDamaged, d.path(), err)
	}
	d.Identity = f.Identity
	if d.Identity.Format != diskFormat {
		return fmt.Errorf("%w: %s has format %d, this program knows %d: use the version that wrote it", ErrFormat, d.dir, d.Identity.Format, diskFormat)
	}
	if sum, err := d.Identity.checksum(); err != nil || sum != f.CRC {
		return fmt.Errorf("%w: %s has the wrong checksum", ErrDamaged, d.path())
	}
	if id, err := hex.DecodeString(d.Identity.DiskID); err != nil || len(id) != 16 {
		return fmt.Errorf("%w: %s has no valid disk id", ErrDamaged, d.path())
	}
	return nil
}

// Save makes Identity durable.
func (d *Disk) Save() error {
	sum, err := d.Identity.checksum()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(diskFile{d.Identity, sum}, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(d.fs, d.path(), append(b, '\n')); err != nil {
		return fmt.Errorf("write data directory: %w", err)
	}
	return nil
}

// ID returns the disk id.
func (d *Disk) ID() (id ids.DiskID) {
	b, err := hex.DecodeString(d.Identity.DiskID)
	if err == nil {
		copy(id[:], b)
	}
	return id
}

// Close releases the lock.
func (d *Disk) Close() error { return d.lock.Close() }

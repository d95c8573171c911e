package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	checkpointFormat = 1
	maxCheckpoint    = 64 << 20 // bytes
)

// checkpoint says how far a replay has come. It is written only after what it
// counts has arrived in the output.
type checkpoint struct {
	Format   int         `json:"format"`
	Topic    string      `json:"topic"`
	TopicID  string      `json:"topic_id"`
	Request  string      `json:"request"`   // selection, record format and output: another one is another replay
	Ranges   []partRange `json:"ranges"`    // what is left; fixed when the replay began
	Total    int64       `json:"total"`     // offsets when the replay began
	Records  int64       `json:"records"`   // written so far
	FileSize int64       `json:"file_size"` // bytes of --to-file
	Done     bool        `json:"done"`
}

// checkpointFile is the file of a checkpoint (docs/format/checkpoint.md).
type checkpointFile struct {
	checkpoint
	CRC string `json:"crc32c"` // of the checkpoint as compact JSON, 8 hex digits
}

func (c *checkpoint) checksum() (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%08x", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))), nil
}

// readCheckpoint returns nil if there is none.
func readCheckpoint(path string) (*checkpoint, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && fi.Size() > maxCheckpoint {
		err = fmt.Errorf("%d bytes are too many", fi.Size())
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	var f checkpointFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	c := &f.checkpoint
	if err != nil {
		return nil, fmt.Errorf("read checkpoint %s: %w", path, err)
	}
	if c.Format != checkpointFormat {
		return nil, fmt.Errorf("read checkpoint %s: unknown format version %d, this program knows %d", path, c.Format, checkpointFormat)
	}
	if sum, err := c.checksum(); err != nil || sum != f.CRC {
		return nil, fmt.Errorf("read checkpoint %s: it is damaged: remove it and the output to begin again", path)
	}
	return c, nil
}

// matches returns an error when c belongs to another replay.
func (c *checkpoint) matches(path, topic, id, request string) error {
	switch {
	case c.Topic != topic:
		return fmt.Errorf("%w: checkpoint %s is of topic %s", errUsage, path, c.Topic)
	case c.TopicID != id:
		return fmt.Errorf("%w: checkpoint %s is of a topic %s that was deleted since", errUsage, path, topic)
	case c.Request != request:
		return fmt.Errorf("%w: checkpoint %s is of another replay: %s", errUsage, path, c.Request)
	}
	return nil
}

// write replaces the checkpoint atomically and durably.
func (c *checkpoint) write(path string) error {
	c.Format = checkpointFormat
	f := checkpointFile{checkpoint: *c}
	var err error
	if f.CRC, err = c.checksum(); err != nil {
		return fmt.Errorf("encode checkpoint: %w", err)
	}
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode checkpoint: %w", err)
	}
	if err := replaceFile(path, append(b, '\n')); err != nil {
		return fmt.Errorf("write checkpoint %s: %w", path, err)
	}
	return nil
}

// replaceFile writes a file beside path, syncs it, renames it to path and syncs
// the directory.
func replaceFile(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, derr := os.Open(dir)
	if derr != nil {
		return derr
	}
	return errors.Join(d.Sync(), d.Close())
}

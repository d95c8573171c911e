package cli

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// segmentBytes is a file or a bucket object.
type segmentBytes struct {
	io.ReaderAt
	size  int64
	close func() error
}

// openSegment opens a path, or with bucket a key of it.
func openSegment(ctx context.Context, bucket objstore.Bucket, name string) (*segmentBytes, error) {
	if bucket != nil {
		info, err := bucket.Head(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
		return &segmentBytes{objstore.NewReaderAt(ctx, bucket, name, readAhead), info.Size, func() error { return nil }}, nil
	}
	f, err := os.Open(name)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(name, tiering.DataPrefix) {
			err = fmt.Errorf("%w: for an object give its bucket with --bucket", err)
		}
		return nil, fmt.Errorf("open segment: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("open segment: %s is not a file", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &segmentBytes{f, objectSize(f, fi.Size()), f.Close}, nil
}

// A file of a directory bucket is an object and 16 bytes: this magic, CRC, size.
const dirMagic = "CLdo"

// objectSize is the size of the object in a directory bucket's file, and that
// of any other file.
func objectSize(f io.ReaderAt, size int64) int64 {
	t := make([]byte, 16)
	if size < int64(len(t)) {
		return size
	}
	if _, err := f.ReadAt(t, size-int64(len(t))); err != nil || string(t[:4]) != dirMagic || binary.BigEndian.Uint64(t[8:]) != uint64(size)-uint64(len(t)) {
		return size
	}
	return size - int64(len(t))
}

// readAhead is how many bytes of an object are asked for at once where they are read one after the other.
const readAhead = 4 << 20

// eachSegment calls f for each name and goes on after errors.
func eachSegment(ctx context.Context, url string, names []string, f func(name string, s *segmentBytes) error) error {
	var bucket objstore.Bucket
	if url != "" {
		var err error
		if bucket, err = openBucket(ctx, url); err != nil {
			return err
		}
		defer func() { _ = objstore.Close(bucket) }()
	}
	var errs []error
	done := 0
	for _, name := range names {
		s, err := openSegment(ctx, bucket, name)
		if err == nil {
			err = errors.Join(f(name, s), s.close())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		done++
	}
	return someFailed(errs, done)
}

func (a *app) segmentDumpCmd() *cobra.Command {
	var bucket string
	var o segment.DumpOptions
	cmd := &cobra.Command{
		Use: "dump FILE...", Short: "Print the batches and indexes of segment files or bucket objects",
		Long: "Print .log files, .idx files, the write-ahead ring (of a stopped agent), spill files or bucket objects, batches\n" +
			"in the words of Kafka's DumpLogSegments. With --bucket, FILE is a key as `segment ls` shows it. The exit code is not 0 when something in them is damaged.",
		Args: args(cobra.MinimumNArgs(1)),
	}
	f := cmd.Flags()
	f.StringVar(&bucket, "bucket", "", "bucket of the keys: dir://PATH or s3://BUCKET/PREFIX?…")
	f.BoolVar(&o.Records, "records", false, "print records with key and value too")
	f.BoolVar(&o.NoBatches, "index-only", false, "only the index of an object")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return eachSegment(cmd.Context(), bucket, names, func(name string, s *segmentBytes) error {
			if kind := walKind(s); kind != "" && bucket == "" {
				return dumpWAL(cmd.OutOrStdout(), kind, name)
			}
			o := o
			o.Name = name
			return segment.Dump(cmd.OutOrStdout(), s, s.size, o)
		})
	}
	return cmd
}

// verified is a line of segment verify.
type verified struct {
	File    string `json:"file"`
	Kind    string `json:"kind"`
	Bytes   int64  `json:"bytes"`
	Batches int64  `json:"batches"`
	Records int64  `json:"records"`
	Base    int64  `json:"base"`
	Last    int64  `json:"last"`
	Note    string `json:"note,omitempty"`
	Error   string `json:"error,omitempty"`
}

func (a *app) segmentVerifyCmd() *cobra.Command {
	var bucket string
	cmd := &cobra.Command{
		Use: "verify FILE...", Short: "Check every checksum of segment files or bucket objects",
		Long: "Check .log files, .idx files, the write-ahead ring (of a stopped agent), spill files or bucket objects wholly. A .log file with its .idx file beside it is checked\n" +
			"against it. With --bucket, FILE is a key as `segment ls` shows it.",
		Args: args(cobra.MinimumNArgs(1)),
	}
	cmd.Flags().StringVar(&bucket, "bucket", "", "bucket of the keys: dir://PATH or s3://BUCKET/PREFIX?…")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		out := []verified{}
		err := eachSegment(cmd.Context(), bucket, names, func(name string, s *segmentBytes) error {
			rep, err := verifySegment(name, s, bucket == "")
			v := verified{File: name, Kind: string(rep.Kind), Bytes: s.size, Batches: rep.Batches, Records: rep.Records, Base: rep.Base, Last: rep.Last}
			if unfinished(name, rep.Kind, err) {
				v.Note = fmt.Sprintf("ok; the last %d bytes begin a batch that is whole with wal/ only", s.size-rep.LogSize)
				err = nil
			} else if bucket == "" && usedBefore(name, rep.Kind, err) {
				v.Note = fmt.Sprintf("ok; whose the last %d bytes are, wal/ tells: the file was used before", s.size-rep.LogSize)
				err = nil
			}
			if err != nil {
				v.Error = err.Error()
			}
			out = append(out, v)
			return err
		})
		t := table{header: []string{"FILE", "KIND", "BYTES", "BATCHES", "RECORDS", "BASE", "LAST", "RESULT"}}
		for _, v := range out {
			result := cmp.Or(v.Error, v.Note, "ok")
			t.add(v.File, v.Kind, v.Bytes, v.Batches, v.Records, v.Base, v.Last, result)
		}
		if len(out) > 0 {
			err = errors.Join(err, a.render(cmd.OutOrStdout(), out, &t))
		}
		return err
	}
	return cmd
}

// unfinished says that all that is wrong with an active segment is that its
// last batch is not wholly written: files are written in blocks, and what is
// missing lies in the write-ahead log.
func unfinished(name string, kind segment.Kind, err error) bool {
	base, ok := strings.CutSuffix(name, filepath.Ext(segment.LogName(0)))
	if !ok || kind != segment.KindLog || !errors.Is(err, segment.ErrTorn) || !errors.Is(err, batch.ErrTruncated) {
		return false
	}
	_, err = os.Stat(base + filepath.Ext(segment.IndexName(0)))
	return errors.Is(err, os.ErrNotExist)
}

// usedBefore says that what follows the intact batches of an active segment may be
// of an older one, whose file it was.
func usedBefore(name string, kind segment.Kind, err error) bool {
	if kind != segment.KindLog || !errors.Is(err, segment.ErrTorn) {
		return false
	}
	_, err = os.Stat(name + storage.ReusedSuffix)
	return err == nil
}

// verifySegment checks a local log against the index beside it if there is one.
func verifySegment(name string, s *segmentBytes, local bool) (segment.Report, error) {
	if kind := walKind(s); kind != "" && local {
		return verifyWAL(kind, name)
	}
	base, ok := strings.CutSuffix(name, filepath.Ext(segment.LogName(0)))
	if !local || !ok {
		return segment.Verify(s, s.size)
	}
	b, err := os.Open(base + filepath.Ext(segment.IndexName(0)))
	if errors.Is(err, os.ErrNotExist) {
		return segment.Verify(s, s.size) // not closed yet
	}
	if err != nil {
		return segment.Report{Kind: segment.KindLog}, fmt.Errorf("open index: %w", err)
	}
	defer func() { _ = b.Close() }()
	fi, err := b.Stat()
	if err != nil {
		return segment.Report{Kind: segment.KindLog}, fmt.Errorf("open index: %w", err)
	}
	kind, idx, err := segment.Detect(b, fi.Size())
	if err == nil && kind != segment.KindIndex {
		err = fmt.Errorf("%w: no footer", segment.ErrCorrupt)
	}
	if err != nil {
		return segment.Report{Kind: segment.KindLog}, fmt.Errorf("index %s: %w", filepath.Base(b.Name()), err)
	}
	return segment.VerifyLog(s, s.size, idx)
}

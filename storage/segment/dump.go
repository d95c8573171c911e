package segment

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
)

// DumpOptions say what Dump prints.
type DumpOptions struct {
	// Name is printed in the first line, when it is not empty.
	Name string
	// Records prints every record too, its key and value as text.
	Records bool
	// NoBatches leaves out the batches: of an object only the trailer remains.
	NoBatches bool
	// NoIndex leaves out the trailer.
	NoIndex bool
	// Limits bound what a compressed batch may expand to (with Records).
	Limits batch.Limits
}

// Dump prints a log, an index or an object, batches line by line as Kafka's
// DumpLogSegments does. It goes on to the first batch that is not intact, says
// so in the output and returns it as an error.
func Dump(w io.Writer, r io.ReaderAt, size int64, opts DumpOptions) error {
	out := bufio.NewWriterSize(w, 64<<10)
	err := dump(out, r, size, opts)
	return errors.Join(err, out.Flush())
}

func dump(out *bufio.Writer, r io.ReaderAt, size int64, opts DumpOptions) error {
	if opts.Name != "" {
		fmt.Fprintf(out, "Dumping %s\n", opts.Name)
	}
	kind, idx, err := Detect(r, size)
	if err != nil {
		fmt.Fprintf(out, "damaged: %v\n", err)
		return err
	}
	logSize := size
	if idx != nil {
		logSize = idx.Meta.LogSize
	}
	if kind != KindIndex && !opts.NoBatches {
		if err := dumpLog(out, r, logSize, opts); err != nil {
			return err
		}
	}
	if idx != nil && !opts.NoIndex {
		dumpIndex(out, idx)
	}
	return nil
}

func dumpLog(out *bufio.Writer, r io.ReaderAt, size int64, opts DumpOptions) error {
	first := true
	end, err := ScanLog(r, size, 0, -1, func(h batch.Header, raw []byte, pos int64) error {
		if first {
			fmt.Fprintf(out, "Log starting offset: %d\n", h.BaseOffset)
			first = false
		}
		if err := DumpBatch(out, &h, pos, true); err != nil {
			return err
		}
		if !opts.Records {
			return nil
		}
		return dumpRecords(out, &h, raw, opts.Limits)
	})
	if err != nil {
		fmt.Fprintf(out, "Found %d invalid bytes at the end, from position %d: %v\n", size-end, end, err)
	}
	return err
}

// DumpBatch prints one batch in the words of Kafka's DumpLogSegments.
func DumpBatch(w io.Writer, h *batch.Header, pos int64, valid bool) error {
	lastSequence := int32(-1)
	if h.BaseSequence >= 0 {
		lastSequence = h.LastSequence()
	}
	horizon := "OptionalLong.empty"
	if h.DeleteHorizon() {
		horizon = fmt.Sprintf("OptionalLong[%d]", h.BaseTimestamp)
	}
	_, err := fmt.Fprintf(w, "baseOffset: %d lastOffset: %d count: %d baseSequence: %d lastSequence: %d producerId: %d producerEpoch: %d partitionLeaderEpoch: %d isTransactional: %t isControl: %t deleteHorizonMs: %s position: %d %s: %d size: %d magic: %d compresscodec: %s crc: %d isvalid: %t\n",
		h.BaseOffset, h.LastOffset(), h.NumRecords, h.BaseSequence, lastSequence, h.ProducerID, h.ProducerEpoch,
		h.LeaderEpoch, h.Transactional(), h.Control(), horizon, pos, timestampType(h), h.MaxTimestamp, h.Size(), h.Magic, h.Codec(), h.CRC, valid)
	return err
}

func timestampType(h *batch.Header) string {
	if h.LogAppendTime() {
		return "LogAppendTime"
	}
	return "CreateTime"
}

func dumpRecords(out *bufio.Writer, h *batch.Header, raw []byte, limits batch.Limits) error {
	for r, err := range batch.Records(raw, limits) {
		if err != nil {
			fmt.Fprintf(out, "| records are damaged: %v\n", err)
			return fmt.Errorf("records of the batch at offset %d: %w", h.BaseOffset, err)
		}
		sequence := int32(-1)
		if h.BaseSequence >= 0 {
			sequence = batch.AddSequence(h.BaseSequence, r.OffsetDelta)
		}
		var keys []string
		for _, rh := range r.Headers {
			keys = append(keys, rh.Key)
		}
		fmt.Fprintf(out, "| offset: %d %s: %d keySize: %d valueSize: %d sequence: %d headerKeys: [%s]", h.BaseOffset+int64(r.OffsetDelta),
			timestampType(h), r.Timestamp, fieldSize(r.Key), fieldSize(r.Value), sequence, strings.Join(keys, ","))
		if r.Key != nil {
			fmt.Fprintf(out, " key: %s", r.Key)
		}
		if r.Value != nil {
			fmt.Fprintf(out, " payload: %s", r.Value)
		}
		out.WriteByte('\n')
	}
	return nil
}

// fieldSize is the length of a key or value, -1 for null.
func fieldSize(b []byte) int {
	if b == nil {
		return -1
	}
	return len(b)
}

func dumpIndex(out *bufio.Writer, x *Index) {
	m := &x.Meta
	fmt.Fprintf(out, "segment: %s baseOffset: %d lastOffset: %d leaderEpoch: %d lastStableOffset: %d records: %d\n", m.TP, m.Base, m.Last, m.Epoch, m.LastStable, m.Records)
	fmt.Fprintf(out, "log size: %d crc: %08x timestamps: %s to %s\n", m.LogSize, m.LogCRC, stamp(m.MinTimestamp), stamp(m.MaxTimestamp))
	for i, s := range x.spans {
		fmt.Fprintf(out, "span: %d position: %d baseOffset: %d maxTimestamp: %d headCrc: %08x\n", i, s.Pos, s.Base, s.MaxTimestamp, s.HeadCRC)
	}
	for _, t := range x.aborted {
		fmt.Fprintf(out, "aborted: producerId: %d firstOffset: %d lastOffset: %d lastStableOffset: %d\n", t.ProducerID, t.First, t.Last, t.LastStable)
	}
	for _, p := range x.Producers {
		fmt.Fprintf(out, "producer: producerId: %d producerEpoch: %d coordinatorEpoch: %d lastTimestamp: %d currentTxnFirstOffset: %d\n", p.ProducerID, p.Epoch, p.CoordinatorEpoch, p.LastTimestamp, p.TxnFirstOffset)
		for _, b := range p.Batches {
			fmt.Fprintf(out, "| firstSequence: %d lastSequence: %d firstOffset: %d lastOffset: %d timestamp: %d\n", b.BaseSequence, b.LastSequence, b.BaseOffset, b.LastOffset, b.Timestamp)
		}
	}
	for _, e := range x.Epochs {
		fmt.Fprintf(out, "epoch: %d startOffset: %d\n", e.Epoch, e.Start)
	}
}

func stamp(ms int64) string {
	if ms < 0 {
		return "none"
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

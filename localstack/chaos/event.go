// Package chaos runs a cluster of real agents under real faults, with producers and group consumers
// of two client libraries, and checks afterwards what each of them saw. `make chaos` starts it;
// `go test` only tests the checker.
//
// This file is what was seen: a log of events, on disk and as the checker reads it.
package chaos

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Kind is what an event tells.
type Kind uint8

// The kinds of events. All of one client come in the order in which it saw them.
const (
	Acked     Kind = iota + 1 // a producer was told that a record is at an offset
	Unknown                   // a producer gave a record up: it may be in the log or not
	Assigned                  // a group's member was given a partition, and is about to ask where to begin
	Read                      // a consumer saw a record
	Above                     // as Read, at or above the high watermark that came with it
	Garbled                   // a consumer saw a record that nobody has sent
	Committed                 // a group's commit was acknowledged
	Asked                     // somebody asks for a group's committed offsets; Seq tells the questions apart
	Told                      // the answer to it, for one partition
	Final                     // the record at an offset when all is over; in order, from 0 on
	End                       // the partition's high watermark when all is over
)

// The libraries.
const (
	Franz      uint8 = iota // franz-go
	Librdkafka              // by way of confluent-kafka of Python
	libraries
)

var libraryNames = [libraries]string{"franz-go", "librdkafka"}

// Event is one thing that a client saw. Fields that a kind does not have are 0.
type Event struct {
	Kind      Kind
	Library   uint8
	Who       uint16 // the consumer, or for commits the group
	Partition int32
	Offset    int64
	Record    Record
	Sum       uint32 // of key and value
}

// Record tells a record from all others: Seq counts those of a producer's client and a partition, which
// share a key, from 0.
type Record struct {
	Client uint32
	Seq    uint32
}

// Sum is the checksum by which contents are compared.
func Sum(key, value []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(key), crc32.IEEETable, value)
}

// valueHead is the length of what every value begins with: client, partition and sequence, big-endian.
const valueHead = 12

// recordKey is the key of all records of a client in a partition.
func recordKey(client uint32, partition int32) []byte {
	return fmt.Appendf(nil, "c%d-p%d", client, partition)
}

// recordValue is a value with a filler behind its head.
func recordValue(r Record, partition int32, filler []byte) []byte {
	b := make([]byte, valueHead, valueHead+len(filler))
	binary.BigEndian.PutUint32(b, r.Client)
	binary.BigEndian.PutUint32(b[4:], uint32(partition))
	binary.BigEndian.PutUint32(b[8:], r.Seq)
	return append(b, filler...)
}

var errGarbled = errors.New("a record that nobody has sent")

// parseRecord tells which record of the partition this is.
func parseRecord(partition int32, key, value []byte) (Record, error) {
	if len(value) < valueHead {
		return Record{}, fmt.Errorf("%w: a value of %d bytes", errGarbled, len(value))
	}
	r := Record{Client: binary.BigEndian.Uint32(value), Seq: binary.BigEndian.Uint32(value[8:])}
	if to := int32(binary.BigEndian.Uint32(value[4:])); to != partition || string(key) != string(recordKey(r.Client, to)) {
		return r, fmt.Errorf("%w: key %q, sent to partition %d", errGarbled, key, to)
	}
	return r, nil
}

const eventSize = 28

// encode appends the event as it is in a history: 28 bytes, big-endian.
func (e Event) encode(b []byte) []byte {
	b = append(b, byte(e.Kind), e.Library)
	b = binary.BigEndian.AppendUint16(b, e.Who)
	b = binary.BigEndian.AppendUint32(b, uint32(e.Partition))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Offset))
	b = binary.BigEndian.AppendUint32(b, e.Record.Client)
	b = binary.BigEndian.AppendUint32(b, e.Record.Seq)
	return binary.BigEndian.AppendUint32(b, e.Sum)
}

func decode(b []byte) Event {
	return Event{Kind: Kind(b[0]), Library: b[1], Who: binary.BigEndian.Uint16(b[2:]), Partition: int32(binary.BigEndian.Uint32(b[4:])),
		Offset: int64(binary.BigEndian.Uint64(b[8:])), Record: Record{binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint32(b[20:])}, Sum: binary.BigEndian.Uint32(b[24:])}
}

// EachEvent calls f with the events of a history; one that is cut at its end is read as far as it goes.
func EachEvent(r io.Reader, f func(Event) error) error {
	in, b := bufio.NewReaderSize(r, 1<<20), make([]byte, eventSize)
	for {
		if _, err := io.ReadFull(in, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := f(decode(b)); err != nil {
			return err
		}
	}
}

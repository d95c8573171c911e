package storage_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// inRoom puts b behind head bytes of a room, as a request has it, and returns it there.
func inRoom(t testing.TB, l *storage.Log, head int, b []byte) (*storage.Room, []byte) {
	t.Helper()
	room := l.Room(head+len(b)+3, head, len(b))
	if room == nil {
		t.Fatalf("no room for %d bytes", len(b))
	}
	if len(room.B) != head+len(b)+3 {
		t.Fatalf("%d bytes for a request of %d", len(room.B), head+len(b)+3)
	}
	for i := range room.B {
		room.B[i] = 0xee
	}
	copy(room.B[head:], b)
	return room, room.B[head:][:len(b)]
}

// maybeRoom puts b behind head bytes of a room, if head is not 0 and there is one.
func maybeRoom(l *storage.Log, b []byte, head int) (*storage.Room, []byte) {
	if head == 0 {
		return nil, b
	}
	room := l.Room(head+len(b), head, len(b))
	if room == nil {
		return nil, b
	}
	copy(room.B[head:], b)
	return room, room.B[head:]
}

// appendIn appends a batch that lies in a room, and waits.
func appendIn(t testing.TB, l *storage.Log, room *storage.Room, b []byte) storage.AppendResult {
	t.Helper()
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan storage.AppendResult, 1)
	err = l.Append(context.Background(), b, h, storage.AppendOptions{Epoch: crashEpoch, Room: room}, func(r storage.AppendResult) { got <- r })
	if err != nil {
		t.Fatal(err)
	}
	return <-got
}

// What is in a room is written and read as it was, wherever in a block it comes to
// lie, and stays where it is when that is what was expected.
func TestRoom(t *testing.T) {
	mem := newCrashFS(t)
	o := storage.Options{FS: mem, Dir: crashDir, WALSize: 8 << 20}
	w := openWorld(t, o, 1)
	l, err := w.store.Create(w.parts[0].tp, oneSegment, 0)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	var want []byte
	sent := func(r storage.AppendResult, b []byte) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		batch.Stamp(b, r.Base, crashEpoch)
		want = append(want, b...)
	}
	stayed, moved := 0, 0
	for i := range 60 {
		b := makeBatch(1+i%3, 300<<10+rng.IntN(2*vfs.BlockSize), uint64(i))
		room, in := inRoom(t, l, 1+rng.IntN(2*vfs.BlockSize), b)
		if i%3 > 0 { // something else comes first: a small batch makes a gap that the room is too small for
			other := makeBatch(1, []int{0, 300 << 10, 50 << 10}[i%3]+rng.IntN(vfs.BlockSize), uint64(1000+i))
			sent(appendIn(t, l, nil, bytes.Clone(other)), other)
		}
		sent(appendIn(t, l, room, in), b)
		switch same := bytes.Equal(in, b); {
		case same && i%3 == 0:
			stayed++
		case !same && i%3 == 1:
			moved++
		}
		room.Release()
	}
	if stayed != 20 || moved < 15 {
		t.Errorf("of 20 and 20 batches %d stayed in place, %d were moved", stayed, moved)
	}
	if got := readAll(t, l); !bytes.Equal(got, want) {
		t.Fatal("what is read is not what was sent")
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	// In the file itself: a restart would write the parts of blocks again that the ring has.
	whole := len(want) &^ (vfs.BlockSize - 1)
	for _, name := range logFiles(t, mem, w.parts[0], ".log") {
		if got := readBytes(t, mem, name); len(got) < whole || !bytes.Equal(got[:whole], want[:whole]) {
			t.Errorf("%s of %d bytes is not what was sent", name, len(got))
		}
	}
	if w.store, err = storage.Open(o); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, w.store.Log(w.parts[0].tp)); !bytes.Equal(got, want) {
		t.Fatal("after a restart, what is read is not what was sent")
	}
}

// No room for what would be copied anyway, none while slow senders hold the share
// of all rooms, and the store lives on when a request never comes.
func TestRoomLimits(t *testing.T) {
	const size = 300 << 10
	o := storage.Options{FS: newCrashFS(t), Dir: crashDir, WALSize: 8 << 20, TailBytes: 320 << 20}
	w := openWorld(t, o, 1)
	l, err := w.store.Create(w.parts[0].tp, oneSegment, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range [][3]int{{size, 0, 200 << 10}, {size, -1, size}, {size, 1, size}, {5 << 20, 0, 5 << 20}, {size, size, size}} {
		if r := l.Room(q[0], q[1], q[2]); r != nil {
			t.Errorf("room for %v", q)
		}
	}
	var rooms []*storage.Room
	for {
		r := l.Room(size+50, 50, size)
		if r == nil {
			break
		}
		rooms = append(rooms, r)
	}
	if n := len(rooms); n != 5 { // a slow sender holds a chunk of 4 MiB
		t.Errorf("%d rooms in a sixteenth of 320 MiB", n)
	}
	b := makeBatch(1, size-batch.HeaderSize, 1)
	if r := appendIn(t, l, nil, bytes.Clone(b)); r.Err != nil { // others go on
		t.Fatal(r.Err)
	}
	room := rooms[3]
	in := room.B[50:][:len(b)]
	copy(in, b)
	other := make([]byte, len(b)) // a batch that is not in the room it comes with
	copy(other, b)
	if r := appendIn(t, l, room, other); r.Err != nil {
		t.Fatal(r.Err)
	}
	for _, r := range rooms {
		r.Release()
	}
	if r := l.Room(size+50, 50, size); r == nil {
		t.Error("no room when all were released")
	} else {
		r.Release()
	}
	batch.Stamp(b, 0, crashEpoch)
	want := bytes.Clone(b)
	batch.Stamp(b, 1, crashEpoch)
	if got := readAll(t, l); !bytes.Equal(got, append(want, b...)) {
		t.Fatal("what is read is not what was sent")
	}
}

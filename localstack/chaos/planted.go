package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// plantedPartitions and plantedRecords are the size of a history that faults are planted into.
const (
	plantedPartitions = 3
	plantedRecords    = 60 // of each partition
)

// goodHistory is what clients see of a cluster that does all right: two producers, one of which gives a record
// up that is in the log and one that is not, a consumer of each library that commits, and questions
// for what is committed.
func goodHistory() (events []Event) {
	r := rand.New(rand.NewPCG(1, 2))
	seqs := map[laneID]uint32{}
	var finals []Event
	for p := range int32(plantedPartitions) {
		for offset := range int64(plantedRecords) {
			client := uint32(r.IntN(2))
			id := laneID{client, p}
			rec := Record{client, seqs[id]}
			seqs[id]++
			e := Event{Partition: p, Offset: offset, Record: rec, Sum: r.Uint32() | 1}
			ack := e
			if ack.Kind = Acked; offset == 17 {
				ack.Kind, ack.Offset, ack.Sum = Unknown, 0, 0
			}
			events = append(events, ack)
			e.Kind = Final
			finals = append(finals, e)
		}
		events = append(events, Event{Kind: Unknown, Partition: p, Record: Record{1, seqs[laneID{1, p}]}})
	}
	for lib := range libraries {
		events = append(events, goodReader(lib, finals)...)
	}
	events = append(events, finals...)
	for p := range int32(plantedPartitions) {
		events = append(events, Event{Kind: End, Partition: p, Offset: plantedRecords})
	}
	return events
}

// goodReader is a consumer that reads all, commits now and then, and is given each partition twice.
func goodReader(lib uint8, finals []Event) (events []Event) {
	for i, e := range finals {
		if e.Offset == 0 || e.Offset == 40 {
			events = append(events, Event{Kind: Assigned, Library: lib, Partition: e.Partition})
		}
		e.Kind, e.Library = Read, lib
		events = append(events, e)
		if e.Offset%10 == 9 {
			id := Record{Seq: uint32(i)}
			events = append(events, Event{Kind: Committed, Who: uint16(lib), Partition: e.Partition, Offset: e.Offset + 1},
				Event{Kind: Asked, Who: uint16(lib), Record: id}, Event{Kind: Told, Who: uint16(lib), Partition: e.Partition, Offset: e.Offset + 1, Record: id})
		}
	}
	return events
}

// planted is a fault that the checker is to find in a history that was good.
type planted struct {
	what  string
	finds Violation
	plant func(events []Event) []Event
}

// at finds an event.
func at(events []Event, kind Kind, partition int32, offset int64) int {
	return slices.IndexFunc(events, func(e Event) bool { return e.Kind == kind && e.Partition == partition && e.Offset == offset })
}

// twins are two records of one key in a partition, as they are in the log.
func twins(events []Event, partition int32) (first, second int) {
	first = at(events, Final, partition, 20)
	for second = first + 1; events[second].Record.Client != events[first].Record.Client; second++ {
	}
	return first, second
}

// put puts another record into the first event of a kind at an offset.
func put(events []Event, kind Kind, partition int32, offset int64, rec Record, sum uint32) {
	i := at(events, kind, partition, offset)
	events[i].Record, events[i].Sum = rec, sum
}

// everywhere puts another record at an offset for all who look but the producers.
func everywhere(events []Event, partition int32, offset int64, rec Record, sum uint32) {
	for i, e := range events {
		if (e.Kind == Read || e.Kind == Final) && e.Partition == partition && e.Offset == offset {
			events[i].Record, events[i].Sum = rec, sum
		}
	}
}

// allPlanted are the faults that each run shows to the checker before it begins.
func allPlanted() []planted { return append(plantedInLog(), plantedAtConsumers()...) }

// plantedInLog are those of records and acknowledgements.
func plantedInLog() []planted {
	return []planted{
		{"a record that was acknowledged is not in the log", Lost, func(ev []Event) []Event {
			other := Record{Client: 9}
			everywhere(ev, 1, 30, other, 77)
			return ev
		}},
		{"the log ends before an acknowledged record", Lost, func(ev []Event) []Event {
			return slices.DeleteFunc(ev, func(e Event) bool {
				return e.Partition == 2 && e.Offset == plantedRecords-1 && (e.Kind == Read || e.Kind == Final)
			})
		}},
		{"a record is in the log twice", Duplicated, func(ev []Event) []Event {
			first := ev[at(ev, Final, 0, 20)]
			everywhere(ev, 0, 50, first.Record, first.Sum)
			return ev
		}},
		{"two acknowledgements of one record name two offsets", Duplicated, func(ev []Event) []Event {
			e := ev[at(ev, Acked, 0, 20)]
			e.Offset = 21
			return append([]Event{e}, ev...)
		}},
		{"two records of a key have changed places", Reordered, func(ev []Event) []Event {
			i, j := twins(ev, 1)
			a, b := ev[i], ev[j]
			everywhere(ev, 1, a.Offset, b.Record, b.Sum)
			everywhere(ev, 1, b.Offset, a.Record, a.Sum)
			return ev
		}},
		{"a record is not where its acknowledgement said", WrongOffset, func(ev []Event) []Event {
			ev[at(ev, Acked, 1, 33)].Offset = 17 // whose own is unknown
			return ev
		}},
		{"an offset is not in the log", Gap, func(ev []Event) []Event {
			return slices.Delete(ev, at(ev, Final, 1, 17), at(ev, Final, 1, 17)+1)
		}},
	}
}

// plantedAtConsumers are those of what consumers saw, and of what they committed.
func plantedAtConsumers() []planted {
	return []planted{
		{"an offset has two values: a consumer saw another record", TwoValues, func(ev []Event) []Event {
			put(ev, Read, 2, 12, Record{Client: 1, Seq: 1}, 99)
			return ev
		}},
		{"a consumer saw a record that was replaced", Dirty, func(ev []Event) []Event {
			put(ev, Read, 2, 17, Record{Client: 9}, 99) // an offset that nobody was told
			return ev
		}},
		{"a consumer saw a record behind the end of the log", Dirty, func(ev []Event) []Event {
			return slices.Insert(ev, at(ev, Final, 0, 0), Event{Kind: Read, Partition: plantedPartitions - 1, Offset: plantedRecords, Record: Record{Client: 9}, Sum: 5})
		}},
		{"a consumer saw a record above the high watermark", Dirty, func(ev []Event) []Event {
			ev[at(ev, Read, 0, 33)].Kind = Above
			return ev
		}},
		{"a consumer saw what nobody has sent", GarbledRead, func(ev []Event) []Event {
			ev[at(ev, Read, 0, 33)].Kind = Garbled
			return ev
		}},
		{"a consumer was shown an offset twice", Disordered, func(ev []Event) []Event {
			i := at(ev, Read, 1, 25)
			return slices.Insert(ev, i, ev[i])
		}},
		{"a consumer missed an offset", Disordered, func(ev []Event) []Event {
			return slices.Delete(ev, at(ev, Read, 1, 25), at(ev, Read, 1, 25)+1)
		}},
		{"the consumers of a library missed an offset between two assignments", Unread, func(ev []Event) []Event {
			return slices.Delete(ev, at(ev, Read, 1, 39), at(ev, Read, 1, 39)+1)
		}},
		{"a committed offset is gone", LostCommit, func(ev []Event) []Event {
			ev[at(ev, Told, 1, 30)].Offset = 20
			return ev
		}},
		{"a committed offset that was told goes back", LostCommit, func(ev []Event) []Event {
			ev[at(ev, Told, 1, 30)].Offset = 45 // not what the next one is told
			return ev
		}},
		{"a consumer begins before its group's committed offset", LostCommit, func(ev []Event) []Event {
			i := at(ev, Read, 2, 40)
			again := ev[i-12 : i] // what was read before its commit, and the commit itself
			var reads []Event
			for _, e := range again {
				if e.Kind == Read {
					reads = append(reads, e)
				}
			}
			return slices.Insert(ev, i, reads...)
		}},
	}
}

// check judges a history.
func check(events []Event) *Verdict {
	c := NewChecker(plantedPartitions)
	for _, e := range events {
		c.Add(e)
	}
	return c.Verdict()
}

// checkPlanted plants each fault into a good history; it tells one line for each that was found.
func checkPlanted() (lines []string, err error) {
	if v := check(goodHistory()); !v.OK() {
		return nil, fmt.Errorf("the checker finds fault with a good history: %v", v.Examples)
	}
	for _, p := range allPlanted() {
		v := check(p.plant(goodHistory()))
		if v.Broken[p.finds] == 0 {
			return lines, fmt.Errorf("planted and not found as %q: %s: %v", p.finds, p.what, v.Examples)
		}
		lines = append(lines, fmt.Sprintf("%s: %s", p.finds, p.what))
	}
	return lines, nil
}

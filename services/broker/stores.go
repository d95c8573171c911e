package broker

import (
	"errors"
	"fmt"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

// LocalStore is the store of class local of an agent of a cluster, whose other store is of
// class object. Its methods may be called from several goroutines.
type LocalStore interface {
	// Open returns the store. It is opened by the first call: an agent without topics of
	// the class has no ring, and spends no memory on it.
	Open() (*storage.Store, error)
	// Opened returns the store, or nil if it was not opened.
	Opened() *storage.Store
}

// stores are those that are open, the one of Options.Store first.
func (b *Broker) stores() []*storage.Store {
	out := []*storage.Store{b.opts.Store}
	if b.opts.Local != nil {
		if s := b.opts.Local.Opened(); s != nil {
			out = append(out, s)
		}
	}
	return out
}

// storeOf returns the store of a durability class.
func (b *Broker) storeOf(class metadata.Durability) (*storage.Store, error) {
	if !b.onDisk(class) {
		return b.opts.Store, nil
	}
	s, err := b.opts.Local.Open()
	if err != nil {
		return nil, fmt.Errorf("open the store of class %s: %w", class, err)
	}
	return s, nil
}

// onDisk tells whether partitions of the class belong to this agent's disk, while
// other partitions may go to any agent.
func (b *Broker) onDisk(class metadata.Durability) bool {
	return b.opts.Local != nil && class == metadata.DurabilityLocal
}

// remove removes a partition's bytes from the disk.
func (b *Broker) remove(tp ids.TopicPartition) error {
	var errs []error
	for _, s := range b.stores() {
		errs = append(errs, s.Remove(tp))
	}
	return errors.Join(errs...)
}

// failed returns the error of a store that takes no more appends, or nil.
func (b *Broker) failed() error {
	for _, s := range b.stores() {
		if err := s.Err(); err != nil {
			return err
		}
	}
	return nil
}

// errNotThisDisk: the disk lacks what it had of a partition of class local.
var errNotThisDisk = errors.New("this disk has lost what it had of the partition")

// openLog opens the log of a partition of class local: the one that is on this disk, or a new one
// that begins behind what is tiered. A disk that knows less than the segment index, or lacks what it had
// when it was accepted, is refused: appending there would give offsets a second time.
func (p *Partition) openLog(t *Topic, l lead.Lead, rows []tiering.Segment, begin storage.Begin) error {
	tiered := tieredEnd(rows)
	log := p.store.Log(l.TP)
	switch {
	case log != nil && log.End() < tiered:
		return fmt.Errorf("%w: it ends at offset %d here but at %d in the bucket", errNotThisDisk, log.End(), tiered)
	case log == nil && l.Kept && tiered > l.End:
		return fmt.Errorf("%w: nothing is there, and in the bucket it ends at %d", errNotThisDisk, tiered)
	}
	var err error
	if log == nil {
		p.log, err = p.store.CreateAt(l.TP, logConfig(t), begin)
	} else {
		start := max(l.LogStart, p.b.opts.Meta.LogStart(l.TP))
		p.log, err = p.store.Create(l.TP, logConfig(t), min(start, log.End()))
	}
	return err
}

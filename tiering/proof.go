package tiering

import (
	"context"
	"fmt"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// proof is what the bucket says of one partition's objects.
type proof struct {
	topic TopicState
	start LogStart
	// rewrites are the indexed objects of a generation above 0, which can
	// cover others.
	rewrites []object
}

// prove collects the proofs of one partition. A rewrite counts only when its
// bytes are whole as far as its footer can tell, and readers can find it.
func (s *sweep) prove(ctx context.Context, tp ids.TopicPartition, objects []object, indexed map[SegmentKey]bool) (*proof, error) {
	p := &proof{}
	var err error
	if p.topic, err = s.Proofs.Topic(ctx, tp.Topic); err != nil {
		return nil, fmt.Errorf("prove topic %s: %w", tp.Topic, err)
	}
	if p.start, err = s.Proofs.LogStart(ctx, tp); err != nil {
		return nil, fmt.Errorf("prove log start of %s: %w", tp, err)
	}
	for _, ob := range objects {
		if ob.Generation == 0 || !indexed[ob.SegmentKey] || !outranksAny(ob, objects) {
			continue
		}
		if _, err := readRow(ctx, s.Bucket, ob.info); err != nil {
			s.failed(ob.info.Key, ob.info.Size, fmt.Errorf("check rewrite: %w", err))
			continue
		}
		p.rewrites = append(p.rewrites, ob)
	}
	return p, nil
}

// outranksAny tells whether a rewrite can cover something: else its footer need
// not be read with every sweep.
func outranksAny(w object, objects []object) bool {
	for _, ob := range objects {
		if w.Generation > ob.Generation && w.Base <= ob.Last && w.Last >= ob.Base {
			return true
		}
	}
	return false
}

// verdict says why an object is dead and since when; "" when nothing proves it.
func (p *proof) verdict(ob object) (SweepAction, time.Time) {
	switch {
	case p.topic.Deleted:
		return SweepDeleteTopic, p.topic.DeletedAt
	case ob.Last < p.start.Offset:
		return SweepDeleteLogStart, p.start.Since
	}
	var over ranges
	var since time.Time
	for _, w := range p.rewrites {
		if w.Generation > ob.Generation && w.Base <= ob.Last && w.Last >= ob.Base {
			over.add(w.Base, w.Last)
			if w.info.Modified.After(since) {
				since = w.info.Modified
			}
		}
	}
	if len(over) > 0 && over.hold(ob.Base, ob.Last) {
		return SweepDeleteCovered, since
	}
	return "", time.Time{}
}

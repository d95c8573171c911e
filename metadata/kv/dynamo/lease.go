package dynamo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// Attributes of a lease's item. It stays when the lease is given up, so that
// its counter goes on.
const (
	attrOwner   = "o" // absent: free
	attrCounter = "c" // grows with every change
	attrTTL     = "d" // milliseconds
)

// lease is what a lease's item says; the zero value is one never taken.
type lease struct {
	owner   string
	counter uint64
	ttl     time.Duration
}

func decodeLease(a attrs) lease {
	var l lease
	if o, ok := a[attrOwner].(*types.AttributeValueMemberS); ok {
		l.owner = o.Value
	}
	l.counter, _ = numberOf(a, attrCounter)
	ms, _ := numberOf(a, attrTTL)
	l.ttl = time.Duration(ms) * time.Millisecond
	return l
}

// sightings remembers when this process first saw each lease as it is. No clock
// is compared with another machine's: a lease is dead when it has been seen
// unchanged for as long as it lasts.
type sightings struct {
	mu   sync.Mutex
	seen map[string]sighting
}

type sighting struct {
	lease
	since time.Time // monotonic
}

func newSightings() *sightings { return &sightings{seen: map[string]sighting{}} }

// dead notes what is known of a lease now and tells whether it has expired.
func (s *sightings) dead(key string, l lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.seen[key]
	if !ok || old.lease != l {
		s.seen[key] = sighting{lease: l, since: time.Now()}
		return false
	}
	return time.Since(old.since) >= l.ttl
}

// Acquire implements kv.Leases. A process that sees a dead lease for the first
// time has to see it for its ttl before it can take it.
func (s *Store) Acquire(ctx context.Context, key, owner string, ttl time.Duration) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	if err := kv.CheckKey(key); err != nil {
		return err
	}
	if owner == "" || ttl <= 0 {
		return fmt.Errorf("%w: lease of %q needs an owner and a positive ttl", kv.ErrInvalid, key)
	}
	dead := lease{}
	for {
		held, err := s.takeLease(ctx, key, lease{owner: owner, ttl: ttl}, dead.counter)
		if err != nil {
			return fmt.Errorf("acquire lease %q: %w", key, err)
		}
		if held.owner == owner {
			s.leases.dead(key, held) // seen alive
			return nil
		}
		if held == dead || !s.leases.dead(key, held) {
			return fmt.Errorf("acquire lease %q: %w: held by %s", key, kv.ErrLeaseLost, held.owner)
		}
		dead = held
	}
}

// takeLease takes or renews a lease that is free, want.owner's, or still at the
// counter at which it was found dead. It returns the lease as it is then. A
// repetition after a lost answer finds the lease to be its own.
func (s *Store) takeLease(ctx context.Context, key string, want lease, deadAt uint64) (lease, error) {
	cond := "attribute_not_exists(o) OR o = :o"
	values := attrs{
		":o": text(want.owner), ":d": number(uint64((want.ttl + time.Millisecond - 1) / time.Millisecond)),
		":zero": number(0), ":one": number(1),
	}
	if deadAt > 0 {
		cond, values[":dead"] = cond+" OR c = :dead", number(deadAt)
	}
	var now attrs
	err := s.do(ctx, s.newWriteTries(), func(ctx context.Context) error {
		out, err := s.api.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: &s.lay.table, Key: s.lay.leaseKey(key), ConditionExpression: &cond,
			UpdateExpression:          aws.String("SET o = :o, d = :d, c = if_not_exists(c, :zero) + :one"),
			ExpressionAttributeValues: values, ReturnValues: types.ReturnValueAllNew,
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		})
		if err != nil {
			return err
		}
		now = out.Attributes
		return nil
	})
	var held *types.ConditionalCheckFailedException
	if errors.As(err, &held) {
		return decodeLease(held.Item), nil
	}
	return decodeLease(now), err
}

// Release implements kv.Leases. Releasing a lease one does not have is
// ErrLeaseLost.
func (s *Store) Release(ctx context.Context, key, owner string) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	l, err := s.readLease(ctx, key)
	if err != nil {
		return fmt.Errorf("release lease %q: %w", key, err)
	}
	if l.owner != owner || s.leases.dead(key, l) {
		return fmt.Errorf("release lease %q: %w", key, kv.ErrLeaseLost)
	}
	err = s.do(ctx, s.newWriteTries(), func(ctx context.Context) error {
		_, err := s.api.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: &s.lay.table, Key: s.lay.leaseKey(key), ConditionExpression: aws.String("o = :o AND c = :c"),
			UpdateExpression:                    aws.String("SET c = c + :one REMOVE o"),
			ExpressionAttributeValues:           attrs{":o": text(owner), ":c": number(l.counter), ":one": number(1)},
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		})
		return err
	})
	var other *types.ConditionalCheckFailedException
	if errors.As(err, &other) {
		if now := decodeLease(other.Item); now.owner == "" && now.counter == l.counter+1 {
			return nil // by an attempt whose answer was lost
		}
		return fmt.Errorf("release lease %q: %w", key, kv.ErrLeaseLost)
	}
	if err != nil {
		return fmt.Errorf("release lease %q: %w", key, err)
	}
	return nil
}

// Holder implements kv.Leases.
func (s *Store) Holder(ctx context.Context, key string) (string, uint64, error) {
	if err := s.usable(ctx); err != nil {
		return "", 0, err
	}
	l, err := s.readLease(ctx, key)
	if err != nil {
		return "", 0, fmt.Errorf("holder of lease %q: %w", key, err)
	}
	if l.owner == "" || s.leases.dead(key, l) {
		return "", l.counter, nil
	}
	return l.owner, l.counter, nil
}

func (s *Store) readLease(ctx context.Context, key string) (lease, error) {
	var l lease
	err := s.do(ctx, s.newTries(), func(ctx context.Context) error {
		out, err := s.api.GetItem(ctx, &dynamodb.GetItemInput{
			TableName: &s.lay.table, Key: s.lay.leaseKey(key), ConsistentRead: aws.Bool(true),
		})
		if err != nil {
			return err
		}
		l = decodeLease(out.Item)
		return nil
	})
	return l, err
}

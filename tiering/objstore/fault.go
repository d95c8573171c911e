package objstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// FaultKind says what a Fault does to a request.
type FaultKind uint8

const (
	// FaultThrottle answers ErrThrottled; nothing is done.
	FaultThrottle FaultKind = iota + 1
	// FaultLatency waits for Rule.Delay first, or until ctx ends.
	FaultLatency
	// FaultHang waits until ctx ends. Writes then answer ErrUnknown, nothing is done.
	FaultHang
	// FaultUnknownBefore answers ErrUnknown; nothing was done.
	FaultUnknownBefore
	// FaultUnknownAfter carries the request out and answers ErrUnknown.
	FaultUnknownAfter
	// FaultCutBody ends a get's body with ErrUnknown at a random place before its end.
	FaultCutBody
	// FaultWrongBytes flips one bit at a random place of a get's body.
	FaultWrongBytes
	// FaultSwallowPut answers success to a put or delete and does nothing.
	FaultSwallowPut
)

// Method is a bucket method, for the rules of a Fault.
type Method string

// The methods. MethodAny stands for all.
const (
	MethodAny        Method = ""
	MethodGet        Method = "get"
	MethodHead       Method = "head"
	MethodList       Method = "list"
	MethodPut        Method = "put"
	MethodDelete     Method = "delete"
	MethodDeleteMany Method = "delete_many"
)

// FaultRule says which requests go wrong and how. The first rule that fires
// for a request decides, except that FaultLatency lets later rules fire too.
type FaultRule struct {
	Method Method
	Prefix string // of the key; for lists, of the prefix; for delete_many, of any key
	Kind   FaultKind
	// Probability, 0 to 1, that a matching request is hit. Ignored when Nth is set.
	Probability float64
	// Nth hits the Nth matching request alone, counted from 1.
	Nth int64
	// Limit, if above 0, ends the rule after so many hits.
	Limit int64
	Delay time.Duration // of FaultLatency
}

// RuleID names an added rule.
type RuleID int

type faultRule struct {
	FaultRule
	seen, hits int64
	off        bool
}

// Fault is a bucket that goes wrong as told, for tests. It is safe for
// concurrent use; with one requester the same seed gives the same faults.
type Fault struct {
	b Bucket

	mu    sync.Mutex
	rng   *rand.Rand
	rules []*faultRule
	calls map[Method]int64
}

// NewFault returns b without faults yet.
func NewFault(b Bucket, seed uint64) *Fault {
	return &Fault{b: b, rng: rand.New(rand.NewPCG(seed, 0x6f626a)), calls: make(map[Method]int64)}
}

// Add adds a rule behind those there are.
func (f *Fault) Add(r FaultRule) RuleID {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &faultRule{FaultRule: r})
	return RuleID(len(f.rules) - 1)
}

// Remove ends a rule; its hits can still be asked.
func (f *Fault) Remove(id RuleID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules[id].off = true
}

// Clear ends all rules.
func (f *Fault) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		r.off = true
	}
}

// Hits returns how many requests a rule has hit.
func (f *Fault) Hits(id RuleID) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rules[id].hits
}

// Calls returns how many requests of the method were made; MethodAny sums all.
func (f *Fault) Calls(m Method) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m != MethodAny {
		return f.calls[m]
	}
	var n int64
	for _, c := range f.calls {
		n += c
	}
	return n
}

// verdict is what happens to one request.
type verdict struct {
	kind  FaultKind // 0: nothing
	delay time.Duration
	at    float64 // place of a cut or a wrong bit, as a part of the body
	bit   uint8
}

func (f *Fault) judge(m Method, keys ...string) verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[m]++
	v := verdict{at: f.rng.Float64(), bit: uint8(1) << f.rng.IntN(8)}
	for _, r := range f.rules {
		if r.off || !r.matches(m, keys) {
			continue
		}
		r.seen++
		hit := r.Nth > 0 && r.seen == r.Nth || r.Nth == 0 && f.rng.Float64() < r.Probability
		if !hit || r.Limit > 0 && r.hits >= r.Limit {
			continue
		}
		r.hits++
		if r.Kind == FaultLatency {
			v.delay += r.Delay
			continue
		}
		v.kind = r.Kind
		break
	}
	return v
}

// matches keeps kinds away from methods they do not fit.
func (r *faultRule) matches(m Method, keys []string) bool {
	if r.Method != MethodAny && r.Method != m {
		return false
	}
	write := m == MethodPut || m == MethodDelete || m == MethodDeleteMany
	switch r.Kind {
	case FaultCutBody, FaultWrongBytes:
		if m != MethodGet {
			return false
		}
	case FaultSwallowPut, FaultUnknownAfter:
		if !write {
			return false
		}
	}
	for _, k := range keys {
		if strings.HasPrefix(k, r.Prefix) {
			return true
		}
	}
	return r.Prefix == ""
}

// before does what comes before the request; an error is its answer.
func (f *Fault) before(ctx context.Context, m Method, v verdict) error {
	if v.delay > 0 {
		if err := Sleep(ctx, v.delay); err != nil {
			return fmt.Errorf("injected latency of %s: %w: %w", m, ErrUnknown, err)
		}
	}
	switch v.kind {
	case FaultThrottle:
		return fmt.Errorf("injected in %s: %w", m, ErrThrottled)
	case FaultHang:
		<-ctx.Done()
		return fmt.Errorf("injected hang of %s: %w: %w", m, ErrUnknown, ctx.Err())
	case FaultUnknownBefore:
		return fmt.Errorf("injected before %s: %w", m, ErrUnknown)
	}
	return nil
}

func after(m Method, v verdict, err error) error {
	if v.kind == FaultUnknownAfter && err == nil {
		return fmt.Errorf("injected after %s: %w", m, ErrUnknown)
	}
	return err
}

// Get implements Reader.
func (f *Fault) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, ObjectInfo, error) {
	v := f.judge(MethodGet, key)
	if err := f.before(ctx, MethodGet, v); err != nil {
		return nil, ObjectInfo{}, err
	}
	r, info, err := f.b.Get(ctx, key, offset, length)
	if err != nil || v.kind != FaultCutBody && v.kind != FaultWrongBytes {
		return r, info, err
	}
	end, err := ClipRange(info.Size, offset, length)
	if err != nil {
		return r, info, nil
	}
	return &faultyBody{ReadCloser: r, at: int64(v.at * float64(end-offset)), verdict: v}, info, nil
}

type faultyBody struct {
	io.ReadCloser
	pos, at int64
	verdict verdict
}

func (b *faultyBody) Read(p []byte) (int, error) {
	if b.verdict.kind == FaultCutBody {
		if b.pos >= b.at {
			return 0, fmt.Errorf("injected cut at %d: %w: %w", b.at, ErrUnknown, io.ErrUnexpectedEOF)
		}
		p = p[:min(int64(len(p)), b.at-b.pos)]
	}
	n, err := b.ReadCloser.Read(p)
	if i := b.at - b.pos; b.verdict.kind == FaultWrongBytes && i >= 0 && i < int64(n) {
		p[i] ^= b.verdict.bit
	}
	b.pos += int64(n)
	return n, err
}

// Head implements Reader.
func (f *Fault) Head(ctx context.Context, key string) (ObjectInfo, error) {
	if err := f.before(ctx, MethodHead, f.judge(MethodHead, key)); err != nil {
		return ObjectInfo{}, err
	}
	return f.b.Head(ctx, key)
}

// List implements Reader.
func (f *Fault) List(ctx context.Context, prefix, after string, limit int) ([]ObjectInfo, bool, error) {
	if err := f.before(ctx, MethodList, f.judge(MethodList, prefix)); err != nil {
		return nil, false, err
	}
	return f.b.List(ctx, prefix, after, limit)
}

// Put implements Writer.
func (f *Fault) Put(ctx context.Context, key string, body Body, opts PutOptions) (ObjectInfo, error) {
	v := f.judge(MethodPut, key)
	if err := f.before(ctx, MethodPut, v); err != nil {
		return ObjectInfo{}, err
	}
	if v.kind == FaultSwallowPut {
		// The answer of a store that lost it: as of an object elsewhere.
		info, err := NewMem().Put(ctx, key, bytes.NewReader(nil), PutOptions{})
		info.Size = body.Size()
		return info, err
	}
	info, err := f.b.Put(ctx, key, body, opts)
	if err = after(MethodPut, v, err); err != nil {
		return ObjectInfo{}, err
	}
	return info, nil
}

// Delete implements Writer.
func (f *Fault) Delete(ctx context.Context, key string) error {
	v := f.judge(MethodDelete, key)
	if err := f.before(ctx, MethodDelete, v); err != nil || v.kind == FaultSwallowPut {
		return err
	}
	return after(MethodDelete, v, f.b.Delete(ctx, key))
}

// DeleteMany implements Writer.
func (f *Fault) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	v := f.judge(MethodDeleteMany, keys...)
	if err := f.before(ctx, MethodDeleteMany, v); err != nil || v.kind == FaultSwallowPut {
		return nil, err
	}
	failed, err := f.b.DeleteMany(ctx, keys)
	return failed, after(MethodDeleteMany, v, err)
}

var _ Bucket = (*Fault)(nil)

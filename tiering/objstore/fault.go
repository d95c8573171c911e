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

// FaultKind is what a FaultRule does to a request.
type FaultKind uint8

const (
	// FaultThrottle refuses with ErrThrottled; nothing is done (S3: 503).
	FaultThrottle FaultKind = iota + 1
	// FaultDeny refuses with ErrDenied; nothing is done (S3: 403).
	FaultDeny
	// FaultSlow waits for Delay and then lets the request through.
	FaultSlow
	// FaultHang answers only when the context ends: ErrUnknown, not done.
	FaultHang
	// FaultTimeoutBefore answers ErrUnknown; nothing is done.
	FaultTimeoutBefore
	// FaultTimeoutAfter carries the request out and answers ErrUnknown.
	FaultTimeoutAfter
	// FaultCutBody ends the body of a get early with ErrUnknown.
	FaultCutBody
	// FaultWrongBytes flips a bit in every KiB of the body of a get, silently.
	FaultWrongBytes
	// FaultSwallowPut answers a put with success and stores nothing.
	FaultSwallowPut
	faultKinds
)

// String returns the kind's name, as in test output.
func (k FaultKind) String() string {
	names := [...]string{"none", "throttle", "deny", "slow", "hang", "timeout-before", "timeout-after", "cut-body", "wrong-bytes", "swallow-put"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("FaultKind(%d)", k)
}

// FaultRule says which requests get which fault. Of several rules that choose
// a request the first one counts.
type FaultRule struct {
	Kind FaultKind
	// Op is "get", "head", "list", "put", "delete" or "delete_many"; empty
	// means each that the kind can do something to.
	Op string
	// Prefix of the key, of the list's prefix, or of any key of a DeleteMany.
	Prefix string
	// Nth, from 1, is the first matching request to be hit; 0 means 1.
	Nth int
	// Count bounds how many requests the rule hits; 0 means no bound.
	Count int
	// Probability in (0, 1) of a hit; 0 and 1 mean always.
	Probability float64
	// Delay of FaultSlow.
	Delay time.Duration
}

func (r *FaultRule) matches(op string, keys []string) bool {
	if r.Op != "" && r.Op != op {
		return false
	}
	switch r.Kind {
	case FaultCutBody, FaultWrongBytes:
		if op != "get" {
			return false
		}
	case FaultSwallowPut:
		if op != "put" {
			return false
		}
	}
	for _, k := range keys {
		if strings.HasPrefix(k, r.Prefix) {
			return true
		}
	}
	return false
}

type faultState struct {
	FaultRule
	seen, hits int
}

// Fault is a Bucket that does to its requests what its rules say, for tests.
// The same seed and the same order of requests give the same faults. It is
// safe for concurrent use.
type Fault struct {
	b Bucket

	mu     sync.Mutex
	rng    *rand.Rand
	rules  []*faultState
	counts [faultKinds]int64
	calls  map[string]int64
}

// NewFault returns b behind the given rules.
func NewFault(b Bucket, seed uint64, rules ...FaultRule) *Fault {
	f := &Fault{b: b, rng: rand.New(rand.NewPCG(seed, 0)), calls: make(map[string]int64)}
	f.SetRules(rules...)
	return f
}

// SetRules replaces the rules and starts their counting of requests anew.
// Requests under way keep their fault.
func (f *Fault) SetRules(rules ...FaultRule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = f.rules[:0]
	for _, r := range rules {
		f.rules = append(f.rules, &faultState{FaultRule: r})
	}
}

// Injected returns how many faults of the kind were injected since NewFault.
func (f *Fault) Injected(kind FaultKind) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[kind]
}

// TotalInjected returns how many faults were injected since NewFault.
func (f *Fault) TotalInjected() (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.counts {
		n += c
	}
	return n
}

// Calls returns how many requests of the op came in, hit by a fault or not.
func (f *Fault) Calls(op string) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// choose returns the fault of a request, its kind 0 for none, and a number
// for what the kind leaves to chance.
func (f *Fault) choose(op string, keys ...string) (FaultRule, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	for _, s := range f.rules {
		if !s.matches(op, keys) {
			continue
		}
		s.seen++
		if s.seen < s.Nth || s.Count > 0 && s.hits >= s.Count {
			continue
		}
		if s.Probability > 0 && s.Probability < 1 && f.rng.Float64() >= s.Probability {
			continue
		}
		s.hits++
		f.counts[s.Kind]++
		return s.FaultRule, f.rng.Uint64()
	}
	return FaultRule{}, 0
}

// before does what the fault does ahead of the request.
func before(ctx context.Context, r FaultRule) error {
	switch r.Kind {
	case FaultThrottle:
		return fmt.Errorf("injected: %w", ErrThrottled)
	case FaultDeny:
		return fmt.Errorf("injected: %w", ErrDenied)
	case FaultSlow:
		if err := Sleep(ctx, r.Delay); err != nil {
			return fmt.Errorf("injected delay: %w: %w", ErrUnknown, err)
		}
	case FaultHang:
		<-ctx.Done()
		return fmt.Errorf("injected hang: %w: %w", ErrUnknown, ctx.Err())
	case FaultTimeoutBefore:
		return fmt.Errorf("injected timeout: %w", ErrUnknown)
	}
	return nil
}

// after replaces the answer of a request that was carried out.
func after(r FaultRule, err error) error {
	if r.Kind == FaultTimeoutAfter {
		return fmt.Errorf("injected timeout: %w", ErrUnknown)
	}
	return err
}

// Get implements Reader.
func (f *Fault) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, ObjectInfo, error) {
	rule, chance := f.choose("get", key)
	if err := before(ctx, rule); err != nil {
		return nil, ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	r, info, err := f.b.Get(ctx, key, offset, length)
	if err != nil {
		return nil, info, after(rule, err)
	}
	switch rule.Kind {
	case FaultTimeoutAfter:
		_ = r.Close()
		return nil, ObjectInfo{}, fmt.Errorf("get %q: %w", key, after(rule, nil))
	case FaultCutBody:
		end, err := ClipRange(info.Size, offset, length)
		if err != nil {
			_ = r.Close()
			return nil, ObjectInfo{}, err
		}
		left := int64(0)
		if end > offset {
			left = int64(chance % uint64(end-offset))
		}
		r = &cutBody{ReadCloser: r, left: left}
	case FaultWrongBytes:
		r = &wrongBody{ReadCloser: r, at: int64(chance % 8), bit: 1 << (chance >> 32 % 8)}
	}
	return r, info, nil
}

// cutBody ends with ErrUnknown after left bytes.
type cutBody struct {
	io.ReadCloser
	left int64
}

func (c *cutBody) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, fmt.Errorf("injected cut: %w", ErrUnknown)
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// wrongBody flips one bit every KiB, the first at position at.
type wrongBody struct {
	io.ReadCloser
	pos, at int64
	bit     byte
}

func (w *wrongBody) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	for ; w.at < w.pos+int64(n); w.at += 1024 {
		p[w.at-w.pos] ^= w.bit
	}
	w.pos += int64(n)
	return n, err
}

// Head implements Reader.
func (f *Fault) Head(ctx context.Context, key string) (ObjectInfo, error) {
	rule, _ := f.choose("head", key)
	if err := before(ctx, rule); err != nil {
		return ObjectInfo{}, fmt.Errorf("head %q: %w", key, err)
	}
	info, err := f.b.Head(ctx, key)
	return info, after(rule, err)
}

// List implements Reader.
func (f *Fault) List(ctx context.Context, prefix, start string, limit int) ([]ObjectInfo, bool, error) {
	rule, _ := f.choose("list", prefix)
	if err := before(ctx, rule); err != nil {
		return nil, false, fmt.Errorf("list %q: %w", prefix, err)
	}
	list, more, err := f.b.List(ctx, prefix, start, limit)
	if err = after(rule, err); err != nil {
		return nil, false, err
	}
	return list, more, nil
}

// Put implements Writer.
func (f *Fault) Put(ctx context.Context, key string, body Body, opts PutOptions) (ObjectInfo, error) {
	rule, _ := f.choose("put", key)
	if err := before(ctx, rule); err != nil {
		return ObjectInfo{}, fmt.Errorf("put %q: %w", key, err)
	}
	if rule.Kind == FaultSwallowPut {
		// A store that loses the object answers as one that kept it.
		var lost Mem
		lost.objects = make(map[string]memObject)
		return lost.Put(ctx, key, body, PutOptions{CRC32C: opts.CRC32C})
	}
	info, err := f.b.Put(ctx, key, body, opts)
	if rule.Kind == FaultTimeoutAfter {
		return ObjectInfo{}, fmt.Errorf("put %q: %w", key, after(rule, err))
	}
	return info, err
}

// Delete implements Writer.
func (f *Fault) Delete(ctx context.Context, key string) error {
	rule, _ := f.choose("delete", key)
	if err := before(ctx, rule); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return after(rule, f.b.Delete(ctx, key))
}

// DeleteMany implements Writer.
func (f *Fault) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	rule, _ := f.choose("delete_many", keys...)
	if err := before(ctx, rule); err != nil {
		return nil, fmt.Errorf("delete many: %w", err)
	}
	failed, err := f.b.DeleteMany(ctx, keys)
	return failed, after(rule, err)
}

var (
	_ Bucket = (*Fault)(nil)
	_ Body   = (*bytes.Reader)(nil)
	_ Body   = (*io.SectionReader)(nil)
)

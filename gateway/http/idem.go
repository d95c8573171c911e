package httpgate

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	headerKey      = "Idempotency-Key"
	headerReplayed = "Idempotency-Replayed" // true: the answer to an earlier request
	maxKeyLength   = 255
	keyedRecords   = 100_000 // of one request
	keyedParallel  = 8       // batches of one request on their way
	bodyCopies     = 4       // of an NDJSON body: itself, records, batches, answer
)

// keys are the idempotency keys
// (draft-ietf-httpapi-idempotency-key-header-07) of this gateway's requests.
type keys struct {
	s     *Server
	id    string // of this run of the gateway
	limit int    // of keys that are remembered
	now   func() time.Time
	pids  pids
	ends  sync.WaitGroup // that are being written
	runs  sync.WaitGroup // of keyLog
	ctx   context.Context
	stop  context.CancelFunc

	opening sync.Mutex
	mu      sync.Mutex
	log     *keyLog // nil: not opened
	atWork  map[keyHash]bool
}

func newKeys(s *Server) *keys {
	k := &keys{s: s, id: rand.Text(), limit: s.limits.MaxKeys, now: time.Now, pids: pids{client: s.client}, atWork: map[keyHash]bool{}}
	k.ctx, k.stop = context.WithCancel(context.Background())
	return k
}

// close waits until what is answered is stored, and stops.
func (k *keys) close() {
	k.ends.Wait()
	k.stop()
	k.runs.Wait()
}

// keyedRequest is a request with a key, its body read and checked.
type keyedRequest struct {
	key         string
	fingerprint string
	topic       kadm.TopicDetail
	recs        []*kgo.Record
}

// outcome is what became of a request, by partition.
type outcome struct {
	replayed  bool
	timestamp time.Time // of records without one
	batches   map[int32]keyBatch
}

// parseKey reads the header: a string of RFC 8941, or, as many clients send
// it, the bare characters.
func parseKey(h http.Header) (string, error) {
	v := h.Values(headerKey)
	bad := fail(400, "%s: want one string of 1 to %d printable ASCII characters, as \"8e03978e-40d5-43dd-bc93-6894a57f9324\".", headerKey, maxKeyLength)
	if len(v) != 1 {
		return "", bad
	}
	s := strings.Trim(v[0], " \t")
	if inner, ok := strings.CutPrefix(s, `"`); ok {
		inner, ok = strings.CutSuffix(inner, `"`)
		if !ok {
			return "", bad
		}
		var b strings.Builder
		for i := 0; i < len(inner); i++ {
			if inner[i] == '\\' {
				if i++; i == len(inner) || inner[i] != '"' && inner[i] != '\\' {
					return "", bad
				}
			} else if inner[i] == '"' {
				return "", bad
			}
			b.WriteByte(inner[i])
		}
		s = b.String()
	} else if strings.ContainsAny(s, "\" \\,;") {
		return "", bad
	}
	if s == "" || len(s) > maxKeyLength || strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) >= 0 {
		return "", bad
	}
	return s, nil
}

// fingerprint is a hash of all that says what a request stores.
func fingerprint(r *http.Request, body []byte) string {
	h := sha256.New()
	part := func(s string) { fmt.Fprintf(h, "%d:%s\n", len(s), s) }
	part(r.Method)
	part(r.URL.EscapedPath())
	part(r.URL.RawQuery)
	part(mediaType(r))
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if strings.HasPrefix(name, headerPrefix) {
			part(name)
			part(strings.Join(r.Header[name], "\n"))
		}
	}
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// produceKeyed stores the body of a request with a key at most once.
func (s *Server) produceKeyed(w http.ResponseWriter, r *http.Request) error {
	key, err := parseKey(r.Header)
	if err != nil {
		return err
	}
	template, t, err := s.template(r)
	if err != nil {
		return err
	}
	lines := isNDJSON(mediaType(r))
	limit := min(s.limits.MaxBody, maxRecord)
	var format lineFormat
	if lines {
		limit = s.limits.MaxBody
		if format, err = lineFormatOf(r.URL.Query()); err != nil {
			return err
		}
	}
	body, err := s.readAll(w, r, limit)
	if err != nil {
		return err
	}
	req := &keyedRequest{key: key, fingerprint: fingerprint(r, body), topic: t}
	var numbers []int64
	if lines {
		memory := held{from: &s.v2Memory}
		defer memory.release()
		if err := memory.take(bodyCopies * int64(len(body))); err != nil {
			return err
		}
		req.recs, numbers, err = keyedLines(body, format.records, template, t)
	} else {
		rec := *template
		rec.Value = body
		req.recs, err = []*kgo.Record{&rec}, checkRecord(&rec, t)
	}
	if err != nil {
		return err
	}
	out := &outcome{timestamp: s.keys.now()}
	if len(req.recs) > 0 {
		// What has begun goes on when the client is gone: it will ask again.
		ctx, cancel := detached(r.Context(), s.limits.DeliveryTime+keyLoad)
		defer cancel()
		if out, err = s.keys.do(ctx, req); err != nil {
			return err
		}
	}
	if out.replayed {
		w.Header().Set(headerReplayed, "true")
	}
	if lines {
		return s.answerKeyedLines(w, req, out, numbers, format.all)
	}
	rec := req.recs[0]
	b := out.batches[rec.Partition]
	if b.Offset == nil {
		return fail(b.Code, "%s", b.Message)
	}
	if !rec.Timestamp.IsZero() {
		out.timestamp = rec.Timestamp
	}
	return writeJSON(w, mediaJSON, produced{rec.Topic, rec.Partition, *b.Offset, out.timestamp.UnixMilli()})
}

// keyedLines makes the records of an NDJSON body, with the numbers of their
// lines. One wrong line refuses all.
func keyedLines(body []byte, records bool, template *kgo.Record, t kadm.TopicDetail) (recs []*kgo.Record, numbers []int64, err error) {
	n := int64(0)
	for line := range bytes.Lines(body) {
		n++
		if line = trimLine(line); len(line) == 0 {
			continue
		}
		rec := *template
		err := parseLine(line, records, &rec)
		if err == nil { // not the topic's rules: a retry of what is stored must not fail for them
			err = checkRecord(&rec, t)
		}
		if err != nil {
			e := toAPI(err)
			return nil, nil, fail(e.Code, "Line %d: %s Nothing is stored.", n, e.Message)
		}
		if len(recs) == keyedRecords {
			return nil, nil, fail(413, "A request with an %s has at most %d records. Nothing is stored.", headerKey, keyedRecords)
		}
		recs, numbers = append(recs, &rec), append(numbers, n)
	}
	return recs, numbers, nil
}

// answerKeyedLines answers as produceLines does.
func (s *Server) answerKeyedLines(w http.ResponseWriter, req *keyedRequest, out *outcome, numbers []int64, all bool) error {
	l := &lineStream{s: s, lineFormat: lineFormat{all: all}}
	offset := map[int32]int64{}
	var buf []byte
	for i, rec := range req.recs {
		b := out.batches[rec.Partition]
		p := &lineResult{line: numbers[i], rec: *rec}
		if b.Offset != nil {
			p.rec.Offset = *b.Offset + offset[rec.Partition]
			offset[rec.Partition]++
		} else {
			p.err = fail(b.Code, "%s", b.Message)
		}
		buf = l.result(buf, p)
	}
	l.end.Lines, l.end.Done = int64(len(req.recs)), l.end.Failed == 0
	w.Header().Set("Content-Type", mediaNDJSON)
	rc := http.NewResponseController(w)
	_, err := io.Copy(&stallWriter{w: w, rc: rc, stall: s.limits.StallTime}, bytes.NewReader(buf))
	if err != nil {
		return nil // the client is gone: nobody to tell
	}
	return writeJSON(w, mediaNDJSON, l.end)
}

// open returns the log, read up to where it was when it was opened.
func (k *keys) open(ctx context.Context) (*keyLog, error) {
	ctx, cancel := context.WithTimeout(ctx, keyLoad)
	defer cancel()
	k.opening.Lock()
	k.mu.Lock()
	l := k.log
	k.mu.Unlock()
	var err error
	if l == nil || l.ctx.Err() != nil {
		if l, err = openKeyLog(ctx, k.s); err == nil {
			k.mu.Lock()
			k.log = l
			k.mu.Unlock()
		}
	}
	k.opening.Unlock()
	if err != nil {
		return nil, err
	}
	return l, l.wait(ctx, l.loaded)
}

// claim takes a key for one request of this gateway.
func (k *keys) claim(h keyHash) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.atWork[h] {
		return false
	}
	k.atWork[h] = true
	return true
}

func (k *keys) unclaim(h keyHash) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.atWork, h)
}

var errKeyAtWork = fail(409, "A request with this %s is at work. Ask again for its answer.", headerKey)

// do stores the records of a request, or finds what became of them.
func (k *keys) do(ctx context.Context, req *keyedRequest) (*outcome, error) {
	l, err := k.open(ctx)
	if err != nil {
		return nil, err
	}
	h := hashKey(req.key)
	if !k.claim(h) {
		return nil, errKeyAtWork
	}
	kept := false
	defer func() {
		if !kept {
			k.unclaim(h)
		}
	}()
	e, known := l.lookup(h)
	var rec *keyRecord
	var sl *slot
	if !known {
		if l.full(k.limit) {
			return nil, fail(429001, "Too many keys are remembered; try again later, or without a key.")
		}
		if rec, e, sl, err = k.begin(ctx, l, req); err != nil {
			return nil, err
		}
	}
	if rec == nil { // somebody's
		return k.again(ctx, l, req, e, &kept)
	}
	return k.finish(ctx, l, req, rec, e.begin, sl, &kept)
}

// again answers a request whose key was used before.
func (k *keys) again(ctx context.Context, l *keyLog, req *keyedRequest, e keyEntry, kept *bool) (*outcome, error) {
	at := e.begin
	if e.done >= 0 {
		at = e.done
	}
	rec, err := l.read(ctx, req.key, at)
	if err != nil {
		return nil, err
	}
	if rec.Fingerprint != req.fingerprint {
		return nil, fail(422, "The %s was used before with another request. Choose a new one.", headerKey)
	}
	now := k.now().UnixMilli()
	switch {
	case e.done >= 0:
		if _, err := rec.spread(req.recs); err != nil {
			return nil, err
		}
		return rec.outcome(true), nil
	case rec.Gateway != k.id && e.begin >= l.loaded[hashKey(req.key).partition()] && now-rec.At < k.s.limits.DeliveryTime.Milliseconds():
		return nil, errKeyAtWork // by another gateway, or one that has just ended
	case now-rec.At > (keyLifetime - keyMargin).Milliseconds():
		return nil, fail(codeKafka, "A request with this %s began %v ago and nobody knows whether its records are stored.", headerKey, time.Duration(now-rec.At)*time.Millisecond)
	}
	out, err := k.finish(ctx, l, req, rec, e.begin, nil, kept)
	if now, ok := l.lookup(hashKey(req.key)); err != nil && ok && now.begin == e.begin && now.done >= 0 {
		return k.again(ctx, l, req, now, kept) // another gateway was faster
	}
	return out, err
}

// begin gives the records partitions, producer id and sequences and stores
// that under the key. It returns no record if somebody else has the key.
func (k *keys) begin(ctx context.Context, l *keyLog, req *keyedRequest) (*keyRecord, keyEntry, *slot, error) {
	now := k.now().UnixMilli()
	h := hashKey(req.key)
	n := int32(len(req.topic.Partitions))
	rec := &keyRecord{State: keyBegin, At: now, Gateway: k.id, Fingerprint: req.fingerprint, Topic: req.topic.Topic,
		Partitions: n, Fallback: int32(uint32(h[1])<<16|uint32(h[2])<<8|uint32(h[3])) % n, Timestamp: now}
	groups := rec.assign(req.recs)
	sl, err := k.pids.get(ctx)
	if err != nil {
		return nil, keyEntry{}, nil, err
	}
	rec.ProducerID, rec.Epoch = sl.pid, sl.epoch
	for p := range n {
		recs := groups[p]
		if len(recs) == 0 {
			continue
		}
		seq := sl.next[topicPartition{req.topic.ID, p}]
		if size := len(appendBatch(nil, recs, sl.pid, sl.epoch, seq, time.UnixMilli(now))); size > maxBatch {
			k.pids.put(sl)
			return nil, keyEntry{}, nil, fail(413, "The records for partition %d take %d bytes, with an %s at most %d: they have to fit into one batch.", p, size, headerKey, maxBatch)
		}
		rec.Batches = append(rec.Batches, keyBatch{Partition: p, Sequence: seq, Count: int32(len(recs))})
	}
	at, err := l.write(ctx, req.key, rec)
	if err != nil {
		if errors.Is(err, kgo.ErrMaxBuffered) {
			k.pids.put(sl)
		}
		// Otherwise the record may turn up yet, and with it these sequences:
		// the slot must not serve another key.
		return nil, keyEntry{}, nil, err
	}
	e, ok := l.lookup(h)
	if ok && e.begin == at {
		return rec, e, sl, nil
	}
	k.pids.put(sl)
	if !ok { // ended by somebody else within this moment
		return nil, e, nil, errKeyAtWork
	}
	return nil, e, nil, nil
}

// assign gives each record its partition, the same ones every time, and groups
// them by it.
func (r *keyRecord) assign(recs []*kgo.Record) map[int32][]*kgo.Record {
	groups := map[int32][]*kgo.Record{}
	hash := kgo.StickyKeyPartitioner(nil).ForTopic(r.Topic)
	for _, rec := range recs {
		switch {
		case rec.Partition >= 0:
		case rec.Key != nil:
			rec.Partition = int32(hash.Partition(rec, int(r.Partitions)))
		default:
			rec.Partition = r.Fallback
		}
		groups[rec.Partition] = append(groups[rec.Partition], rec)
	}
	return groups
}

// spread is assign with a check that the batches are those of the record. The
// record may be anybody's who may write the topic of the keys.
func (r *keyRecord) spread(recs []*kgo.Record) (map[int32][]*kgo.Record, error) {
	var groups map[int32][]*kgo.Record
	same := r.Partitions > 0 && r.ProducerID >= 0 && r.Epoch >= 0
	if same {
		groups = r.assign(recs)
		same = len(groups) == len(r.Batches)
	}
	seen := map[int32]bool{}
	for _, b := range r.Batches {
		same = same && !seen[b.Partition] && b.Sequence >= 0 && b.Count > 0 && len(groups[b.Partition]) == int(b.Count)
		seen[b.Partition] = true
	}
	if !same {
		return nil, fail(codeKafka, "The records of this %s were divided otherwise before: another version of the gateway?", headerKey)
	}
	return groups, nil
}

func (r *keyRecord) outcome(replayed bool) *outcome {
	o := &outcome{replayed: replayed, timestamp: time.UnixMilli(r.Timestamp), batches: map[int32]keyBatch{}}
	for _, b := range r.Batches {
		o.batches[b.Partition] = b
	}
	return o
}

// finish sends the batches of a begin and stores their outcome. With a slot the
// begin is new, and the slot is free again once the outcome is stored.
func (k *keys) finish(ctx context.Context, l *keyLog, req *keyedRequest, begin *keyRecord, at int64, sl *slot, kept *bool) (*outcome, error) {
	groups, err := begin.spread(req.recs)
	if err != nil {
		return nil, err
	}
	fresh := sl != nil // nobody has sent these batches before
	send, cancel := context.WithTimeout(ctx, k.s.limits.DeliveryTime)
	defer cancel()
	errs := make([]error, len(begin.Batches))
	end := *begin
	end.State, end.Begin, end.Batches = keyDone, at, slices.Clone(begin.Batches)
	places := make(slots, keyedParallel)
	var wg sync.WaitGroup
	for i := range end.Batches {
		b := &end.Batches[i]
		places <- struct{}{}
		wg.Go(func() {
			defer places.release()
			batch := appendBatch(nil, groups[b.Partition], begin.ProducerID, begin.Epoch, b.Sequence, time.UnixMilli(begin.Timestamp))
			offset, err := k.s.produceBatch(send, begin.Topic, b.Partition, batch)
			if errs[i] = err; err == nil {
				b.Offset = &offset
				return
			}
			e := toAPI(err)
			b.Code, b.Message = e.Code, e.Message
		})
	}
	wg.Wait()
	var first error
	stored := 0
	for _, err := range errs {
		if errors.Is(err, kerr.OutOfOrderSequenceNumber) || errors.Is(err, kerr.DuplicateSequenceNumber) || errors.Is(err, kerr.InvalidProducerEpoch) {
			sl = nil // the brokers know this producer id otherwise than we do
		}
		switch {
		case err == nil:
			stored++
		case first == nil || errors.Is(err, errUnknownOutcome):
			first = err
		}
	}
	if first != nil && (!fresh || errors.Is(first, errUnknownOutcome)) {
		return nil, unknownOutcome(first)
	}
	if stored == 0 {
		end.State, end.Batches, end.Fingerprint = keyFree, nil, ""
	}
	*kept = true
	if k.s.whole {
		k.end(ctx, l, req, &end, sl)
	} else {
		k.ends.Go(func() { k.end(context.Background(), l, req, &end, sl) })
	}
	if stored == 0 {
		return nil, first
	}
	return end.outcome(false), nil
}

// unknownOutcome is the answer when the key stays unfinished.
func unknownOutcome(err error) error {
	if errors.Is(err, kerr.DuplicateSequenceNumber) || errors.Is(err, kerr.OutOfOrderSequenceNumber) {
		return fail(codeKafka, "The brokers have forgotten the batches of this %s: nobody knows whether its records are stored (%v).", headerKey, err)
	}
	return fail(codeKafkaRetriable, "Nobody knows yet whether the records are stored (%v). Ask again with the same %s.", err, headerKey)
}

// end stores the outcome, after the answer (before it, if nothing may be left for
// then): until it is there a retry sends the same batches and gets the same
// offsets. Then key and slot are free.
func (k *keys) end(ctx context.Context, l *keyLog, req *keyedRequest, end *keyRecord, sl *slot) {
	defer k.unclaim(hashKey(req.key))
	ctx, cancel := detached(ctx, k.s.limits.DeliveryTime+deliverySlack)
	defer cancel()
	end.At = k.now().UnixMilli()
	if _, err := l.write(ctx, req.key, end); err != nil {
		k.s.log.Warn("the outcome of a request with an idempotency key is not stored; a retry finds it out again", "err", err)
		return
	}
	if sl == nil {
		return
	}
	for _, b := range end.Batches {
		if b.Offset != nil {
			sl.next[topicPartition{req.topic.ID, b.Partition}] = b.Sequence + b.Count
		}
	}
	k.pids.put(sl)
}

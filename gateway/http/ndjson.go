package httpgate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	mediaNDJSON   = "application/x-ndjson"
	maxLine       = 1_400_000 // bytes; a record in Base64
	linesInFlight = 1024      // of one body
	lineBuffer    = 64 << 10  // bytes
)

// lineResult is the answer to one line, in the order of the lines.
type lineResult struct {
	Line      int64  `json:"line"` // from 1
	Partition *int32 `json:"partition,omitempty"`
	Offset    *int64 `json:"offset,omitempty"`
	Code      int    `json:"error_code,omitempty"`
	Message   string `json:"message,omitempty"`

	rec  *kgo.Record
	err  error
	done chan struct{} // closed when rec is stored or err is set
}

// streamEnd is the last line of the answer; an answer without it is cut.
type streamEnd struct {
	Done     bool   `json:"done"`  // the body was read to its end
	Lines    int64  `json:"lines"` // read, without empty ones
	Produced int64  `json:"produced"`
	Failed   int64  `json:"failed"`
	Code     int    `json:"error_code,omitempty"`
	Message  string `json:"message,omitempty"`
}

// lineStream is an NDJSON body at work: one goroutine reads lines and hands
// them to the client, another writes the answers.
type lineStream struct {
	s        *Server
	template *kgo.Record
	records  bool // lines are records, not values
	all      bool // every line is answered, not only failed ones
	pending  chan *lineResult
	end      streamEnd
}

// produceLines stores every line of the body as a record and answers line by
// line while it reads.
func (s *Server) produceLines(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	l := &lineStream{s: s, records: q.Get("format") == "records", all: q.Get("report") != "errors", pending: make(chan *lineResult, linesInFlight)}
	if f := q.Get("format"); f != "" && f != "records" && f != "values" {
		return fail(400, "format %q: want values or records.", f)
	}
	if f := q.Get("report"); f != "" && f != "errors" && f != "all" {
		return fail(400, "report %q: want all or errors.", f)
	}
	var err error
	if l.template, err = s.template(r); err != nil {
		return err
	}
	b, err := s.openBody(w, r, s.limits.MaxStream, s.limits.StallTime)
	if err != nil {
		return err
	}
	defer b.close()
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // HTTP/2 has it anyway
	w.Header().Set("Content-Type", mediaNDJSON)
	written := make(chan error, 1)
	stop, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		err := l.answer(w, rc)
		if err != nil {
			cancel() // nobody reads the answers: no more lines
			for p := range l.pending {
				<-p.done
			}
		}
		written <- err
	}()
	readErr := l.read(stop, bufio.NewReaderSize(b, lineBuffer))
	close(l.pending)
	if err := <-written; err != nil {
		return nil // the connection is broken
	}
	l.end.Done = readErr == nil
	if readErr != nil {
		e := toAPI(readErr)
		l.end.Code, l.end.Message = e.Code, e.Message
	}
	_ = json.NewEncoder(w).Encode(l.end)
	return nil
}

// answer writes the results in order until pending is closed.
func (l *lineStream) answer(w http.ResponseWriter, rc *http.ResponseController) error {
	out := bufio.NewWriterSize(w, 16<<10)
	enc := json.NewEncoder(out)
	flush := func() error {
		_ = rc.SetWriteDeadline(time.Now().Add(l.s.limits.StallTime))
		return errors.Join(out.Flush(), rc.Flush())
	}
	for p := range l.pending {
		select {
		case <-p.done:
		default:
			if err := flush(); err != nil { // while there is nothing to write
				<-p.done
				return err
			}
			<-p.done
		}
		if p.err != nil {
			e := toAPI(p.err)
			p.Code, p.Message = e.Code, e.Message
			l.end.Failed++
		} else {
			p.Partition, p.Offset = &p.rec.Partition, &p.rec.Offset
			l.end.Produced++
			if !l.all {
				continue
			}
		}
		if out.Available() < 512 {
			_ = rc.SetWriteDeadline(time.Now().Add(l.s.limits.StallTime))
		}
		if err := enc.Encode(p); err != nil {
			return err
		}
	}
	return flush()
}

// read produces line after line until the body ends. A line without a newline
// counts only at the end of a whole body: a cut one may be half of what was meant.
func (l *lineStream) read(ctx context.Context, in *bufio.Reader) error {
	for n := int64(1); ; n++ {
		line, long, err := readLine(in)
		if err != nil && err != io.EOF {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if line = bytes.TrimSpace(line); len(line) > 0 || long {
			l.end.Lines++
			l.line(ctx, n, line, long)
		}
		if err == io.EOF {
			return nil
		}
	}
}

// line hands one line to the client. It waits when too much is in flight.
func (l *lineStream) line(ctx context.Context, n int64, line []byte, long bool) {
	p := &lineResult{Line: n, done: make(chan struct{})}
	if long {
		p.err = fail(413, "The line has more than %d bytes.", maxLine)
	} else {
		p.rec, p.err = l.record(line)
	}
	l.pending <- p
	if p.err != nil {
		close(p.done)
		return
	}
	l.s.client.Produce(context.WithoutCancel(ctx), p.rec, func(_ *kgo.Record, err error) {
		p.err = err
		close(p.done)
	})
}

// readLine reads up to a newline. Of a line with more than maxLine bytes it
// keeps nothing.
func readLine(in *bufio.Reader) (line []byte, long bool, err error) {
	for {
		part, err := in.ReadSlice('\n')
		if long = long || len(line)+len(part) > maxLine; long {
			line = nil
		} else {
			line = append(line, part...)
		}
		if err != bufio.ErrBufferFull {
			return line, long, err
		}
	}
}

// jsonRecord is a record as bounded reads give it and NDJSON with
// format=records takes it. Bytes that are no UTF-8 are in the _base64 fields.
type jsonRecord struct {
	Topic       string          `json:"topic,omitempty"`
	Partition   *int32          `json:"partition,omitempty"`
	Offset      *int64          `json:"offset,omitempty"`
	Timestamp   *int64          `json:"timestamp,omitempty"` // ms
	Key         *string         `json:"key"`
	KeyBase64   *string         `json:"key_base64,omitempty"`
	Value       json.RawMessage `json:"value"`
	ValueBase64 *string         `json:"value_base64,omitempty"`
	Headers     []jsonHeader    `json:"headers,omitempty"`
}

type jsonHeader struct {
	Key         string  `json:"key"`
	Value       *string `json:"value"`
	ValueBase64 *string `json:"value_base64,omitempty"`
}

// record makes the record of a line.
func (l *lineStream) record(line []byte) (*kgo.Record, error) {
	rec := *l.template
	if !utf8.Valid(line) {
		return nil, fail(codeJSON, "The line is not UTF-8.")
	}
	if !l.records {
		if !json.Valid(line) {
			return nil, fail(codeJSON, "The line is not one JSON value.")
		}
		rec.Value = line
		return &rec, nil
	}
	var j jsonRecord
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&j); err != nil {
		return nil, fail(codeJSON, "The line is not a record: %v", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fail(codeJSON, "The line has more than one JSON value.")
	}
	return &rec, j.into(&rec)
}

// into sets what j has; its topic and offset do not count.
func (j *jsonRecord) into(rec *kgo.Record) (err error) {
	if j.Partition != nil {
		if *j.Partition < 0 {
			return fail(codeNoPartition, "Partition not found.")
		}
		rec.Partition = *j.Partition
	}
	if j.Timestamp != nil {
		rec.Timestamp = time.UnixMilli(*j.Timestamp)
	}
	if j.Key != nil || j.KeyBase64 != nil {
		if rec.Key, err = stringOrBase64(j.Key, j.KeyBase64); err != nil {
			return err
		}
	}
	switch {
	case j.ValueBase64 != nil:
		rec.Value, err = stringOrBase64(nil, j.ValueBase64)
	case len(j.Value) > 0 && j.Value[0] == '"':
		var s string
		err = json.Unmarshal(j.Value, &s)
		rec.Value = []byte(s)
	case string(j.Value) != "null":
		rec.Value = j.Value
	}
	if err != nil {
		return err
	}
	rec.Headers = rec.Headers[:len(rec.Headers):len(rec.Headers)]
	for _, h := range j.Headers {
		v, err := stringOrBase64(h.Value, h.ValueBase64)
		if err != nil {
			return err
		}
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: h.Key, Value: v})
	}
	return nil
}

func stringOrBase64(s, b64 *string) ([]byte, error) {
	if b64 != nil {
		b, err := base64.StdEncoding.DecodeString(*b64)
		if err != nil {
			return nil, fail(codePayload, "data=%.40s is not a base64 string.", *b64)
		}
		return b, nil
	}
	if s == nil {
		return nil, nil
	}
	return []byte(*s), nil
}

// newJSONRecord describes a record that was read.
func newJSONRecord(r *kgo.Record) jsonRecord {
	ms := r.Timestamp.UnixMilli()
	j := jsonRecord{Topic: r.Topic, Partition: &r.Partition, Offset: &r.Offset, Timestamp: &ms, Value: json.RawMessage("null")}
	j.Key, j.KeyBase64 = split(r.Key)
	if s, b64 := split(r.Value); s != nil {
		j.Value, _ = json.Marshal(*s) // a string has no error
	} else {
		j.ValueBase64 = b64
	}
	for _, h := range r.Headers {
		jh := jsonHeader{Key: h.Key}
		jh.Value, jh.ValueBase64 = split(h.Value)
		j.Headers = append(j.Headers, jh)
	}
	return j
}

// split gives bytes as a string, or in Base64 if they are no UTF-8.
func split(b []byte) (s, b64 *string) {
	if b == nil {
		return nil, nil
	}
	if utf8.Valid(b) {
		v := string(b)
		return &v, nil
	}
	v := base64.StdEncoding.EncodeToString(b)
	return nil, &v
}

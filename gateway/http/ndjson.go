package httpgate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	mediaNDJSON   = "application/x-ndjson"
	maxLine       = 1_400_000 // bytes; a record in Base64
	linesInFlight = 4096      // of one body
	lineBuffer    = 64 << 10  // bytes
	answerBuffer  = 16 << 10  // bytes
	drainBytes    = 256 << 10 // of a body whose rest is not wanted, as net/http has it
	drainTime     = 2 * time.Second
)

// lineResult is a line at work. Results are answered in the order of the lines.
type lineResult struct {
	line int64 // from 1
	rec  kgo.Record
	err  error
	done atomic.Bool // rec is stored or err is set
}

// streamEnd is the last line of the answer; an answer without it is cut.
type streamEnd struct {
	Done     bool   `json:"done"`  // the body was read to its end, every line is stored
	Lines    int64  `json:"lines"` // that were read, without empty ones
	Produced int64  `json:"produced"`
	Failed   int64  `json:"failed"`
	Line     int64  `json:"line,omitempty"` // the first that failed
	Code     int    `json:"error_code,omitempty"`
	Message  string `json:"message,omitempty"`
}

// lineFormat is what the parameters format and report of an NDJSON body say.
type lineFormat struct {
	records bool // lines are records, not values
	all     bool // every line is answered, not only failed ones
}

func lineFormatOf(q url.Values) (lineFormat, error) {
	f := lineFormat{records: q.Get("format") == "records", all: q.Get("report") != "errors"}
	if v := q.Get("format"); v != "" && v != "records" && v != "values" {
		return f, fail(400, "format %q: want values or records.", v)
	}
	if v := q.Get("report"); v != "" && v != "errors" && v != "all" {
		return f, fail(400, "report %q: want all or errors.", v)
	}
	return f, nil
}

// lineStream is an NDJSON body at work: one goroutine reads lines and hands
// them to the client, another writes the answers.
type lineStream struct {
	lineFormat
	s        *Server
	template *kgo.Record
	delivery func() context.Context // for the next record
	topic    kadm.TopicDetail
	block    []byte // from which values are cut
	results  []lineResult
	pending  chan *lineResult
	wake     chan struct{} // something is done
	failed   atomic.Bool   // a line was refused by the brokers: read no more
	end      streamEnd
}

// produceLines stores every line of the body as a record and answers line by
// line while it reads. It stops at the first line that is wrong.
func (s *Server) produceLines(w http.ResponseWriter, r *http.Request) error {
	l := &lineStream{s: s, pending: make(chan *lineResult, linesInFlight), wake: make(chan struct{}, 1)}
	var err error
	if l.lineFormat, err = lineFormatOf(r.URL.Query()); err != nil {
		return err
	}
	if l.template, l.topic, err = s.template(r); err != nil {
		return err
	}
	l.delivery = s.delivery.context
	if _, ok := r.Context().Deadline(); ok {
		all := s.delivery.within(r.Context())
		l.delivery = func() context.Context { return all }
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
				l.wait(p)
			}
		}
		written <- err
	}()
	readErr := l.read(stop, bufio.NewReaderSize(b, lineBuffer))
	close(l.pending)
	if err := <-written; err != nil {
		b.bad = true // the connection is broken: don't wait for its rest
		return nil
	}
	l.end.Done = readErr == nil && l.end.Failed == 0
	if readErr != nil {
		if l.end.Code == 0 { // the body ended before its end
			e := toAPI(readErr)
			l.end.Code, l.end.Message = e.Code, e.Message
		}
		b.bad = true
	}
	_ = json.NewEncoder(w).Encode(l.end)
	if b.bad {
		if b.bad = !s.drain(rc, r); b.bad {
			s.hangUp(rc, r)
		}
	}
	return nil
}

// drain reads what is left of a body, if it is little and comes soon.
func (s *Server) drain(rc *http.ResponseController, r *http.Request) bool {
	_ = rc.SetReadDeadline(time.Now().Add(min(s.limits.StallTime, drainTime)))
	_, err := io.CopyN(io.Discard, r.Body, drainBytes)
	return err == io.EOF
}

// hangUp ends an answer whose header did not say so with the connection: what
// still comes of the body would be taken for the next request.
func (s *Server) hangUp(rc *http.ResponseController, r *http.Request) {
	if err := rc.Flush(); err != nil {
		return
	}
	conn, out, err := rc.Hijack()
	if err != nil { // HTTP/2, whose streams end by themselves
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(drainTime))
	if r.ProtoAtLeast(1, 1) {
		_, _ = out.WriteString("0\r\n\r\n") // the last chunk
	}
	if err := out.Flush(); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok { // or unread bytes would reset what was sent
		_ = half.CloseWrite()
		_, _ = io.CopyN(io.Discard, conn, drainBytes)
	}
}

// wait returns when p is done.
func (l *lineStream) wait(p *lineResult) {
	for !p.done.Load() {
		<-l.wake
	}
}

// answer writes the results in order until pending is closed.
func (l *lineStream) answer(w http.ResponseWriter, rc *http.ResponseController) error {
	buf := make([]byte, 0, answerBuffer)
	write := func() error {
		if len(buf) == 0 {
			return nil
		}
		_ = rc.SetWriteDeadline(time.Now().Add(l.s.limits.StallTime))
		_, err := w.Write(buf)
		buf = buf[:0]
		return err
	}
	for p := range l.pending {
		if !p.done.Load() {
			err := write() // while there is nothing else to do
			if err == nil {
				err = rc.Flush()
			}
			l.wait(p)
			if err != nil {
				return err
			}
		}
		if buf = l.result(buf, p); len(buf) > answerBuffer-1024 {
			if err := write(); err != nil {
				return err
			}
		}
	}
	return write()
}

// result adds the answer to one line and counts it.
func (l *lineStream) result(buf []byte, p *lineResult) []byte {
	if p.err == nil {
		if l.end.Produced++; !l.all {
			return buf
		}
		return appendStored(buf, p.line, p.rec.Partition, p.rec.Offset)
	}
	e := toAPI(p.err)
	if l.end.Failed++; l.end.Failed == 1 {
		l.end.Line, l.end.Code, l.end.Message = p.line, e.Code, e.Message
	}
	buf = strconv.AppendInt(append(buf, `{"line":`...), p.line, 10)
	buf = strconv.AppendInt(append(buf, `,"error_code":`...), int64(e.Code), 10)
	return append(appendString(append(buf, `,"message":`...), e.Message), "}\n"...)
}

// appendStored adds the answer to a line that is stored.
func appendStored(buf []byte, line int64, partition int32, offset int64) []byte {
	buf = strconv.AppendInt(append(buf, `{"line":`...), line, 10)
	buf = strconv.AppendInt(append(buf, `,"partition":`...), int64(partition), 10)
	return append(strconv.AppendInt(append(buf, `,"offset":`...), offset, 10), "}\n"...)
}

var errLine = errors.New("a line is wrong")

// read produces line after line until the body ends or a line is wrong. A line
// without a newline counts only at the end of a whole body: a cut one may be
// half of what was meant.
func (l *lineStream) read(ctx context.Context, in *bufio.Reader) error {
	var scratch []byte
	for n := int64(1); ; n++ {
		line, long, err := readLine(in, &scratch)
		if err != nil && err != io.EOF {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if line = trimLine(line); len(line) > 0 || long {
			l.end.Lines++
			if !l.line(ctx, n, line, long) || l.failed.Load() {
				return errLine
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// line hands one line to the client, or tells that it is wrong. It waits when
// too much is in flight.
func (l *lineStream) line(ctx context.Context, n int64, line []byte, long bool) bool {
	if len(l.results) == 0 {
		l.results = make([]lineResult, 64)
	}
	p := &l.results[0]
	l.results = l.results[1:]
	p.line, p.rec = n, *l.template
	if long {
		p.err = fail(413, "The line has more than %d bytes.", maxLine)
	} else {
		p.err = parseLine(l.keep(line), l.records, &p.rec)
	}
	if p.err == nil {
		p.err = l.s.rules.get(ctx, l.topic.Topic).check(l.topic, &p.rec)
	}
	wrong := p.err != nil
	p.done.Store(wrong)
	l.pending <- p
	if wrong {
		return false
	}
	l.s.client.Produce(l.delivery(), &p.rec, func(_ *kgo.Record, err error) {
		if p.err = err; err != nil {
			l.failed.Store(true)
		}
		p.done.Store(true)
		select {
		case l.wake <- struct{}{}:
		default: // one is on its way
		}
	})
	return true
}

// keep copies a line into memory that lasts as long as its record.
func (l *lineStream) keep(line []byte) []byte {
	if len(line) > lineBuffer/4 {
		return bytes.Clone(line)
	}
	if len(l.block)+len(line) > cap(l.block) {
		l.block = make([]byte, 0, lineBuffer)
	}
	at := len(l.block)
	l.block = append(l.block, line...)
	return l.block[at:len(l.block):len(l.block)]
}

// trimLine leaves out what JSON allows around a value.
func trimLine(line []byte) []byte { return bytes.Trim(line, " \t\r\n") }

// readLine reads up to a newline. The line is valid until the next call. Of a
// line with more than maxLine bytes nothing is kept.
func readLine(in *bufio.Reader, scratch *[]byte) (line []byte, long bool, err error) {
	line, err = in.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return line, false, err
	}
	*scratch = append((*scratch)[:0], line...)
	for err == bufio.ErrBufferFull {
		line, err = in.ReadSlice('\n')
		if long = long || len(*scratch)+len(line) > maxLine; !long {
			*scratch = append(*scratch, line...)
		}
	}
	if long {
		return nil, true, err
	}
	return *scratch, false, err
}

// parseLine makes the record of a line, which rec keeps. rec is the template's
// copy. The checks stay correct for bytes of any kind: what comes here is not
// trusted.
func parseLine(line []byte, records bool, rec *kgo.Record) error {
	switch {
	case !utf8.Valid(line):
		return fail(codeJSON, "The line is not UTF-8.")
	case !validJSON(line):
		return fail(codeJSON, "The line is not one JSON value.")
	case records:
		return parseRecord(line, rec)
	}
	rec.Value = line
	return nil
}

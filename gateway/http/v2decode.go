package httpgate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	v2MaxRecords = 50_000 // in one request
	v2PerRecord  = 1024   // bytes that a decoded record takes besides its own
)

// v2Record is a record of a request.
type v2Record struct {
	rec kgo.Record // Partition is -1 if the record does not choose one
}

// budget bounds the bytes that the bodies of all requests take in memory.
type budget struct {
	left atomic.Int64
}

// held is what one request has of a budget. It is for one goroutine.
type held struct {
	from *budget
	n    int64
}

// take takes n bytes more, or fails with errBusy.
func (h *held) take(n int64) error {
	if h.from.left.Add(-n) < 0 {
		h.from.left.Add(n)
		return errBusy
	}
	h.n += n
	return nil
}

// release gives all back.
func (h *held) release() {
	h.from.left.Add(h.n)
	h.n = 0
}

// heldReader takes for every byte it reads two of the budget: one in the
// decoder's buffer, one in the record.
type heldReader struct {
	r io.Reader
	h *held
}

func (h *heldReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if e := h.h.take(2 * int64(n)); e != nil {
		return 0, e
	}
	return n, err
}

// v2Decoder reads a produce request.
type v2Decoder struct {
	dec    *json.Decoder
	format string // mediaV2Binary, mediaV2JSON or mediaV2Text
	held   *held
	recs   []v2Record
}

// decodeV2 reads a produce request whose keys and values are in format. Nothing
// of it counts if any of it can't be decoded. Its errors are *apiError or
// those of r.
func decodeV2(r io.Reader, format string, h *held) ([]v2Record, error) {
	d := &v2Decoder{dec: json.NewDecoder(&heldReader{r, h}), format: format, held: h}
	if err := d.request(); err != nil {
		if _, ok := errors.AsType[*apiError](err); ok {
			return nil, err
		}
		return nil, jsonError(err)
	}
	if len(d.recs) == 0 {
		return nil, fail(422, "records must not be empty.")
	}
	return d.recs, nil
}

// request reads the object of a request up to the end of the body.
func (d *v2Decoder) request() error {
	err := d.object("The body", func(field string) error {
		switch field {
		case "records":
			return d.records()
		case "key_schema", "key_schema_id", "value_schema", "value_schema_id": // of no use to these formats
			_, err := d.value(field)
			return err
		}
		return fail(codeJSON, "Unrecognized field: %.40q.", field)
	})
	if err != nil {
		return err
	}
	if _, err := d.dec.Token(); err != io.EOF {
		if err != nil {
			return err
		}
		return fail(codeJSON, "The body has more than one JSON value.")
	}
	return nil
}

// object reads an object; field reads the value of one.
func (d *v2Decoder) object(what string, field func(name string) error) error {
	t, err := d.dec.Token()
	if err == io.EOF {
		return fail(codeJSON, "%s is empty.", what)
	}
	if err != nil {
		return err
	}
	if t != json.Delim('{') {
		return fail(codeJSON, "%s is not a JSON object.", what)
	}
	var seen []string // few: unknown ones are refused
	for d.dec.More() {
		t, err := d.dec.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // the decoder refuses other names
		if slices.Contains(seen, name) {
			return fail(codeJSON, "The field %.40q is there twice.", name)
		}
		seen = append(seen, name)
		if err := field(name); err != nil {
			return err
		}
	}
	return d.end()
}

// end reads the end of an object or array.
func (d *v2Decoder) end() error {
	_, err := d.dec.Token()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// records reads the array of records; null is none.
func (d *v2Decoder) records() error {
	t, err := d.dec.Token()
	switch {
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	case err != nil || t == nil:
		return err
	case t != json.Delim('['):
		return fail(codeJSON, "records is not an array.")
	}
	for d.dec.More() {
		if len(d.recs) == v2MaxRecords {
			return fail(413, "A request has at most %d records.", v2MaxRecords)
		}
		if err := d.held.take(v2PerRecord); err != nil {
			return err
		}
		if err := d.record(); err != nil {
			return atRecord(err, len(d.recs))
		}
	}
	return d.end()
}

// atRecord says in an error of the payload which record it is about.
func atRecord(err error, n int) error {
	if e, ok := errors.AsType[*apiError](err); ok && e.status() == 422 {
		return fail(e.Code, "records[%d]: %s", n, e.Message)
	}
	return err
}

func (d *v2Decoder) record() error {
	v := v2Record{rec: kgo.Record{Partition: -1}}
	err := d.object("The record", func(field string) error {
		switch field {
		case "key", "value", "partition", "timestamp", "headers":
		default:
			return fail(codeJSON, "Unrecognized field: %.40q.", field)
		}
		if field == "headers" {
			return d.headers(&v.rec)
		}
		raw, err := d.value(field)
		if err != nil || raw == nil {
			return err
		}
		switch field {
		case "key":
			v.rec.Key, err = d.embedded(field, raw)
		case "value":
			v.rec.Value, err = d.embedded(field, raw)
		case "partition":
			var n int64
			n, err = integer(field, raw, 32)
			if v.rec.Partition = int32(n); n < 0 {
				v.rec.Partition = -2 // none that exists; -1 is any
			}
		case "timestamp":
			var n int64
			n, err = integer(field, raw, 64)
			v.rec.Timestamp = time.UnixMilli(n)
		}
		return err
	})
	if err == nil {
		d.recs = append(d.recs, v)
	}
	return err
}

// headers reads Strimzi's headers: [{"key":"h","value":"Base64"}].
func (d *v2Decoder) headers(rec *kgo.Record) error {
	t, err := d.dec.Token()
	switch {
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	case err != nil || t == nil:
		return err
	case t != json.Delim('['):
		return fail(codeJSON, "headers is not an array.")
	}
	rec.Headers = nil
	for d.dec.More() {
		if err := d.held.take(v2PerRecord / 4); err != nil {
			return err
		}
		var h kgo.RecordHeader
		err := d.object("The header", func(field string) error {
			if field != "key" && field != "value" {
				return fail(codeJSON, "Unrecognized field of a header: %.40q.", field)
			}
			raw, err := d.value("header's " + field)
			if err != nil || raw == nil {
				return err
			}
			if field == "value" {
				h.Value, err = base64Of("header's value", raw)
				return err
			}
			h.Key, err = stringOf("header's key", raw)
			return err
		})
		if err != nil {
			return err
		}
		rec.Headers = append(rec.Headers, h)
	}
	return d.end()
}

// value reads one JSON value; nil stands for null.
func (d *v2Decoder) value(field string) (json.RawMessage, error) {
	var raw json.RawMessage
	if err := d.dec.Decode(&raw); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if !utf8.Valid(raw) {
		return nil, fail(codeJSON, "%s is not UTF-8.", field)
	}
	if string(raw) == "null" {
		return nil, nil
	}
	return raw, nil
}

// embedded makes the bytes of a key or value. JSON is stored without the
// white space around its tokens, otherwise as it was written.
func (d *v2Decoder) embedded(field string, raw json.RawMessage) ([]byte, error) {
	switch d.format {
	case mediaV2Binary:
		return base64Of(field, raw)
	case mediaV2Text:
		s, err := stringOf(field, raw)
		return []byte(s), err
	}
	out := bytes.NewBuffer(make([]byte, 0, len(raw)))
	err := json.Compact(out, raw)
	return out.Bytes(), err
}

func stringOf(field string, raw json.RawMessage) (string, error) {
	var s string
	if raw[0] != '"' {
		return "", fail(codePayload, "%s=%.40s is not a string.", field, raw)
	}
	err := json.Unmarshal(raw, &s)
	return s, err
}

// base64Of decodes a string of Base64, with or without its padding.
func base64Of(field string, raw json.RawMessage) ([]byte, error) {
	s, err := stringOf(field, raw)
	if err != nil {
		return nil, fail(codePayload, "%s=%.40s is not a base64 string.", field, raw)
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(s)
	}
	if err != nil {
		return nil, fail(codePayload, "%s=%.40s is not a base64 string.", field, raw)
	}
	return b, nil
}

func integer(field string, raw json.RawMessage, bits int) (int64, error) {
	n, err := strconv.ParseInt(string(raw), 10, bits)
	if err != nil {
		return 0, fail(codeJSON, "%s=%.40s is not an integer of %d bits.", field, raw, bits)
	}
	return n, nil
}

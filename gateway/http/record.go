package httpgate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Records as JSON, without reflection: what bounded reads and tails give and
// what NDJSON with format=records takes. Bytes that are no UTF-8 are in the
// _base64 fields.

const (
	maxMillis  = 253_402_300_799_999 // the last millisecond of the year 9999
	maxHeaders = 1000                // of one record
)

// appendRecord adds a record that was read, as a JSON object on one line.
func appendRecord(b []byte, r *kgo.Record) []byte {
	b = append(b, `{"topic":`...)
	b = appendString(b, r.Topic)
	b = append(b, `,"partition":`...)
	b = strconv.AppendInt(b, int64(r.Partition), 10)
	b = append(b, `,"offset":`...)
	b = strconv.AppendInt(b, r.Offset, 10)
	b = append(b, `,"timestamp":`...)
	b = strconv.AppendInt(b, r.Timestamp.UnixMilli(), 10)
	b = appendBytes(append(b, ','), "key", r.Key)
	b = appendBytes(append(b, ','), "value", r.Value)
	for i, h := range r.Headers {
		if i == 0 {
			b = append(b, `,"headers":[{"key":`...)
		} else {
			b = append(b, `,{"key":`...)
		}
		b = appendString(b, h.Key)
		b = append(appendBytes(append(b, ','), "value", h.Value), '}')
	}
	if len(r.Headers) > 0 {
		b = append(b, ']')
	}
	return append(b, '}')
}

// appendBytes adds "name":"…", or null, or null and "name_base64":"…".
func appendBytes(b []byte, name string, v []byte) []byte {
	b = append(append(append(b, '"'), name...), `":`...)
	if v != nil && utf8.Valid(v) {
		return appendString(b, v)
	}
	b = append(b, "null"...)
	if v == nil {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `_base64":"`...)
	return append(base64.StdEncoding.AppendEncode(b, v), '"')
}

// appendString adds a JSON string. What is no UTF-8 becomes U+FFFD.
func appendString[S string | []byte](b []byte, s S) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := plain(s, highBits); i < len(s); i += plain(s[i:], highBits) {
		c := s[i]
		n, esc := 1, ""
		switch {
		case c == '"':
			esc = `\"`
		case c == '\\':
			esc = `\\`
		case c == '\n':
			esc = `\n`
		case c == '\r':
			esc = `\r`
		case c == '\t':
			esc = `\t`
		case c >= utf8.RuneSelf:
			var r rune
			if r, n = utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)])); r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			esc = "\uFFFD"
		}
		b = append(b, s[start:i]...)
		if esc == "" {
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		b = append(b, esc...)
		i += n
		start = i
	}
	return append(append(b, s[start:]...), '"')
}

// checkRecord refuses what no broker would take.
func checkRecord(rec *kgo.Record, t kadm.TopicDetail) error {
	if _, ok := t.Partitions[rec.Partition]; !ok && rec.Partition >= 0 {
		return fail(codeNoPartition, "Partition not found.")
	}
	size := len(rec.Key) + len(rec.Value)
	for _, h := range rec.Headers {
		size += len(h.Key) + len(h.Value)
	}
	if size > maxRecord || len(rec.Headers) > maxHeaders {
		return fail(413, "The record is larger than %d bytes or has more than %d headers.", maxRecord, maxHeaders)
	}
	return nil
}

// parseRecord sets in rec what a line with format=records says. The topic and
// the offset of a line do not count, so that what was read can be sent back.
func parseRecord(line []byte, rec *kgo.Record) error {
	if len(line) == 0 || line[0] != '{' {
		return fail(codeJSON, "The record is not a JSON object.")
	}
	var key, key64, value, value64, headers []byte
	seen := map[string]bool{}
	err := members(line, func(name string, v []byte) (err error) {
		if seen[name] {
			return fail(codeJSON, "The field %q is there twice.", name)
		}
		seen[name] = true
		switch name {
		case "topic", "offset":
		case "key":
			key = v
		case "key_base64":
			key64 = v
		case "value":
			value = v
		case "value_base64":
			value64 = v
		case "headers":
			headers = v
		case "partition":
			rec.Partition, err = partitionField(v, rec.Partition)
		case "timestamp":
			rec.Timestamp, err = timeField(v)
		default:
			return fail(codeJSON, "A record has no field %.60q.", name)
		}
		return err
	})
	if err != nil {
		return err
	}
	if key != nil || key64 != nil {
		if rec.Key, err = bytesField("key", key, key64, false); err != nil {
			return err
		}
	}
	if rec.Value, err = bytesField("value", value, value64, true); err != nil || headers == nil {
		return err
	}
	return parseHeaders(headers, rec)
}

func isNull(v []byte) bool { return len(v) == 0 || v[0] == 'n' }

func partitionField(v []byte, def int32) (int32, error) {
	if isNull(v) {
		return def, nil
	}
	n, err := strconv.ParseInt(string(v), 10, 32)
	if err != nil || n < 0 {
		return 0, fail(codeJSON, "partition %.40s: want a number from 0.", v)
	}
	return int32(n), nil
}

func timeField(v []byte) (time.Time, error) {
	if isNull(v) {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil || n < 0 || n > maxMillis {
		return time.Time{}, fail(codeJSON, "timestamp %.40s: want milliseconds since 1970.", v)
	}
	return time.UnixMilli(n), nil
}

// bytesField gives the bytes of a field, of which v and b64 are the plain and
// the Base64 form, nil if absent. With any, JSON other than a string is its own
// bytes.
func bytesField(name string, v, b64 []byte, any bool) ([]byte, error) {
	if !isNull(b64) {
		if !isNull(v) {
			return nil, fail(codeJSON, "%s and %s_base64 exclude each other.", name, name)
		}
		s, err := unquote(name+"_base64", b64)
		if err != nil {
			return nil, err
		}
		n, err := base64.StdEncoding.Decode(s, s)
		if err != nil {
			return nil, fail(codePayload, "data=%.40s is not a base64 string.", b64)
		}
		return s[:n], nil
	}
	switch {
	case isNull(v):
		return nil, nil
	case any && v[0] != '"':
		return v, nil
	}
	return unquote(name, v)
}

// unquote gives the bytes of a JSON string, in memory of its own. Half a
// surrogate pair is refused: it has no UTF-8.
func unquote(name string, v []byte) ([]byte, error) {
	if v[0] != '"' {
		return nil, fail(codeJSON, "%s: want a string.", name)
	}
	in := v[1 : len(v)-1]
	if bytes.IndexByte(in, '\\') < 0 {
		return append(make([]byte, 0, len(in)), in...), nil
	}
	var s string
	if err := json.Unmarshal(v, &s); err != nil {
		return nil, fail(codeJSON, "%s: %v", name, err)
	}
	if bad := []byte("\uFFFD"); bytes.Count([]byte(s), bad) > bytes.Count(in, bad)+bytes.Count(bytes.ToLower(in), []byte(`\ufffd`)) {
		return nil, fail(codeJSON, "%s has half a surrogate pair; send the bytes in %s_base64.", name, name)
	}
	return []byte(s), nil
}

// parseHeaders adds the headers of [{"key":…,"value":…}].
func parseHeaders(list []byte, rec *kgo.Record) error {
	if isNull(list) {
		return nil
	}
	if list[0] != '[' {
		return fail(codeJSON, "headers: want an array.")
	}
	rec.Headers = rec.Headers[:len(rec.Headers):len(rec.Headers)] // the template's are shared
	return elements(list, func(item []byte) error {
		if item[0] != '{' {
			return fail(codeJSON, "headers: want an array of objects.")
		}
		if len(rec.Headers) == maxHeaders {
			return fail(codeJSON, "The record has more than %d headers.", maxHeaders)
		}
		var key, value, value64 []byte
		err := members(item, func(name string, v []byte) error {
			to := map[string]*[]byte{"key": &key, "value": &value, "value_base64": &value64}[name]
			switch {
			case to == nil:
				return fail(codeJSON, "A header has no field %.60q.", name)
			case *to != nil:
				return fail(codeJSON, "The field %q of a header is there twice.", name)
			}
			*to = v
			return nil
		})
		if err != nil {
			return err
		}
		if isNull(key) {
			return fail(codeJSON, "A header has no key.")
		}
		k, err := unquote("key", key)
		if err != nil {
			return err
		}
		v, err := bytesField("value", value, value64, false)
		if err != nil {
			return err
		}
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: string(k), Value: v})
		return nil
	})
}

// members calls f for each member of a JSON object, with its value as written.
// The object must be valid JSON.
func members(obj []byte, f func(name string, value []byte) error) error {
	for i := space(obj, 1); obj[i] != '}'; {
		end := skip(obj, i)
		name, err := unquote("name", obj[i:end])
		if err != nil {
			return err
		}
		i = space(obj, space(obj, end)+1) // behind the colon
		end = skip(obj, i)
		if err := f(string(name), obj[i:end]); err != nil {
			return err
		}
		if i = space(obj, end); obj[i] == ',' {
			i = space(obj, i+1)
		}
	}
	return nil
}

// elements calls f for each element of a JSON array, which must be valid.
func elements(list []byte, f func(value []byte) error) error {
	for i := space(list, 1); list[i] != ']'; {
		end := skip(list, i)
		if err := f(list[i:end]); err != nil {
			return err
		}
		if i = space(list, end); list[i] == ',' {
			i = space(list, i+1)
		}
	}
	return nil
}

func space(b []byte, i int) int {
	for b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r' {
		i++
	}
	return i
}

// skip returns the end of the value at i of valid JSON.
func skip(b []byte, i int) int {
	for depth := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		default:
			if depth > 0 {
				continue
			}
			if n := bytes.IndexAny(b[i:], ",]} \t\r\n"); n >= 0 { // a number, true, false, null
				return i + n
			}
			return len(b)
		}
		if depth == 0 {
			return i + 1
		}
	}
	return i
}

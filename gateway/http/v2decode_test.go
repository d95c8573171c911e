package httpgate

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func newHeld(n int64) *held {
	b := &budget{}
	b.left.Store(n)
	return &held{from: b}
}

// FuzzV2Decode: whatever comes, the decoder ends with records or an error of
// the dialect, gives its memory back, and what it takes is what
// encoding/json finds there.
func FuzzV2Decode(f *testing.F) {
	for _, s := range []string{
		`{"records":[{"key":"a2V5","value":"dmFs","partition":1,"timestamp":1,"headers":[{"key":"h","value":"aA=="}]},{"value":null}],"key_schema_id":null}`,
		`{"records":[{"value":{"a":[1,2.5e3,"\u00e9"]}},{}]}`, `{"records":[{"value":"x"}`, `[[[[`, "{\"records\":[{\"value\":\"\xff\"}]}", ``, `{"records":[1]}`, `{"a":1}`,
		`{"records":null}`, `{"records":[{"value":1}]}{}`, `{"value_schema":"{\"type\":\"int\"}","records":[{"partition":-1,"headers":null}]}`, `{"records":[{"value":1,"value":2}]}`,
	} {
		for format := range uint8(3) {
			f.Add(s, format)
		}
	}
	f.Fuzz(func(t *testing.T, body string, format uint8) {
		media := []string{mediaV2Binary, mediaV2JSON, mediaV2Text}[format%3]
		h := newHeld(1 << 30)
		recs, err := decodeV2(strings.NewReader(body), media, h)
		if h.n < 0 || h.n+h.from.left.Load() != 1<<30 {
			t.Fatalf("%d bytes held, %d left", h.n, h.from.left.Load())
		}
		if err != nil {
			e, ok := errors.AsType[*apiError](err)
			if !ok || e.status() != 422 && e.Code != 413 {
				t.Fatalf("error %v", err)
			}
			return
		}
		var want struct {
			Records []struct {
				Key, Value json.RawMessage
				Headers    []struct{ Value *string }
			}
		}
		if err := json.Unmarshal([]byte(body), &want); err != nil {
			t.Fatalf("decoded what is no JSON: %v", err)
		}
		if len(want.Records) != len(recs) {
			t.Fatalf("%d records, want %d", len(recs), len(want.Records))
		}
		for i, r := range recs {
			w := want.Records[i]
			if len(r.rec.Headers) != len(w.Headers) {
				t.Fatalf("record %d has %d headers, want %d", i, len(r.rec.Headers), len(w.Headers))
			}
			sameEmbedded(t, media, r.rec.Key, w.Key)
			sameEmbedded(t, media, r.rec.Value, w.Value)
		}
	})
}

func sameEmbedded(t *testing.T, media string, got []byte, want json.RawMessage) {
	t.Helper()
	if len(want) == 0 || string(want) == "null" {
		if got != nil {
			t.Fatalf("%q, want none", got)
		}
		return
	}
	if got == nil {
		t.Fatalf("none, want %s", want)
	}
	if media == mediaV2JSON {
		var a, b any
		if json.Unmarshal(got, &a) == nil != (json.Unmarshal(want, &b) == nil) || !utf8.Valid(got) {
			t.Fatalf("%s, want %s", got, want)
		}
		return
	}
	var s string
	if err := json.Unmarshal(want, &s); err != nil {
		t.Fatalf("%q from %s", got, want)
	}
	if media == mediaV2Binary {
		enc := base64.StdEncoding
		if !strings.Contains(s, "=") {
			enc = base64.RawStdEncoding
		}
		b, err := enc.DecodeString(s)
		if err != nil {
			b, _ = base64.StdEncoding.DecodeString(s)
		}
		s = string(b)
	}
	if string(got) != s {
		t.Fatalf("%q, want %q", got, s)
	}
}

// TestV2DecodeBudget: a body takes no more memory than the budget has, and
// others are told to come again.
func TestV2DecodeBudget(t *testing.T) {
	for _, body := range []string{
		`{"records":[{"value":"` + strings.Repeat("x", 1<<20) + `"}]}`,
		`{"records":[` + strings.Repeat(`{},`, 2000) + `{}]}`,
		`{"records":[{"headers":[` + strings.Repeat(`{},`, 5000) + `{}]}]}`,
		`{"value_schema":"` + strings.Repeat("x", 1<<20) + `","records":[{}]}`,
	} {
		h := newHeld(1 << 20)
		if _, err := decodeV2(strings.NewReader(body), mediaV2JSON, h); !errors.Is(err, errBusy) {
			t.Errorf("%.40s…: %v, want %v", body, err, errBusy)
		}
		h.release()
		if left := h.from.left.Load(); left != 1<<20 {
			t.Errorf("%.40s…: %d bytes left after it", body, left)
		}
		h = newHeld(64 << 20)
		if _, err := decodeV2(strings.NewReader(body), mediaV2JSON, h); err != nil {
			t.Errorf("%.40s…: %v", body, err)
		}
	}
}

// TestV2DecodeCut: a body that ends at any byte is refused, and so is one
// whose connection breaks.
func TestV2DecodeCut(t *testing.T) {
	const body = `{"key_schema":null,"records":[{"key":"aA==","value":"aA==","headers":[{"key":"a","value":"aA=="}],"partition":1},{"value":null}]}`
	for i := range len(body) {
		_, err := decodeV2(strings.NewReader(body[:i]), mediaV2Binary, newHeld(1<<20))
		if e, ok := errors.AsType[*apiError](err); !ok || e.Code != codeJSON {
			t.Errorf("%s: %v", body[:i], err)
		}
		broken := io.MultiReader(strings.NewReader(body[:i]), brokenReader{})
		if _, err := decodeV2(broken, mediaV2Binary, newHeld(1<<20)); !errors.Is(err, errTooLarge) {
			t.Errorf("%s, then an error: %v", body[:i], err)
		}
	}
	if recs, err := decodeV2(strings.NewReader(body), mediaV2Binary, newHeld(1<<20)); err != nil || len(recs) != 2 {
		t.Errorf("%v, %v", recs, err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errTooLarge }

// TestNegotiate: the media type with the most weight, the server's order among
// equals.
func TestNegotiate(t *testing.T) {
	offers := []string{"application/a", "application/b"}
	for accept, want := range map[string]string{
		"*/*": "application/a", "application/b": "application/b", "application/b, application/*;q=0.5": "application/b",
		"application/*;q=1, application/a;q=0.1": "application/b", "application/*, application/a;q=0": "application/b",
		"APPLICATION/B;q=0.3,application/a;q=0.2": "application/b", "text/*": "", "application/a;q=2": "", "": "", ",,;q=": "", "application/b ;charset=x; q=0.001": "application/b",
	} {
		if got, ok := negotiate([]string{accept}, offers); got != want || ok != (want != "") {
			t.Errorf("Accept %q: %q", accept, got)
		}
	}
	if got, ok := negotiate(nil, offers); !ok || got != "application/a" {
		t.Errorf("no Accept: %q", got)
	}
}

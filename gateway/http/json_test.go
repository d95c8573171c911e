package httpgate

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
)

var someJSON = []string{
	``, ` `, `{}`, ` [ ] `, `{"a":1}`, "{\r\n\t\"a\" : [1 , -2.5e+3,0,-0.1E-9 , true,false,null,\"\"]}\n", `"\u00e9\"\\\/\b\f\n\r\t"`, "\"\xff\"", `"é€😀"`, `"\uD800"`,
	`01`, `-`, `1.`, `.5`, `1e`, `1e+`, `+1`, `0x1`, `tru`, `nul`, `falsey`, `"a`, `"`, `"\`, `"\u12`, `"\u12g4"`, `"\x"`, "\"\n\"", "\"\x00\"", `{`, `[`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{a:1}`, `{1:1}`, `[1,]`, `[,1]`, `[1 2]`, `[1}`, `{"a":1]`, `1 2`, `{}{}`, `]`, `}`, `,`, "\x00", "\ufeff1",
	`{"time":"2026-01-02T03:04:05Z","message":"seventeen bytes and more \\ with \" in it","list":[[[{"x":{}}]]]}`,
	strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001), strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000),
	strings.Repeat(`[{"a":`, 5_000) + "[]" + strings.Repeat("}]", 5_000), strings.Repeat("[", 10_001),
}

// TestValidJSON: what encoding/json takes is taken, and nothing else, also with
// a byte changed, left out or cut off.
func TestValidJSON(t *testing.T) {
	check := func(b []byte) {
		if got, want := validJSON(b), json.Valid(b); got != want {
			t.Fatalf("%.200q: %v, encoding/json says %v", b, got, want)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	const odd = "\"\\{}[],:0123456789.eE+-tfnula \n\x00\x1f\x7f\x80\xff"
	for _, s := range someJSON {
		check([]byte(s))
		for i := range min(len(s), 200) {
			check([]byte(s[:i]))
			check([]byte(s[i:]))
			check([]byte(s[:i] + s[i+1:]))
			for range 20 {
				b := []byte(s)
				b[i] = odd[random.IntN(len(odd))]
				check(b)
			}
		}
	}
}

// FuzzValidJSON is TestValidJSON with any bytes.
func FuzzValidJSON(f *testing.F) {
	for _, s := range someJSON {
		if len(s) < 1000 {
			f.Add([]byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, want := validJSON(b), json.Valid(b); got != want {
			t.Fatalf("%v, encoding/json says %v", got, want)
		}
	})
}

// TestPlain: every byte, wherever it stands, ends what is plain or does not.
func TestPlain(t *testing.T) {
	for c := range 256 {
		for size := range 20 {
			for at := range size {
				b := bytes.Repeat([]byte{'x'}, size)
				b[at] = byte(c)
				if at+1 < size {
					b[at+1] = '"' // a borrow of the first must not hide the second, nor show before it
				}
				want, ascii := at, at
				if c >= 0x20 && c != '"' && c != '\\' {
					if want = min(at+1, size); c < 0x80 {
						ascii = want
					}
				}
				if got := plain(b, 0); got != want {
					t.Fatalf("%q: %d, want %d", b, got, want)
				}
				if got := plain(string(b), highBits); got != ascii {
					t.Fatalf("%q: %d of ASCII, want %d", b, got, ascii)
				}
			}
		}
	}
}

func BenchmarkValidJSON(b *testing.B) {
	line := []byte(`{"time":"2026-01-02T03:04:05.006Z","level":"info","service":"checkout","user":"8f3a","took_us":123456,"message":"` + strings.Repeat("upstream answered late ", 36) + `"}`)
	for name, valid := range map[string]func([]byte) bool{"ours": validJSON, "encoding-json": json.Valid} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(line)))
			for b.Loop() {
				valid(line)
			}
		})
	}
	b.Run("append", func(b *testing.B) {
		var buf []byte
		b.SetBytes(int64(len(line)))
		for b.Loop() {
			buf = appendString(buf[:0], line)
		}
	})
}

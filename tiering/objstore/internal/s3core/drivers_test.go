package s3core_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/internal/s3core"
	"github.com/cirrolog/cirrolog/tiering/objstore/minio"
	"github.com/cirrolog/cirrolog/tiering/objstore/s3"
)

// The drivers against a server that does what is told: what they send, and
// what they make of answers that a healthy server does not give.

const attempt = 300 * time.Millisecond // Options.Timeout of the tests

type bucket interface {
	objstore.Bucket
	io.Closer
}

func drivers() map[string]func(s3core.Options) (bucket, error) {
	return map[string]func(s3core.Options) (bucket, error){
		"s3":    func(o s3core.Options) (bucket, error) { return s3.New(context.Background(), o) },
		"minio": func(o s3core.Options) (bucket, error) { return minio.New(o) },
	}
}

// each runs f for both drivers on a server with handler h; h also gets the
// number of the request, from 1. requests tells how many there were.
func each(t *testing.T, h func(w http.ResponseWriter, r *http.Request, n int64), f func(t *testing.T, b bucket, requests *atomic.Int64)) {
	t.Helper()
	eachOf(t, s3core.Options{}, h, f)
}

// eachOf is each with options for the sizes of puts.
func eachOf(t *testing.T, o s3core.Options, h func(w http.ResponseWriter, r *http.Request, n int64), f func(t *testing.T, b bucket, requests *atomic.Int64)) {
	t.Helper()
	for name, open := range drivers() {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h(w, r, requests.Add(1))
			}))
			t.Cleanup(srv.Close)
			b, err := open(s3core.Options{
				Bucket: "bkt", Endpoint: srv.URL, Region: "us-east-1", AccessKey: "key", SecretKey: "secretsecret", Timeout: attempt, KMSKeyID: "my-key",
				SinglePut: o.SinglePut, PartSize: o.PartSize,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			f(t, b, &requests)
		})
	}
}

func answer(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>told so</Message></Error>`, code)
}

func put(b bucket, opts objstore.PutOptions) error {
	_, err := b.Put(context.Background(), "a/k", strings.NewReader("body"), opts)
	return err
}

func TestWhatAPutSends(t *testing.T) {
	each(t, func(w http.ResponseWriter, r *http.Request, _ int64) {
		body, err := io.ReadAll(r.Body)
		sum := s3core.EncodeCRC(crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
		for name, want := range map[string]string{
			"X-Amz-Content-Sha256":                        "UNSIGNED-PAYLOAD",
			"X-Amz-Checksum-Crc32c":                       sum,
			"If-None-Match":                               "*",
			"Content-Length":                              "4",
			"X-Amz-Server-Side-Encryption":                "aws:kms",
			"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "my-key",
			"Content-Encoding":                            "",
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("header %s is %q, want %q", name, got, want)
			}
		}
		if r.Method != http.MethodPut || r.URL.Path != "/bkt/a/k" || string(body) != "body" || err != nil {
			t.Errorf("%s %s with %q, %v", r.Method, r.URL.Path, body, err)
		}
		w.Header().Set("ETag", `"tag"`)
	}, func(t *testing.T, b bucket, _ *atomic.Int64) {
		info, err := b.Put(context.Background(), "a/k", strings.NewReader("body"), objstore.PutOptions{IfNoneMatch: true})
		if err != nil || info.ETag != "tag" || info.Size != 4 {
			t.Fatalf("%+v, %v", info, err)
		}
	})
}

func TestPutAnswers(t *testing.T) {
	for _, c := range []struct {
		name     string
		status   int
		code     string
		want     error
		requests int64
	}{
		{"precondition", 412, "PreconditionFailed", objstore.ErrPrecondition, 1},
		{"absent", 404, "NoSuchKey", objstore.ErrNotFound, 1},
		{"no bucket", 404, "NoSuchBucket", objstore.ErrNoBucket, 1},
		{"slow down", 503, "SlowDown", objstore.ErrThrottled, 1},
		{"too many", 429, "TooManyRequests", objstore.ErrThrottled, 1},
		{"internal", 500, "InternalError", objstore.ErrUnknown, 1},
		{"gateway timeout", 504, "", objstore.ErrUnknown, 1},
		{"denied", 403, "AccessDenied", objstore.ErrDenied, 1},
		{"expired", 400, "ExpiredToken", objstore.ErrDenied, 1},
		{"checksum", 400, "XAmzContentChecksumMismatch", objstore.ErrChecksum, 1},
		{"digest", 400, "BadDigest", objstore.ErrChecksum, 1},
		{"conflict", 409, "ConditionalRequestConflict", objstore.ErrThrottled, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(w http.ResponseWriter, r *http.Request, _ int64) {
				_, _ = io.Copy(io.Discard, r.Body)
				answer(w, c.status, c.code)
			}, func(t *testing.T, b bucket, requests *atomic.Int64) {
				if err := put(b, objstore.PutOptions{IfNoneMatch: true}); !errors.Is(err, c.want) {
					t.Fatalf("got %v, want %v", err, c.want)
				}
				if n := requests.Load(); n != c.requests {
					t.Fatalf("%d requests, want %d", n, c.requests)
				}
			})
		})
	}
}

// A large put is made of parts, and its last request tells what became of it, also by an error in
// the body of a success. The parts of one that failed are given up.
func TestLargePutAnswers(t *testing.T) {
	const started = `<InitiateMultipartUploadResult><Bucket>bkt</Bucket><Key>a/k</Key><UploadId>up</UploadId></InitiateMultipartUploadResult>`
	const whole = `<CompleteMultipartUploadResult><Bucket>bkt</Bucket><Key>a/k</Key><ETag>"whole"</ETag></CompleteMultipartUploadResult>`
	for name, c := range map[string]struct {
		status   int
		body     string
		part     int // whose request is refused
		want     error
		complete int64 // requests to complete
	}{
		"done":                 {200, whole, 0, nil, 1},
		"error in a success":   {200, `<Error><Code>InternalError</Code><Message>told so</Message></Error>`, 0, objstore.ErrUnknown, 1},
		"nothing in it":        {200, "", 0, objstore.ErrUnknown, 1},
		"upload is gone":       {404, `<Error><Code>NoSuchUpload</Code></Error>`, 0, objstore.ErrUnknown, 1},
		"another one is there": {412, `<Error><Code>PreconditionFailed</Code></Error>`, 0, objstore.ErrPrecondition, 1},
		"a part is refused":    {200, whole, 2, objstore.ErrDenied, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var parts, completed, aborted atomic.Int64
			eachOf(t, s3core.Options{SinglePut: 1 << 20, PartSize: s3core.MinPart}, func(w http.ResponseWriter, r *http.Request, _ int64) {
				_, _ = io.Copy(io.Discard, r.Body)
				q := r.URL.Query()
				switch {
				case r.Method == http.MethodPost && q.Has("uploads"):
					parts.Store(0)
					completed.Store(0)
					aborted.Store(0)
					fmt.Fprint(w, started)
				case r.Method == http.MethodPut && q.Get("partNumber") == fmt.Sprint(c.part):
					answer(w, 403, "AccessDenied")
				case r.Method == http.MethodPut:
					parts.Add(1)
					w.Header().Set("ETag", `"part"`)
				case r.Method == http.MethodPost:
					completed.Add(1)
					w.WriteHeader(c.status)
					fmt.Fprint(w, c.body)
				case r.Method == http.MethodDelete && q.Get("uploadId") == "up":
					aborted.Add(1)
					w.WriteHeader(http.StatusNoContent)
				default:
					t.Errorf("%s %s", r.Method, r.URL)
				}
			}, func(t *testing.T, b bucket, _ *atomic.Int64) {
				info, err := b.Put(context.Background(), "a/k", bytes.NewReader(make([]byte, s3core.MinPart+100)), objstore.PutOptions{IfNoneMatch: true})
				if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
					t.Fatalf("got %v, want %v", err, c.want)
				}
				if err == nil && (info.ETag != "whole" || parts.Load() != 2) {
					t.Errorf("%+v of %d parts", info, parts.Load())
				}
				if completed.Load() != c.complete || aborted.Load() == 0 {
					t.Errorf("%d requests to complete, %d to give the parts up", completed.Load(), aborted.Load())
				}
			})
		})
	}
}

func TestPutConflictThenSuccess(t *testing.T) {
	each(t, func(w http.ResponseWriter, r *http.Request, n int64) {
		body, _ := io.ReadAll(r.Body)
		if string(body) != "body" {
			t.Errorf("request %d sent %q", n, body)
		}
		if n < 3 {
			answer(w, 409, "ConditionalRequestConflict")
			return
		}
		w.Header().Set("ETag", `"x"`)
	}, func(t *testing.T, b bucket, requests *atomic.Int64) {
		if err := put(b, objstore.PutOptions{IfNoneMatch: true}); err != nil || requests.Load() != 3 {
			t.Fatalf("%v after %d requests", err, requests.Load())
		}
	})
}

func TestPutWithoutAnswer(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	for name, h := range map[string]func(w http.ResponseWriter, r *http.Request){
		"hang": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-r.Context().Done():
			case <-done:
			}
		},
		"cut": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(w http.ResponseWriter, r *http.Request, _ int64) { h(w, r) }, func(t *testing.T, b bucket, requests *atomic.Int64) {
				start := time.Now()
				err := put(b, objstore.PutOptions{IfNoneMatch: true})
				if !errors.Is(err, objstore.ErrUnknown) || requests.Load() != 1 {
					t.Fatalf("%v after %d requests", err, requests.Load())
				}
				if d := time.Since(start); d > 10*attempt {
					t.Fatalf("took %v", d)
				}
			})
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		each(t, func(_ http.ResponseWriter, r *http.Request, _ int64) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, func(t *testing.T, b bucket, _ *atomic.Int64) {
			ctx, cancel := context.WithTimeout(context.Background(), attempt/5)
			defer cancel()
			_, err := b.Put(ctx, "k", strings.NewReader("x"), objstore.PutOptions{})
			if !errors.Is(err, objstore.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v", err)
			}
		})
	})
}

func TestRefusedConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	_ = l.Close()
	for name, open := range drivers() {
		t.Run(name, func(t *testing.T) {
			b, err := open(s3core.Options{Bucket: "bkt", Endpoint: url, AccessKey: "key", SecretKey: "secretsecret"})
			if err != nil {
				t.Fatal(err)
			}
			if err := put(b, objstore.PutOptions{}); !errors.Is(err, objstore.ErrThrottled) {
				t.Fatalf("got %v, want %v: nothing was done", err, objstore.ErrThrottled)
			}
		})
	}
}

// object answers a get, or a range of it, with data.
func object(w http.ResponseWriter, r *http.Request, data []byte) {
	w.Header().Set("ETag", `"x"`)
	http.ServeContent(w, r, "", time.Now(), bytes.NewReader(data))
}

func TestGetTriesAgain(t *testing.T) {
	each(t, func(w http.ResponseWriter, r *http.Request, n int64) {
		switch n {
		case 1:
			answer(w, 503, "SlowDown")
		case 2:
			panic(http.ErrAbortHandler)
		default:
			object(w, r, []byte("0123456789"))
		}
	}, func(t *testing.T, b bucket, _ *atomic.Int64) {
		r, info, err := b.Get(context.Background(), "k", 3, 4)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || string(got) != "3456" || info.Size != 10 {
			t.Fatalf("%q of %d, %v", got, info.Size, err)
		}
	})
}

func TestGetBodies(t *testing.T) {
	part := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "1000")
		w.Header().Set("ETag", `"x"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		_, _ = w.Write(make([]byte, 10))
		w.(http.Flusher).Flush()
	}
	for name, h := range map[string]func(w http.ResponseWriter, r *http.Request){
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			part(w)
			panic(http.ErrAbortHandler)
		},
		"stalled": func(w http.ResponseWriter, r *http.Request) {
			part(w)
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(w http.ResponseWriter, r *http.Request, _ int64) { h(w, r) }, func(t *testing.T, b bucket, _ *atomic.Int64) {
				r, _, err := b.Get(context.Background(), "k", 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				got, err := io.ReadAll(r)
				if !errors.Is(err, objstore.ErrUnknown) || len(got) > 10 {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
			})
		})
	}
	t.Run("slow reader", func(t *testing.T) { // is no fault of the store
		data := bytes.Repeat([]byte("x"), 8<<20)
		each(t, func(w http.ResponseWriter, r *http.Request, _ int64) { object(w, r, data) }, func(t *testing.T, b bucket, _ *atomic.Int64) {
			r, _, err := b.Get(context.Background(), "k", 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			time.Sleep(attempt + attempt/3)
			if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(data)) {
				t.Fatalf("%d bytes, %v", n, err)
			}
		})
	})
	t.Run("range ignored", func(t *testing.T) {
		each(t, func(w http.ResponseWriter, r *http.Request, _ int64) {
			r.Header.Del("Range")
			object(w, r, []byte("0123456789"))
		}, func(t *testing.T, b bucket, _ *atomic.Int64) {
			if _, _, err := b.Get(context.Background(), "k", 3, 4); !errors.Is(err, objstore.ErrUnsuitable) {
				t.Fatalf("got %v", err)
			}
		})
	})
}

func TestDeleteManyInPart(t *testing.T) {
	each(t, func(w http.ResponseWriter, r *http.Request, _ int64) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?><DeleteResult>`+
			`<Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error>`+
			`<Error><Key>c</Key><Code>SlowDown</Code><Message>later</Message></Error></DeleteResult>`)
	}, func(t *testing.T, b bucket, _ *atomic.Int64) {
		failed, err := b.DeleteMany(context.Background(), []string{"a", "b", "c"})
		if err != nil || len(failed) != 2 || !errors.Is(failed["b"], objstore.ErrDenied) || !errors.Is(failed["c"], objstore.ErrThrottled) {
			t.Fatalf("%v, %v", failed, err)
		}
	})
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]s3core.Options{
		"no bucket":   {},
		"no scheme":   {Bucket: "b", Endpoint: "host:9000"},
		"with a path": {Bucket: "b", Endpoint: "http://host/x"},
		"half a key":  {Bucket: "b", AccessKey: "k"},
		"small parts": {Bucket: "b", PartSize: 1},
	} {
		if _, err := o.Check(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	o, err := s3core.Options{Bucket: "b", Endpoint: "https://s3.eu-central-1.amazonaws.com"}.Check()
	if err != nil || o.Style != s3core.StyleHost || o.Custom() {
		t.Errorf("Amazon's endpoint: %+v, %v", o, err)
	}
	t.Setenv("AWS_ENDPOINT_URL", "http://env:9000/")
	if o, err = (s3core.Options{Bucket: "b"}).Check(); err != nil || o.Endpoint != "http://env:9000" || o.Style != s3core.StylePath {
		t.Errorf("endpoint of the environment: %+v, %v", o, err)
	}
	if _, err := (s3core.Options{Bucket: "b", CAFile: "/does/not/exist"}).Transport(); err == nil {
		t.Error("a missing CA file is no error")
	}
}

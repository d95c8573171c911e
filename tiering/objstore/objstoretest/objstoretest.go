// Package objstoretest is the conformance suite of bucket drivers. A driver's
// test calls Run; what the suite asks is what tiering and metadata rely on.
package objstoretest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

const testTimeout = 60 * time.Second

// Run checks that the bucket open returns keeps the contract of objstore. open
// is called once for each subtest; the bucket may hold other objects, every
// subtest works below a random prefix of its own and removes what it put. except
// names subtests that are left out for a store that is known to fail them.
func Run(t *testing.T, open func(t *testing.T) objstore.Bucket, except ...string) {
	t.Helper()
	left := map[string]bool{}
	for _, name := range except {
		left[name] = true
	}
	for _, c := range []struct {
		name string
		f    func(t *testing.T, ctx context.Context, b objstore.Bucket)
	}{
		{"put and get", testPutGet},
		{"ranges", testRanges},
		{"absent", testAbsent},
		{"empty object", testEmpty},
		{"create only", testCreateOnly},
		{"compare and swap", testCompareAndSwap},
		{"race of creators", testCreateRace},
		{"race of swappers", testSwapRace},
		{"checksum", testChecksum},
		{"checksum of a replacement", testChecksumReplace},
		{"list order and pages", testList},
		{"list of escaped keys", testListEscaped},
		{"list prefixes", testListPrefixes},
		{"keys", testKeys},
		{"delete", testDelete},
		{"delete many", testDeleteMany},
		{"large object", testLarge},
		{"rewound body", testBodyPosition},
		{"cancelled", testCancelled},
		{"invalid", testInvalid},
		{"put create only", testPutCreateOnly},
		{"probe", testProbe},
	} {
		if left[c.name] {
			delete(left, c.name)
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			defer cancel()
			b := objstore.Prefix(open(t), "test-"+strings.ToLower(rand.Text()[:12])+"/")
			defer clean(t, ctx, b)
			c.f(t, ctx, b)
		})
	}
	for name := range left {
		t.Errorf("there is no subtest %q to leave out", name)
	}
}

func clean(t *testing.T, ctx context.Context, b objstore.Bucket) {
	t.Helper()
	for {
		list, more, err := b.List(ctx, "", "", objstore.MaxKeys)
		if err != nil {
			t.Errorf("clean up: list: %v", err)
			return
		}
		keys := make([]string, len(list))
		for i, o := range list {
			keys[i] = o.Key
		}
		if len(keys) > 0 {
			if failed, err := b.DeleteMany(ctx, keys); err != nil || len(failed) > 0 {
				t.Errorf("clean up: delete: %v, %v", failed, err)
				return
			}
		}
		if !more {
			return
		}
	}
}

func put(t *testing.T, ctx context.Context, b objstore.Bucket, key, data string) objstore.ObjectInfo {
	t.Helper()
	info, err := b.Put(ctx, key, strings.NewReader(data), objstore.PutOptions{})
	if err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
	return info
}

func get(ctx context.Context, b objstore.Bucket, key string, offset, length int64) ([]byte, objstore.ObjectInfo, error) {
	r, info, err := b.Get(ctx, key, offset, length)
	if err != nil {
		return nil, info, err
	}
	data, err := io.ReadAll(r)
	return data, info, errors.Join(err, r.Close())
}

func want(t *testing.T, ctx context.Context, b objstore.Bucket, key, data string) {
	t.Helper()
	got, info, err := get(ctx, b, key, 0, -1)
	if err != nil || string(got) != data {
		t.Fatalf("get %q: %q, %v; want %q", key, short(got), err, short([]byte(data)))
	}
	if info.Size != int64(len(data)) {
		t.Fatalf("get %q: info says %d bytes, want %d", key, info.Size, len(data))
	}
}

func short(b []byte) []byte { return b[:min(len(b), 64)] }

func wantErr(t *testing.T, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: got %v, want %v", what, err, target)
	}
}

func testPutGet(t *testing.T, ctx context.Context, b objstore.Bucket) {
	before := time.Now()
	info := put(t, ctx, b, "k", "first")
	if info.Key != "k" || info.Size != 5 || info.ETag == "" {
		t.Fatalf("put answered %+v", info)
	}
	want(t, ctx, b, "k", "first")
	head, err := b.Head(ctx, "k")
	if err != nil || head.Key != "k" || head.Size != 5 || head.ETag != info.ETag {
		t.Fatalf("head %+v, %v; put answered %+v", head, err, info)
	}
	if d := head.Modified.Sub(before); d < -5*time.Minute || d > 5*time.Minute {
		t.Fatalf("modified %v is %v from now", head.Modified, d)
	}
	second := put(t, ctx, b, "k", "second")
	if second.ETag == info.ETag {
		t.Fatal("another content has the same etag")
	}
	want(t, ctx, b, "k", "second")
	_, got, err := get(ctx, b, "k", 0, -1)
	if err != nil || got.ETag != second.ETag || got.Key != "k" {
		t.Fatalf("get answered %+v, %v; want etag %s", got, err, second.ETag)
	}
}

func testRanges(t *testing.T, ctx context.Context, b objstore.Bucket) {
	const data = "0123456789"
	put(t, ctx, b, "k", data)
	for _, c := range []struct {
		offset, length int64
		want           string
	}{
		{0, -1, data}, {0, 10, data}, {0, 1, "0"}, {3, 4, "3456"}, {9, 1, "9"},
		{5, -1, "56789"}, {8, 100, "89"}, {0, 100, data}, {4, 1 << 62, "456789"}, {2, 0, ""},
	} {
		got, info, err := get(ctx, b, "k", c.offset, c.length)
		if err != nil || string(got) != c.want {
			t.Errorf("get (%d, %d): %q, %v; want %q", c.offset, c.length, got, err, c.want)
		}
		if err == nil && info.Size != int64(len(data)) {
			t.Errorf("get (%d, %d): size %d is not the object's", c.offset, c.length, info.Size)
		}
	}
	for _, c := range [][2]int64{{10, -1}, {10, 1}, {11, 5}, {1 << 40, -1}, {10, 0}} {
		_, _, err := get(ctx, b, "k", c[0], c[1])
		wantErr(t, fmt.Sprintf("get (%d, %d)", c[0], c[1]), err, objstore.ErrRange)
	}
}

func testAbsent(t *testing.T, ctx context.Context, b objstore.Bucket) {
	_, _, err := get(ctx, b, "absent", 0, -1)
	wantErr(t, "get", err, objstore.ErrNotFound)
	_, _, err = get(ctx, b, "absent", 5, 5)
	wantErr(t, "ranged get", err, objstore.ErrNotFound)
	_, err = b.Head(ctx, "absent")
	wantErr(t, "head", err, objstore.ErrNotFound)
	list, more, err := b.List(ctx, "absent/", "", 10)
	if err != nil || more || len(list) != 0 {
		t.Fatalf("list: %v, %v, %v", list, more, err)
	}
	// A prefix of a key is no key.
	put(t, ctx, b, "a/b/c", "x")
	_, err = b.Head(ctx, "a/b")
	wantErr(t, "head of a key's prefix", err, objstore.ErrNotFound)
}

func testEmpty(t *testing.T, ctx context.Context, b objstore.Bucket) {
	if info := put(t, ctx, b, "empty", ""); info.Size != 0 || info.ETag == "" {
		t.Fatalf("put answered %+v", info)
	}
	want(t, ctx, b, "empty", "")
	_, _, err := get(ctx, b, "empty", 0, 1)
	wantErr(t, "ranged get of nothing", err, objstore.ErrRange)
	_, err = b.Put(ctx, "empty", strings.NewReader("x"), objstore.PutOptions{IfNoneMatch: true})
	wantErr(t, "create-only put over an empty object", err, objstore.ErrPrecondition)
}

func testCreateOnly(t *testing.T, ctx context.Context, b objstore.Bucket) {
	opts := objstore.PutOptions{IfNoneMatch: true}
	if _, err := b.Put(ctx, "k", strings.NewReader("mine"), opts); err != nil {
		t.Fatalf("first: %v", err)
	}
	_, err := b.Put(ctx, "k", strings.NewReader("other"), opts)
	wantErr(t, "second", err, objstore.ErrPrecondition)
	want(t, ctx, b, "k", "mine")
	if err := b.Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(ctx, "k", strings.NewReader("again"), opts); err != nil {
		t.Fatalf("after delete: %v", err)
	}
	want(t, ctx, b, "k", "again")
}

func testCompareAndSwap(t *testing.T, ctx context.Context, b objstore.Bucket) {
	_, err := b.Put(ctx, "k", strings.NewReader("x"), objstore.PutOptions{IfMatch: "0123456789abcdef0123456789abcdef"})
	wantErr(t, "swap of an absent object", err, objstore.ErrNotFound)
	first := put(t, ctx, b, "k", "first")
	second, err := b.Put(ctx, "k", strings.NewReader("second"), objstore.PutOptions{IfMatch: first.ETag})
	if err != nil {
		t.Fatalf("swap: %v", err)
	}
	_, err = b.Put(ctx, "k", strings.NewReader("third"), objstore.PutOptions{IfMatch: first.ETag})
	wantErr(t, "swap with an old etag", err, objstore.ErrPrecondition)
	want(t, ctx, b, "k", "second")
	list, _, err := b.List(ctx, "k", "", 1)
	if err != nil || len(list) != 1 {
		t.Fatalf("list: %v, %v", list, err)
	}
	if list[0].ETag != second.ETag {
		t.Fatalf("list says etag %s, put said %s", list[0].ETag, second.ETag)
	}
	if _, err = b.Put(ctx, "k", strings.NewReader("fourth"), objstore.PutOptions{IfMatch: list[0].ETag}); err != nil {
		t.Fatalf("swap with the list's etag: %v", err)
	}
}

func testCreateRace(t *testing.T, ctx context.Context, b objstore.Bucket) {
	const racers = 32
	for round := range 3 {
		key := fmt.Sprintf("race/%d", round)
		var wg sync.WaitGroup
		var won atomic.Int32
		var winner atomic.Int32
		for i := range racers {
			wg.Go(func() {
				for {
					_, err := b.Put(ctx, key, strings.NewReader(fmt.Sprint("racer ", i)), objstore.PutOptions{IfNoneMatch: true})
					switch {
					case err == nil:
						won.Add(1)
						winner.Store(int32(i))
					case errors.Is(err, objstore.ErrThrottled):
						continue
					case !errors.Is(err, objstore.ErrPrecondition):
						t.Errorf("racer: %v", err)
					}
					return
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d creators won", won.Load())
		}
		want(t, ctx, b, key, fmt.Sprint("racer ", winner.Load()))
	}
}

// testSwapRace increments a counter from several goroutines; none may be lost.
func testSwapRace(t *testing.T, ctx context.Context, b objstore.Bucket) {
	const racers, each = 4, 5
	put(t, ctx, b, "n", "0")
	var wg sync.WaitGroup
	for range racers {
		wg.Go(func() {
			for done := 0; done < each; {
				data, info, err := get(ctx, b, "n", 0, -1)
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				var n int
				if _, err := fmt.Sscan(string(data), &n); err != nil {
					t.Errorf("counter %q: %v", data, err)
					return
				}
				_, err = b.Put(ctx, "n", strings.NewReader(fmt.Sprint(n+1)), objstore.PutOptions{IfMatch: info.ETag})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, objstore.ErrPrecondition) && !errors.Is(err, objstore.ErrThrottled):
					t.Errorf("swap: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	want(t, ctx, b, "n", fmt.Sprint(racers*each))
}

func testChecksum(t *testing.T, ctx context.Context, b objstore.Bucket) {
	data := "the bytes of the body"
	right := crc32.Checksum([]byte(data), crc32.MakeTable(crc32.Castagnoli))
	wrong := right ^ 1
	_, err := b.Put(ctx, "k", strings.NewReader(data), objstore.PutOptions{CRC32C: &wrong})
	wantErr(t, "put with a wrong checksum", err, objstore.ErrChecksum)
	_, err = b.Head(ctx, "k")
	wantErr(t, "head after it", err, objstore.ErrNotFound)
	if _, err := b.Put(ctx, "k", strings.NewReader(data), objstore.PutOptions{CRC32C: &right}); err != nil {
		t.Fatalf("put with the right checksum: %v", err)
	}
	want(t, ctx, b, "k", data)
	if _, err := b.Put(ctx, "c", strings.NewReader(data), objstore.PutOptions{CRC32C: &right, IfNoneMatch: true}); err != nil {
		t.Fatalf("create-only put with the right checksum: %v", err)
	}
}

// testChecksumReplace: a put that is refused leaves what it was to replace.
func testChecksumReplace(t *testing.T, ctx context.Context, b objstore.Bucket) {
	put(t, ctx, b, "k", "the old bytes")
	wrong := uint32(1)
	_, err := b.Put(ctx, "k", strings.NewReader("the new bytes"), objstore.PutOptions{CRC32C: &wrong})
	wantErr(t, "replace with a wrong checksum", err, objstore.ErrChecksum)
	want(t, ctx, b, "k", "the old bytes")
}

func testLarge(t *testing.T, ctx context.Context, b objstore.Bucket) {
	data := make([]byte, 20<<20+17) // over the pieces of drivers
	for i := range data {
		data[i] = byte(i>>8) ^ byte(i)
	}
	sum := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
	if _, err := b.Put(ctx, "large", bytes.NewReader(data), objstore.PutOptions{IfNoneMatch: true, CRC32C: &sum}); err != nil {
		t.Fatalf("put: %v", err)
	}
	got, info, err := get(ctx, b, "large", 0, -1)
	if err != nil || !bytes.Equal(got, data) || info.Size != int64(len(data)) {
		t.Fatalf("get: %d bytes, %+v, %v", len(got), info, err)
	}
	got, _, err = get(ctx, b, "large", 1<<20-5, 1<<20+10)
	if err != nil || !bytes.Equal(got, data[1<<20-5:2<<20+5]) {
		t.Fatalf("ranged get: %d bytes, %v", len(got), err)
	}
	// A reader may stop in the middle.
	r, _, err := b.Get(ctx, "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatalf("close in the middle: %v", err)
	}
}

// testBodyPosition: a body is sent from its start wherever it stands.
func testBodyPosition(t *testing.T, ctx context.Context, b objstore.Bucket) {
	body := io.NewSectionReader(strings.NewReader("xx0123456789xx"), 2, 10)
	if _, err := body.Seek(4, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(ctx, "k", body, objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	want(t, ctx, b, "k", "0123456789")
}

func testCancelled(t *testing.T, ctx context.Context, b objstore.Bucket) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := b.Put(ctx, "k", strings.NewReader("x"), objstore.PutOptions{}); err == nil {
		t.Error("put with a cancelled context succeeded")
	}
	if _, _, err := b.Get(ctx, "k", 0, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	if _, _, err := b.List(ctx, "", "", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
}

func testInvalid(t *testing.T, ctx context.Context, b objstore.Bucket) {
	body := strings.NewReader("x")
	for _, key := range []string{"", strings.Repeat("k", objstore.MaxKeyLen+1), "a\x00b"} {
		_, err := b.Put(ctx, key, body, objstore.PutOptions{})
		wantErr(t, fmt.Sprintf("put of key of %d bytes", len(key)), err, objstore.ErrInvalid)
	}
	_, err := b.Put(ctx, "k", body, objstore.PutOptions{IfNoneMatch: true, IfMatch: "x"})
	wantErr(t, "put with both conditions", err, objstore.ErrInvalid)
	for _, limit := range []int{-1, 0, objstore.MaxKeys + 1} {
		_, _, err = b.List(ctx, "", "", limit)
		wantErr(t, fmt.Sprintf("list of %d", limit), err, objstore.ErrInvalid)
	}
	_, err = b.DeleteMany(ctx, make([]string, objstore.MaxKeys+1))
	wantErr(t, "delete of too many", err, objstore.ErrInvalid)
	put(t, ctx, b, "k", "x")
	_, _, err = get(ctx, b, "k", -1, 1)
	wantErr(t, "get from a negative offset", err, objstore.ErrInvalid)
}

func testPutCreateOnly(t *testing.T, ctx context.Context, b objstore.Bucket) {
	for range 2 { // the second finds the same bytes
		created, err := objstore.PutCreateOnly(ctx, b, "k", strings.NewReader("same"), objstore.PutOptions{})
		if err != nil || !created {
			t.Fatalf("created %v, %v", created, err)
		}
	}
	for _, other := range []string{"diff", "longer body"} {
		created, err := objstore.PutCreateOnly(ctx, b, "k", strings.NewReader(other), objstore.PutOptions{})
		wantErr(t, "other bytes", err, objstore.ErrPrecondition)
		if created {
			t.Fatal("created over another object")
		}
	}
	want(t, ctx, b, "k", "same")
}

func testProbe(t *testing.T, ctx context.Context, b objstore.Bucket) {
	if ahead, err := objstore.Probe(ctx, b); err != nil || ahead.Abs() > time.Minute {
		t.Fatal(err)
	}
	list, _, err := b.List(ctx, "", "", 10)
	if err != nil || len(list) != 0 {
		t.Fatalf("probe left %v, %v", list, err)
	}
}

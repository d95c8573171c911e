package objstoretest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// listAll pages through prefix.
func listAll(t *testing.T, ctx context.Context, b objstore.Bucket, prefix, after string, limit int) []string {
	t.Helper()
	var keys []string
	for range 1000 {
		list, more, err := b.List(ctx, prefix, after, limit)
		if err != nil {
			t.Fatalf("list %q after %q: %v", prefix, after, err)
		}
		if len(list) > limit {
			t.Fatalf("list of at most %d gave %d", limit, len(list))
		}
		for _, o := range list {
			keys = append(keys, o.Key)
			after = o.Key
		}
		if !more {
			return keys
		}
		if len(list) == 0 {
			t.Fatal("an empty page says there is more")
		}
	}
	t.Fatal("list does not end")
	return nil
}

var listed = []string{
	"a-b/1", "a/1", "a/10", "a/2", "a/b/c", "a/b/d", "a.b", "a0", "aa", "b/1",
	"z/00000000000000000001.seg", "z/00000000000000000010.seg",
}

func testList(t *testing.T, ctx context.Context, b objstore.Bucket) {
	list(t, ctx, b, slices.Clone(listed))
}

// testListEscaped: bytes that are escaped in an answer have their place in the order unescaped.
func testListEscaped(t *testing.T, ctx context.Context, b objstore.Bucket) {
	list(t, ctx, b, append([]string{"a=1/x", "c d/1", "c%e", "g+h", "é/1"}, listed...))
	if got := listAll(t, ctx, b, "", "ÿ", 4); len(got) != 0 {
		t.Fatalf("after the last: %q", got)
	}
}

// list puts keys and lists them from several places in pages of several sizes.
func list(t *testing.T, ctx context.Context, b objstore.Bucket, keys []string) {
	t.Helper()
	for _, k := range slices.Backward(keys) {
		put(t, ctx, b, k, k)
	}
	slices.Sort(keys)
	for _, limit := range []int{1, 2, 3, 5, len(keys), 1000} {
		if got := listAll(t, ctx, b, "", "", limit); !slices.Equal(got, keys) {
			t.Fatalf("pages of %d: got  %q\nwant %q", limit, got, keys)
		}
	}
	list, more, err := b.List(ctx, "", "", len(keys))
	if err != nil || more || len(list) != len(keys) {
		t.Fatalf("full page: %d objects, more %v, %v", len(list), more, err)
	}
	for _, o := range list {
		if o.Size != int64(len(o.Key)) || o.ETag == "" || o.Modified.IsZero() {
			t.Fatalf("list shows %+v", o)
		}
	}
	for _, after := range []string{"a", "a/", "a/1", "a/11", "a/b/c", "a/b/zz", "a0", "y", "zz"} {
		i, found := slices.BinarySearch(keys, after)
		if found {
			i++
		}
		if got := listAll(t, ctx, b, "", after, 4); !slices.Equal(got, keys[i:]) {
			t.Fatalf("after %q: got  %q\nwant %q", after, got, keys[i:])
		}
	}
}

func testListPrefixes(t *testing.T, ctx context.Context, b objstore.Bucket) {
	keys := []string{"a/1", "a/b/1", "a/b/2", "a/bc/1", "a/c", "b"}
	for _, k := range keys {
		put(t, ctx, b, k, "x")
	}
	for _, c := range []struct {
		prefix, after string
		want          []string
	}{
		{"", "", keys},
		{"a", "", keys[:5]},
		{"a/", "", keys[:5]},
		{"a/b", "", keys[1:4]},
		{"a/b/", "", keys[1:3]},
		{"a/b/1", "", keys[1:2]},
		{"a/b/1", "a/b/1", nil},
		{"a/", "a/b/1", keys[2:5]},
		{"a/b", "a", keys[1:4]},
		{"a/b", "a/c", nil},
		{"b", "a/c", keys[5:]},
		{"c", "", nil},
		{"a/x/y/z", "", nil},
	} {
		for _, limit := range []int{1, 2, 100} {
			if got := listAll(t, ctx, b, c.prefix, c.after, limit); !slices.Equal(got, c.want) {
				t.Errorf("list %q after %q in pages of %d: got %q, want %q", c.prefix, c.after, limit, got, c.want)
			}
		}
	}
}

// testKeys: keys that are not file names.
func testKeys(t *testing.T, ctx context.Context, b objstore.Bucket) {
	keys := []string{
		"A", "a", "x/y", "sp ace", "per%cent", "per%25cent", "plus+plus", "and&and", "question?x=1", "hash#1",
		"quote'\"", "co:lon", "tilde~", "ümlaut/日本", "tail.", "..hidden", "semi;colon", "com,ma", "at@", "d/" + strings.Repeat("n", 200),
	}
	for _, k := range keys {
		put(t, ctx, b, k, "content of "+k)
	}
	for _, k := range keys {
		want(t, ctx, b, k, "content of "+k)
	}
	slices.Sort(keys)
	if got := listAll(t, ctx, b, "", "", 100); !slices.Equal(got, keys) {
		t.Fatalf("list: got  %q\nwant %q", got, keys)
	}
	for _, k := range keys {
		if err := b.Delete(ctx, k); err != nil {
			t.Fatalf("delete %q: %v", k, err)
		}
	}
	if got := listAll(t, ctx, b, "", "", 100); len(got) != 0 {
		t.Fatalf("left after delete: %q", got)
	}
}

func testDelete(t *testing.T, ctx context.Context, b objstore.Bucket) {
	put(t, ctx, b, "a/1", "x")
	put(t, ctx, b, "a/2", "y")
	for range 2 { // an absent key is no error
		if err := b.Delete(ctx, "a/1"); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.Head(ctx, "a/1")
	wantErr(t, "head", err, objstore.ErrNotFound)
	if got := listAll(t, ctx, b, "a/", "", 10); !slices.Equal(got, []string{"a/2"}) {
		t.Fatalf("list: %q", got)
	}
	want(t, ctx, b, "a/2", "y")
	if err := b.Delete(ctx, "nothing/here"); err != nil {
		t.Fatal(err)
	}
}

func testDeleteMany(t *testing.T, ctx context.Context, b objstore.Bucket) {
	for _, k := range []string{"a/1", "a/2", "a/sp ace & <x>", "b/1", "keep"} {
		put(t, ctx, b, k, "x")
	}
	failed, err := b.DeleteMany(ctx, []string{"a/1", "a/2", "a/sp ace & <x>", "b/1", "absent"})
	if err != nil || len(failed) != 0 {
		t.Fatalf("delete: %v, %v", failed, err)
	}
	if got := listAll(t, ctx, b, "", "", 10); !slices.Equal(got, []string{"keep"}) {
		t.Fatalf("list: %q", got)
	}
	failed, err = b.DeleteMany(ctx, nil)
	if err != nil || len(failed) != 0 {
		t.Fatalf("delete of nothing: %v, %v", failed, err)
	}
}

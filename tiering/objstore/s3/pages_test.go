package s3

import (
	"fmt"
	"testing"
)

// KeepToken has the bucket go on with a token behind a key.
func (b *Bucket) KeepToken(prefix, after, token string) { b.api.pages.keep(page{prefix, after}, token) }

func TestPages(t *testing.T) {
	var p pages
	if got := p.token(page{"a", "b"}); got != "" {
		t.Errorf("token %q of nothing", got)
	}
	for i := range keptPages + 3 {
		for range 2 { // a list that is tried again
			p.keep(page{"p/", fmt.Sprint(i)}, fmt.Sprint("token ", i))
		}
	}
	for i := range keptPages + 3 {
		want := fmt.Sprint("token ", i)
		if i < 3 {
			want = ""
		}
		if got := p.token(page{"p/", fmt.Sprint(i)}); got != want {
			t.Errorf("page %d: %q, want %q", i, got, want)
		}
	}
	if len(p.tokens) != keptPages || len(p.order) != keptPages {
		t.Errorf("%d tokens of %d pages are kept", len(p.tokens), len(p.order))
	}
}

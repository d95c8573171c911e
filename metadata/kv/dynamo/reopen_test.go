package dynamo

import (
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// A table that was made anew serves nothing to those who knew what was there, until they are told that
// it is the right one. Their watches end then, wherever the new change log is.
func TestTableMadeAnew(t *testing.T) {
	ctx, prefix := testCtx(t), fresh()
	s := openStore(t, prefix)
	mustCommit(t, s, set("k", "v"))
	ch, err := s.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	anew := s.lay.formatKey() // between two polls
	anew[attrVersion], anew[attrGen] = number(FormatVersion), text("anew")
	if _, err := s.api.PutItem(ctx, &dynamodb.PutItemInput{TableName: &s.lay.table, Item: anew}); err != nil {
		t.Fatal(err)
	}
	again := openStore(t, prefix)
	mustCommit(t, again, set("k", "new"))
	for open := true; open; { // it may tell of what was committed before it ends
		select {
		case _, open = <-ch:
		case <-ctx.Done():
			t.Fatal("the watch goes on")
		}
	}
	lost := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, kv.ErrUnavailable) || !errors.Is(err, kv.ErrLost) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = s.Get(ctx, "k")
	lost("get", err)
	_, err = s.Commit(ctx, []kv.Op{set("k", "v")}, nil)
	lost("commit", err)
	_, err = s.Range(ctx, "", "", 1, false)
	lost("range", err)
	lost("acquire", s.Acquire(ctx, "l", "o", time.Minute))
	_, err = s.Watch(ctx, "")
	lost("watch", err)

	no := errors.New("no")
	if err := s.Reopen(ctx, func(kv.Store) error { return no }); !errors.Is(err, no) {
		t.Errorf("reopen that is refused: %v", err)
	}
	_, err = s.Get(ctx, "k")
	lost("get after that", err)
	if err := s.Reopen(ctx, func(now kv.Store) error {
		it, err := now.Get(ctx, "k")
		if string(it.Value) != "new" {
			t.Errorf("the new table has %q", it.Value)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	wantValue(t, s, "k", "new")
	if ch, err = s.Watch(ctx, ""); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, again, set("k", "newer"))
	if items := <-ch; len(items) != 1 || string(items[0].Value) != "newer" {
		t.Errorf("the watch got %+v", items)
	}
	if err := s.Reopen(ctx, func(kv.Store) error { t.Error("asked about what is known"); return nil }); err != nil {
		t.Error(err)
	}
}

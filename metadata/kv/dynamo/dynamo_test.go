package dynamo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"go.uber.org/goleak"

	server "github.com/cirrolog/cirrolog/localstack/dynamodb"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/kvtest"
)

var local server.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	if err := local.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const table = "cirrolog-test"

// testOptions are quick and quiet.
func testOptions() Options {
	return Options{AccessKey: "test", SecretKey: "test", Poll: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}
}

func fresh() string { return "p" + strings.ToLower(rand.Text()[:12]) }

// openAt opens the store under prefix by way of an endpoint.
func openAt(t *testing.T, endpoint, prefix string, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), fmt.Sprintf("dynamodb://%s/%s?region=us-east-1&create=true&endpoint=%s", table, prefix, endpoint), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openStore(t *testing.T, prefix string) *Store {
	t.Helper()
	return openAt(t, local.Start(t), prefix, testOptions())
}

func testCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func set(key, value string) kv.Op { return kv.Op{Key: key, Value: []byte(value)} }

func mustCommit(t *testing.T, s *Store, ops ...kv.Op) []kv.Revision {
	t.Helper()
	revs, err := s.Commit(testCtx(t), ops, nil)
	if err != nil {
		t.Fatal(err)
	}
	return revs
}

func wantValue(t *testing.T, s *Store, key, value string) kv.Item {
	t.Helper()
	it, err := s.Get(testCtx(t), key)
	if err != nil || string(it.Value) != value {
		t.Fatalf("%q is %q, %v; want %q", key, it.Value, err, value)
	}
	return it
}

func TestConformance(t *testing.T) {
	local.Start(t)
	kvtest.Run(t, func(t *testing.T) kv.Store { return openStore(t, fresh()) })
}

func TestURL(t *testing.T) {
	for raw, want := range map[string]string{
		"redis://x":                                    "want dynamodb://TABLE",
		"dynamodb://":                                  "table name",
		"dynamodb://ab":                                "table name",
		"dynamodb://tab le":                            "table name",
		"dynamodb://table?regoin=x":                    "unknown parameter \"regoin\"",
		"dynamodb://table?create=perhaps":              "neither true nor false",
		"dynamodb://table?endpoint=localhost":          "is not http",
		"dynamodb://table?region=a&region=b":           "stands twice",
		"dynamodb://table/" + strings.Repeat("p", 256): "at most 255",
	} {
		if _, err := Open(t.Context(), raw, testOptions()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("open %s: %v, want %q", raw, err, want)
		}
	}
	loc, err := parseURL("dynamodb://My_table.1/a/b/?region=eu-west-1&endpoint=http://h:8000/&create=true")
	if want := (location{table: "My_table.1", prefix: "a/b", region: "eu-west-1", endpoint: "http://h:8000", create: true}); err != nil || loc != want {
		t.Errorf("%+v, %v", loc, err)
	}
}

func TestMissingTable(t *testing.T) {
	url := "dynamodb://missing-table?region=us-east-1&endpoint=" + local.Start(t)
	_, err := Open(t.Context(), url, testOptions())
	if !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), `no table "missing-table"`) || !strings.Contains(err.Error(), "aws dynamodb create-table") {
		t.Fatalf("open: %v", err)
	}
}

// TestCreatedTwice: of stores that create the table at the same time all open.
func TestCreatedTwice(t *testing.T) {
	url := "dynamodb://created-" + fresh() + "?region=us-east-1&create=true&endpoint=" + local.Start(t)
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			s, err := Open(context.Background(), url, testOptions())
			if err == nil {
				err = s.Close()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestForeignTableIsRefused(t *testing.T) {
	endpoint := local.Start(t)
	api := openStore(t, fresh()).api
	name := "foreign-" + fresh()
	_, err := api.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: &name, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), "dynamodb://"+name+"?region=us-east-1&create=true&endpoint="+endpoint, testOptions())
	if !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), "(id S HASH), not (pk S HASH, sk B RANGE)") {
		t.Fatalf("open: %v", err)
	}
}

func TestUnknownVersionIsRefused(t *testing.T) {
	prefix := fresh()
	s := openStore(t, prefix)
	item := s.lay.formatKey()
	item[attrVersion] = number(2)
	if _, err := s.api.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &s.lay.table, Item: item}); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), fmt.Sprintf("dynamodb://%s/%s?region=us-east-1&endpoint=%s", table, prefix, local.Start(t)), testOptions())
	if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 2") {
		t.Fatalf("open: %v", err)
	}
}

// TestRevisionsGrow: over deletion, over reopening, and when a tombstone has
// expired.
func TestRevisionsGrow(t *testing.T) {
	ctx, prefix := testCtx(t), fresh()
	var last kv.Revision
	for round := range 6 {
		s := openStore(t, prefix)
		if _, err := s.Get(ctx, "k"); !errors.Is(err, kv.ErrNotFound) {
			t.Fatalf("round %d: %v", round, err)
		}
		revs := mustCommit(t, s, set("k", "v"), set("other", "v"))
		if revs[0] <= last {
			t.Fatalf("round %d: revision %d after %d", round, revs[0], last)
		}
		last = revs[0]
		mustCommit(t, s, kv.Op{Key: "k", Delete: true})
		if round%2 == 1 {
			if _, err := s.api.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &s.lay.table, Key: s.lay.rowKey("k")}); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
	}
	// A clock that lags behind the table: the revision in the table counts.
	s := openStore(t, prefix)
	s.clock.base, s.clock.last = s.clock.base.Add(-24*time.Hour), 0
	if revs := mustCommit(t, s, set("k", "v"), set("other", "w")); revs[1] <= last {
		t.Fatalf("revision %d after %d", revs[1], last)
	}
}

func TestPrefixesAreApart(t *testing.T) {
	a, b := openStore(t, "same/"+fresh()), openStore(t, "same")
	mustCommit(t, a, set("k", "a"))
	mustCommit(t, b, set("k", "b"))
	wantValue(t, a, "k", "a")
	items, err := b.Range(testCtx(t), "", "", 10, false)
	if err != nil || len(items) != 1 || string(items[0].Value) != "b" {
		t.Fatalf("%v, %v", items, err)
	}
}

func TestClosed(t *testing.T) {
	ctx := testCtx(t)
	s := openStore(t, fresh())
	s.Close()
	_, err := s.Get(ctx, "k")
	_, err2 := s.Commit(ctx, []kv.Op{set("k", "v")}, nil)
	_, err3 := s.Watch(ctx, "")
	for _, err := range []error{err, err2, err3, s.Acquire(ctx, "l", "o", time.Second)} {
		if !errors.Is(err, kv.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
}

// TestTwoStores: two stores on one table, as two agents have them.
func TestTwoStores(t *testing.T) {
	ctx, prefix := testCtx(t), fresh()
	a, b := openStore(t, prefix), openStore(t, prefix)
	revs := mustCommit(t, a, set("k", "a"))
	if it := wantValue(t, b, "k", "a"); it.Revision != revs[0] {
		t.Fatalf("revision %d, not %d", it.Revision, revs[0])
	}
	pre := []kv.Precondition{{Key: "k", Revision: revs[0]}}
	if _, err := b.Commit(ctx, []kv.Op{set("k", "b")}, pre); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Commit(ctx, []kv.Op{set("k", "c")}, pre); !errors.Is(err, kv.ErrConflict) {
		t.Fatalf("commit on an old revision: %v", err)
	}
	wantValue(t, a, "k", "b")
}

// TestLeaseOfTwoStores: an observer takes a lease over only when it has seen it
// unchanged for its ttl, also when it comes late.
func TestLeaseOfTwoStores(t *testing.T) {
	ctx, prefix := testCtx(t), fresh()
	const ttl = 300 * time.Millisecond
	a, b := openStore(t, prefix), openStore(t, prefix)
	if err := a.Acquire(ctx, "l", "a", ttl); err != nil {
		t.Fatal(err)
	}
	lost := func(who string, err error) {
		t.Helper()
		if !errors.Is(err, kv.ErrLeaseLost) {
			t.Fatalf("%s: %v", who, err)
		}
	}
	for range 4 { // renewals keep it from b, longer than the ttl
		time.Sleep(ttl / 2)
		lost("b", b.Acquire(ctx, "l", "b", ttl))
		if err := a.Acquire(ctx, "l", "a", ttl); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2 * ttl) // expired, but b has not seen this renewal before
	seen := time.Now()
	lost("b, which sees it for the first time", b.Acquire(ctx, "l", "b", ttl))
	for b.Acquire(ctx, "l", "b", time.Minute) != nil {
		time.Sleep(10 * time.Millisecond)
		if time.Since(seen) > 10*ttl {
			t.Fatal("b can't take the expired lease")
		}
	}
	if d := time.Since(seen); d < ttl {
		t.Fatalf("b took the lease %v after it first saw it", d)
	}
	lost("the former owner renews", a.Acquire(ctx, "l", "a", ttl))
	lost("the former owner releases", a.Release(ctx, "l", "a"))
	if owner, _, err := a.Holder(ctx, "l"); owner != "b" || err != nil {
		t.Fatalf("holder is %q, %v", owner, err)
	}
}

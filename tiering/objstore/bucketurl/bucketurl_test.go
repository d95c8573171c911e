package bucketurl

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/internal/s3core"
	"github.com/cirrolog/cirrolog/tiering/objstore/objstoretest"
)

func TestParseS3(t *testing.T) {
	for _, c := range []struct {
		rest, prefix, driver string
		want                 s3core.Options
	}{
		{"b", "", "s3", s3core.Options{Bucket: "b"}},
		{"b/", "", "s3", s3core.Options{Bucket: "b"}},
		{"b/a/b//", "a/b/", "s3", s3core.Options{Bucket: "b"}},
		{"b/sp%20ace?driver=minio", "sp ace/", "minio", s3core.Options{Bucket: "b"}},
		{"b/p?endpoint=http://127.0.0.1:9000&region=eu-west-1&driver=s3&path_style=true&ca=/etc/ca.pem&kms=alias/k", "p/", "s3",
			s3core.Options{Bucket: "b", Endpoint: "http://127.0.0.1:9000", Region: "eu-west-1", Style: s3core.StylePath, CAFile: "/etc/ca.pem", KMSKeyID: "alias/k"}},
		{"b?path_style=false", "", "s3", s3core.Options{Bucket: "b", Style: s3core.StyleHost}},
	} {
		so, prefix, driver, err := parseS3(c.rest)
		if err != nil || so != c.want || prefix != c.prefix || driver != c.driver {
			t.Errorf("%s: %+v, %q, %q, %v", c.rest, so, prefix, driver, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct{ raw, text string }{
		{"", "want dir://"}, {"/var/lib", "want dir://"}, {"file:///x", `unknown scheme "file"`},
		{"s33://b", `did you mean "s3"?`}, {"dir://", "path is missing"}, {"dir:///x?a=b", "takes no parameters"},
		{"mem://x", "nothing behind"}, {"s3://", "bucket name"}, {"s3:///p", "bucket name"},
		{"s3://b?endpiont=http://h", `did you mean "endpoint"?`}, {"s3://b?Region=x", `did you mean "region"?`},
		{"s3://b?pathstyle=true", `did you mean "path_style"?`}, {"s3://b?path_style=1", "neither true nor false"},
		{"s3://b?driver=mini0", `did you mean "minio"?`}, {"s3://b?region=a&region=b", "2 times"},
		{"s3://b?region=", "is empty"}, {"s3://b#f", "%23"}, {"s3://b/../x", `element ".."`}, {"s3://b/a//b", `element ""`},
		{"s3://b/%zz", "prefix"}, {"s3://b?a;b", "query"}, {"s3://b/" + strings.Repeat("p", 600), "prefix of"},
		{"s3://user:secret@b", "credentials"},
	} {
		_, err := Open(context.Background(), c.raw, Options{FS: vfs.OS()})
		if !errors.Is(err, objstore.ErrInvalid) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q: %v, want %q", c.raw, err, c.text)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func TestRedact(t *testing.T) {
	for raw, want := range map[string]string{
		"s3://b/p?region=x":       "s3://b/p?region=x",
		"s3://u:p@b/p@q?region=x": "s3://***@b/p@q?region=x",
		"s3://u:p@b?ca=x":         "s3://***@b?ca=x",
		"dir:///a@b":              "dir:///a@b",
		"plain":                   "plain",
	} {
		if got := Redact(raw); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
}

func TestOpenLocal(t *testing.T) {
	for _, raw := range []string{"mem://", "dir://" + filepath.Join(t.TempDir(), "new", "bucket")} {
		b, err := Open(context.Background(), raw, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = objstore.Probe(context.Background(), b)
		if err = errors.Join(err, objstore.Close(b)); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestOpenS3(t *testing.T) {
	e := minio.Start(t)
	for _, driver := range []string{"s3", "minio"} {
		t.Run(driver, func(t *testing.T) {
			raw := "s3://" + e.Bucket + "/below/" + driver + "?region=us-east-1&driver=" + driver + "&endpoint=" + e.URL
			b, err := Open(context.Background(), raw, Options{AccessKey: e.AccessKey, SecretKey: e.SecretKey})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = objstore.Close(b) })
			objstoretest.Run(t, func(*testing.T) objstore.Bucket { return b })
		})
	}
}

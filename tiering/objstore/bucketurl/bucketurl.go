// Package bucketurl opens a bucket by its URL:
//
//	dir://PATH                a directory: dir:///var/lib/x, or dir://x below
//	                          the working directory; PATH is taken as it is
//	mem://                    memory, empty at each start
//	s3://BUCKET[/PREFIX][?…]  Amazon S3 and stores of its protocol
//
// The parameters of s3:// are
//
//	endpoint=URL      http(s)://host:port instead of Amazon's
//	region=NAME       instead of the AWS configuration's
//	driver=s3|minio   aws-sdk-go-v2 (default) or minio-go
//	path_style=BOOL   true: the bucket in the path (default with an endpoint
//	                  that is not Amazon's); false: in the host name
//	ca=FILE           PEM file of authorities trusted beside the system's
//	kms=KEY           SSE-KMS with this key for new objects
//
// Credentials are never part of the URL.
package bucketurl

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/dir"
	"github.com/cirrolog/cirrolog/tiering/objstore/internal/s3core"
	"github.com/cirrolog/cirrolog/tiering/objstore/minio"
	"github.com/cirrolog/cirrolog/tiering/objstore/s3"
)

// Options of Open.
type Options struct {
	FS vfs.FS // of dir:// buckets; nil means vfs.OS()
	// AccessKey and SecretKey of s3:// buckets; empty means AWS's credential chain.
	AccessKey, SecretKey string
}

// Open opens the bucket that raw names, without asking the store; a dir:// is
// made if it is missing. A URL that is not as above is objstore.ErrInvalid. The
// caller ends the bucket's use with objstore.Close.
func Open(ctx context.Context, raw string, o Options) (objstore.Bucket, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return nil, fmt.Errorf("open bucket: want dir://PATH, mem:// or s3://BUCKET: %w", objstore.ErrInvalid)
	}
	var b objstore.Bucket
	var err error
	switch scheme {
	case "dir":
		b, err = openDir(rest, o)
	case "mem":
		b, err = openMem(rest)
	case "s3":
		b, err = openS3(ctx, rest, o)
	default:
		err = fmt.Errorf("unknown scheme %q, did you mean %q?: %w", scheme, nearest(scheme, []string{"dir", "mem", "s3"}), objstore.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", Redact(raw), err)
	}
	return b, nil
}

// Redact returns raw fit for logs: without a user and password, which do not
// belong there.
func Redact(raw string) string {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok || scheme == "dir" {
		return raw
	}
	host, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host, tail = rest[:i], rest[i:]
	}
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = "***@" + host[i+1:]
	}
	return scheme + "://" + host + tail
}

func openDir(path string, o Options) (objstore.Bucket, error) {
	if path == "" {
		return nil, fmt.Errorf("path is missing: %w", objstore.ErrInvalid)
	}
	if strings.ContainsAny(path, "?#\x00") {
		return nil, fmt.Errorf("dir:// takes no parameters: %w", objstore.ErrInvalid)
	}
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	return dir.New(o.FS, path)
}

func openMem(rest string) (objstore.Bucket, error) {
	if rest != "" {
		return nil, fmt.Errorf("mem:// takes nothing behind it: %w", objstore.ErrInvalid)
	}
	return objstore.NewMem(), nil
}

func openS3(ctx context.Context, rest string, o Options) (objstore.Bucket, error) {
	so, prefix, driver, err := parseS3(rest)
	if err != nil {
		return nil, err
	}
	so.AccessKey, so.SecretKey = o.AccessKey, o.SecretKey
	var b objstore.Bucket
	if driver == "minio" {
		b, err = minio.New(so)
	} else {
		b, err = s3.New(ctx, so)
	}
	if err != nil {
		return nil, err
	}
	return objstore.Prefix(b, prefix), nil
}

// parseS3 parses what stands behind "s3://".
func parseS3(rest string) (so s3.Options, prefix, driver string, err error) {
	bad := func(format string, args ...any) (s3.Options, string, string, error) {
		return s3.Options{}, "", "", fmt.Errorf(format+": %w", append(args, objstore.ErrInvalid)...)
	}
	if strings.Contains(rest, "#") {
		return bad("a # must be written %%23")
	}
	place, query, _ := strings.Cut(rest, "?")
	so.Bucket, prefix, _ = strings.Cut(place, "/")
	if so.Bucket == "" {
		return bad("bucket name is missing")
	}
	if strings.ContainsAny(so.Bucket, "@:") {
		return bad("credentials and ports do not belong here; give endpoint= and the environment's credentials")
	}
	if prefix, err = url.PathUnescape(prefix); err != nil {
		return bad("prefix: %w", err)
	}
	if prefix = strings.TrimRight(prefix, "/"); prefix != "" {
		for _, e := range strings.Split(prefix, "/") {
			if e == "" || e == "." || e == ".." {
				return bad("prefix with element %q", e)
			}
		}
		prefix += "/"
	}
	if len(prefix) > objstore.MaxKeyLen/2 {
		return bad("prefix of %d bytes", len(prefix))
	}
	params, err := parseQuery(query, s3Keys())
	if err != nil {
		return s3.Options{}, "", "", err
	}
	so.Endpoint, so.Region, so.CAFile, so.KMSKeyID = params["endpoint"], params["region"], params["ca"], params["kms"]
	switch params["path_style"] {
	case "":
	case "true":
		so.Style = s3core.StylePath
	case "false":
		so.Style = s3core.StyleHost
	default:
		return bad("path_style=%s is neither true nor false", params["path_style"])
	}
	switch driver = params["driver"]; driver {
	case "":
		driver = "s3"
	case "s3", "minio":
	default:
		return bad("unknown driver %q, did you mean %q?", driver, nearest(driver, []string{"s3", "minio"}))
	}
	return so, prefix, driver, nil
}

package objstore

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// Prefix returns a view of b in which every key stands below prefix: key k of
// the view is key prefix+k of b. The prefix is taken as it is, so it should
// end in "/". An empty prefix returns b itself.
func Prefix(b Bucket, prefix string) Bucket {
	if prefix == "" {
		return b
	}
	return &prefixed{b: b, prefix: prefix}
}

type prefixed struct {
	b      Bucket
	prefix string
}

func (p *prefixed) strip(info ObjectInfo) ObjectInfo {
	info.Key = strings.TrimPrefix(info.Key, p.prefix)
	return info
}

// key refuses the empty key, which b would take for the prefix itself.
func (p *prefixed) key(key string) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", err
	}
	if len(key)+len(p.prefix) > MaxKeyLen {
		return "", fmt.Errorf("key of %d bytes below prefix of %d: %w", len(key), len(p.prefix), ErrInvalid)
	}
	return p.prefix + key, nil
}

func (p *prefixed) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, ObjectInfo, error) {
	k, err := p.key(key)
	if err != nil {
		return nil, ObjectInfo{}, err
	}
	r, info, err := p.b.Get(ctx, k, offset, length)
	return r, p.strip(info), err
}

func (p *prefixed) Head(ctx context.Context, key string) (ObjectInfo, error) {
	k, err := p.key(key)
	if err != nil {
		return ObjectInfo{}, err
	}
	info, err := p.b.Head(ctx, k)
	return p.strip(info), err
}

func (p *prefixed) List(ctx context.Context, prefix, after string, limit int) ([]ObjectInfo, bool, error) {
	if after != "" {
		after = p.prefix + after
	}
	list, more, err := p.b.List(ctx, p.prefix+prefix, after, limit)
	out := make([]ObjectInfo, 0, len(list))
	for _, info := range list {
		if info = p.strip(info); info.Key != "" { // an object named like the prefix is not in the view
			out = append(out, info)
		}
	}
	return out, more, err
}

func (p *prefixed) Put(ctx context.Context, key string, body Body, opts PutOptions) (ObjectInfo, error) {
	k, err := p.key(key)
	if err != nil {
		return ObjectInfo{}, err
	}
	info, err := p.b.Put(ctx, k, body, opts)
	return p.strip(info), err
}

func (p *prefixed) Delete(ctx context.Context, key string) error {
	k, err := p.key(key)
	if err != nil {
		return err
	}
	return p.b.Delete(ctx, k)
}

func (p *prefixed) DeleteMany(ctx context.Context, keys []string) (map[string]error, error) {
	full := make([]string, len(keys))
	for i, key := range keys {
		k, err := p.key(key)
		if err != nil {
			return nil, err
		}
		full[i] = k
	}
	failed, err := p.b.DeleteMany(ctx, full)
	if len(failed) == 0 {
		return nil, err
	}
	out := make(map[string]error, len(failed))
	for k, e := range failed {
		out[strings.TrimPrefix(k, p.prefix)] = e
	}
	return out, err
}

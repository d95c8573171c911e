package objstore

import "io"

// Close gives back what b holds, for example idle connections, if it holds
// anything. Decorators of this package pass it on to the bucket they wrap. No
// request may be under way.
func Close(b Bucket) error {
	if c, ok := b.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Close implements io.Closer.
func (p *prefixed) Close() error { return Close(p.b) }

// Close implements io.Closer.
func (o *observed) Close() error { return Close(o.b) }

// Close implements io.Closer.
func (f *Fault) Close() error { return Close(f.b) }

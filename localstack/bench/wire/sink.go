package main

// sink: an S3-compatible endpoint that throws large bodies away, so that an
// upload costs the sender what it must and the receiver next to nothing.
import (
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func init() { cmds["sink"] = sinkMain }

// kept is the largest body that is remembered: claims and manifests.
const kept = 1 << 20

type object struct {
	etag string
	body []byte
	size int64
	at   time.Time
}

type sink struct {
	mu    sync.Mutex
	objs  map[string]object
	bytes atomic.Int64
	calls atomic.Int64
}

func sinkMain(a []string) {
	fs := flag.NewFlagSet("sink", flag.ExitOnError)
	addr := fs.String("addr", "127.0.0.1:23907", "")
	fs.Parse(a)
	s := &sink{objs: map[string]object{}}
	must(http.ListenAndServe(*addr, s))
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/-/bytes" {
		fmt.Fprint(w, s.bytes.Load())
		return
	}
	key := r.URL.Path
	switch {
	case r.Method == http.MethodPut:
		s.put(w, r, key)
	case r.Method == http.MethodDelete:
		s.mu.Lock()
		delete(s.objs, key)
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPost && r.URL.Query().Has("delete"):
		s.deleteMany(w, r)
	case r.URL.Query().Get("list-type") == "2":
		s.list(w, r)
	default:
		s.get(w, r, key)
	}
}

var sinkBuffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

func (s *sink) put(w http.ResponseWriter, r *http.Request, key string) {
	o := object{etag: fmt.Sprintf("%q", fmt.Sprint(s.calls.Add(1)))}
	if r.ContentLength >= 0 && r.ContentLength <= kept {
		o.body, _ = io.ReadAll(r.Body)
		o.size = int64(len(o.body))
	} else {
		buf := sinkBuffers.Get().(*[]byte)
		o.size, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r.Body}, *buf)
		sinkBuffers.Put(buf)
	}
	if r.ContentLength >= 0 && o.size != r.ContentLength {
		return
	}
	o.at = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	old, there := s.objs[key]
	if match := r.Header.Get("If-Match"); there && r.Header.Get("If-None-Match") == "*" || match != "" && match != old.etag {
		fail(w, http.StatusPreconditionFailed, "PreconditionFailed")
		return
	}
	s.bytes.Add(o.size)
	s.objs[key] = o
	w.Header().Set("ETag", o.etag)
}

func (s *sink) get(w http.ResponseWriter, r *http.Request, key string) {
	s.mu.Lock()
	o, ok := s.objs[key]
	s.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	w.Header().Set("ETag", o.etag)
	http.ServeContent(w, r, "", o.at, io.NewSectionReader(holes(o.body), 0, o.size))
}

// holes reads as zeros what was not kept.
type holes []byte

func (h holes) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at < int64(len(h)) {
		copy(p, h[at:])
	}
	return len(p), nil
}

// deleteMany is DeleteObjects.
func (s *sink) deleteMany(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Object []struct{ Key string }
	}
	if err := xml.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "MalformedXML")
		return
	}
	s.mu.Lock()
	for _, o := range in.Object {
		delete(s.objs, "/"+strings.Trim(r.URL.Path, "/")+"/"+o.Key)
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, "<DeleteResult></DeleteResult>")
}

func (s *sink) list(w http.ResponseWriter, r *http.Request) {
	type item struct {
		Key, LastModified, ETag, StorageClass string
		Size                                  int64
	}
	var out struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		Name        string
		Prefix      string
		KeyCount    int
		MaxKeys     int
		IsTruncated bool
		Contents    []item
	}
	bucket := strings.Trim(r.URL.Path, "/")
	out.Name, out.Prefix, out.MaxKeys = bucket, r.URL.Query().Get("prefix"), 1000
	s.mu.Lock()
	for k, o := range s.objs {
		k = strings.TrimPrefix(k, "/"+bucket+"/")
		if strings.HasPrefix(k, out.Prefix) && k > r.URL.Query().Get("start-after") {
			out.Contents = append(out.Contents, item{Key: k, Size: o.size, ETag: o.etag, StorageClass: "STANDARD", LastModified: o.at.UTC().Format("2006-01-02T15:04:05.000Z")})
		}
	}
	s.mu.Unlock()
	sort.Slice(out.Contents, func(i, j int) bool { return out.Contents[i].Key < out.Contents[j].Key })
	if n, err := strconv.Atoi(r.URL.Query().Get("max-keys")); err == nil && n >= 0 {
		out.MaxKeys = min(n, 1000)
	}
	out.IsTruncated = len(out.Contents) > out.MaxKeys
	out.Contents = out.Contents[:min(len(out.Contents), out.MaxKeys)]
	out.KeyCount = len(out.Contents)
	w.Header().Set("Content-Type", "application/xml")
	xml.NewEncoder(w).Encode(out)
}

func fail(w http.ResponseWriter, code int, name string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(code)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", name, name)
}

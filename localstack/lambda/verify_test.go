package lambda_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/url"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/localstack/lambda"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

type verifier struct {
	*cluster
	f *lambda.Function
}

type verified struct {
	Verified []struct {
		File    string `json:"file"`
		Records int64  `json:"records"`
		Bytes   int64  `json:"bytes"`
		Base    int64  `json:"base"`
		Last    int64  `json:"last"`
		Gone    bool   `json:"gone"`
	} `json:"verified"`
	Skipped int `json:"skipped"`
}

// put is the event of an object of the bucket.
func (v *verifier) put(key string) []byte {
	return event(v.t, "s3.json", nil, "BUCKET", v.endpoint.Bucket, "KEY", url.QueryEscape("main/job/"+key))
}

func (v *verifier) verify(payload []byte) (r verified) {
	v.t.Helper()
	b, err := v.f.Invoke(payload)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		v.t.Fatalf("%v: %s", err, b)
	}
	return r
}

// joined makes one event of several.
func (v *verifier) joined(payloads ...[]byte) []byte {
	var all struct{ Records []json.RawMessage }
	for _, p := range payloads {
		var one struct{ Records []json.RawMessage }
		if err := json.Unmarshal(p, &one); err != nil {
			v.t.Fatal(err)
		}
		all.Records = append(all.Records, one.Records...)
	}
	b, err := json.Marshal(all)
	if err != nil {
		v.t.Fatal(err)
	}
	return b
}

func (v *verifier) queued(payload []byte) []byte {
	return event(v.t, "sqs.json", nil, `"BODY"`, string(mustJSON(v.t, string(payload))))
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVerify gives the function the events of segments that an agent has put, whole and damaged.
func TestVerify(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	prefix := c.create(words, 1, map[string]string{"segment.bytes": "1048576"})
	c.fill(words, 40)
	c.eventually("segments in the bucket", func() bool { return len(c.keys(prefix)) >= 4 })
	v := &verifier{c, lambda.New(t, "verify", append(c.credentials(), "CIRROLOG_BUCKET="+c.bucket)...)}
	keys := c.keys(prefix)
	next := int64(0)
	for _, key := range keys {
		r := v.verify(v.put(key))
		if len(r.Verified) != 1 || r.Verified[0].File != key || r.Verified[0].Base != next || r.Verified[0].Records != r.Verified[0].Last-next+1 || r.Verified[0].Bytes < 900_000 {
			t.Errorf("%s: %+v", key, r)
		}
		next = r.Verified[0].Last + 1
	}
	if r := v.verify(v.queued(v.joined(v.put(keys[0]), v.put(keys[1])))); len(r.Verified) != 2 {
		t.Errorf("from a queue: %+v", r)
	}
	missing, err := tiering.ParseSegmentKey(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	missing.Base, missing.Last = missing.Base+1000, missing.Last+1000
	if r := v.verify(v.put(missing.Key())); len(r.Verified) != 1 || !r.Verified[0].Gone {
		t.Errorf("a segment that was deleted meanwhile: %+v", r)
	}
	wal := c.keys("wal/")
	removed := bytes.Replace(v.put(keys[0]), []byte("ObjectCreated:Put"), []byte("ObjectRemoved:Delete"), 1)
	for _, payload := range [][]byte{v.put(wal[0]), event(t, "s3-test.json", nil, "BUCKET", c.endpoint.Bucket), removed, v.queued(removed)} {
		if r := v.verify(payload); len(r.Verified) != 0 || r.Skipped != 1 {
			t.Errorf("%s: %+v", payload, r)
		}
	}
	v.damaged(keys)
	v.fails(keys[0])
	coldStarts(t, "verify", func() *lambda.Function {
		return lambda.New(t, "verify", append(c.credentials(), "CIRROLOG_BUCKET="+c.bucket)...)
	}, func(f *lambda.Function) { v.f = f; v.verify(v.put(keys[0])) })
}

// damaged changes bytes in the bucket. In one event with others the damaged one is named.
func (v *verifier) damaged(keys []string) {
	v.t.Helper()
	r, info, err := v.objects.Get(v.t.Context(), keys[1], 0, -1)
	if err != nil {
		v.t.Fatal(err)
	}
	whole, err := io.ReadAll(r)
	_ = r.Close()
	if err != nil || int64(len(whole)) != info.Size {
		v.t.Fatal(err)
	}
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	for what, body := range map[string][]byte{"first byte": flip(0), "a record": flip(len(whole) / 2), "a leader epoch": flip(15), "the footer": flip(len(whole) - 20), "its magic": flip(len(whole) - 64),
		"cut": whole[:len(whole)-1], "cut in the middle": whole[:len(whole)/2], "longer": append(bytes.Clone(whole), 0), "empty": nil} {
		if _, err := v.objects.Put(v.t.Context(), keys[1], bytes.NewReader(body), objstore.PutOptions{}); err != nil {
			v.t.Fatal(err)
		}
		_, err := v.f.Invoke(v.joined(v.put(keys[0]), v.put(keys[1]), v.put(keys[2])))
		failedAs(v.t, err, what, "Cirrolog.Damaged", "record 1: "+keys[1])
		_, err = v.f.Invoke(v.queued(v.put(keys[1])))
		failedAs(v.t, err, what, "Cirrolog.Damaged", keys[1])
	}
	if _, err := v.objects.Put(v.t.Context(), keys[1], bytes.NewReader(whole), objstore.PutOptions{}); err != nil {
		v.t.Fatal(err)
	}
	v.verify(v.put(keys[1]))
}

// fails has the function with what it can't work with.
func (v *verifier) fails(key string) {
	v.t.Helper()
	for what, payload := range map[string]string{"another event": `{"version":"2.0"}`, "no records": `{"Records":[]}`, "another source": `{"Records":[{"eventSource":"aws:sns"}]}`,
		"no object": `{"Records":[{"eventSource":"aws:s3"}]}`, "a message that is none of S3": string(v.queued([]byte("hello"))), "a key that can't be decoded": string(event(v.t, "s3.json", nil, "KEY", "%zz"))} {
		_, err := v.f.Invoke([]byte(payload))
		failedAs(v.t, err, what, "Cirrolog.NotAnEvent")
	}
	_, err := v.f.Invoke(event(v.t, "s3.json", nil, "BUCKET", "other", "KEY", "main/job/"+key))
	failedAs(v.t, err, "another bucket", "Cirrolog.Settings", "other")
	for _, one := range []struct {
		kind, word string
		env        []string
	}{
		{"Cirrolog.Settings", "CIRROLOG_BUCKET is not set", nil},
		{"Cirrolog.Settings", "want s3://", []string{"CIRROLOG_BUCKET=dir:///tmp"}},
		{"Cirrolog.Denied", "denied", []string{"CIRROLOG_BUCKET=" + v.bucket, "AWS_ACCESS_KEY_ID=" + v.endpoint.AccessKey, "AWS_SECRET_ACCESS_KEY=wrong"}},
		{"Cirrolog.Unavailable", "", []string{"CIRROLOG_BUCKET=s3://" + v.endpoint.Bucket + "/main/job?endpoint=http://127.0.0.1:1&region=us-east-1", "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b"}},
	} {
		_, err := lambda.New(v.t, "verify", one.env...).Invoke(v.put(key))
		failedAs(v.t, err, one.kind, one.kind, one.word)
	}
	env := append(v.credentials(), "CIRROLOG_BUCKET="+strings.Replace(v.bucket, v.endpoint.Bucket, "no-such-bucket", 1))
	_, err = lambda.New(v.t, "verify", env...).Invoke(event(v.t, "s3.json", nil, "BUCKET", "no-such-bucket", "KEY", "main/job/"+key))
	failedAs(v.t, err, "no bucket", "Cirrolog.NoBucket", "bucket not found")
}

package kafka

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// fill sets everything in v to random values: also arrays to null, and tags
// that nobody knows.
func fill(rng *rand.Rand, v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			switch f := v.Type().Field(i); {
			case f.Name == "UnknownTags":
				tags := v.Field(i).Addr().Interface().(*kmsg.Tags)
				for range rng.IntN(3) {
					tags.Set(1000+rng.Uint32N(1<<20), make([]byte, rng.IntN(200)))
				}
			case f.IsExported() && f.Name != "Version":
				fill(rng, v.Field(i), depth+1)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(make([]byte, rng.IntN(300)))
			return
		}
		n := rng.IntN(5) - 1
		if n < 0 {
			v.SetZero()
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(rng, v.Index(i), depth+1)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(rng, v.Index(i), depth)
		}
	case reflect.Pointer:
		if rng.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(rng, v.Elem(), depth)
		}
	case reflect.String:
		v.SetString(string(make([]byte, rng.IntN(200))))
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(rng.Uint64()) >> (64 - v.Type().Bits()))
	case reflect.Uint8:
		v.SetUint(uint64(rng.IntN(256)))
	}
}

// elementsOf counts the array elements of a request.
func elementsOf(v reflect.Value) (n int) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && f.Name != "UnknownTags" {
				n += elementsOf(v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return 0
		}
		n = v.Len()
		for i := range v.Len() {
			n += elementsOf(v.Index(i))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			n = elementsOf(v.Elem())
		}
	}
	return n
}

// checkWalk walks b, the body of req, to its end.
func checkWalk(t *testing.T, a *api, req kmsg.Request, b []byte) {
	t.Helper()
	if a.key == kmsg.Produce.Int16() {
		if err := checkProduce(b, req.GetVersion()); err != nil {
			t.Fatalf("%s v%d: %v", a.name, req.GetVersion(), err)
		}
		return
	}
	w := walker{b: b, flexible: req.IsFlexible()}
	n := 0
	w.walk(a.schema, req.GetVersion(), &n)
	w.skipTags()
	if want := elementsOf(reflect.ValueOf(req).Elem()); w.bad || len(w.b) != 0 || n != want {
		t.Fatalf("%s v%d: bad %v, %d of %d bytes left, %d elements of %d", a.name, req.GetVersion(), w.bad, len(w.b), len(b), n, want)
	}
}

// The schemas agree with kmsg: for each version of each API, what kmsg encodes
// is walked to its end and not beyond, and its elements are counted.
func TestSchemas(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	s := NewServer(Options{Broker: newAdminBroker(t)})
	for key, a := range s.apis {
		for v := a.min; v <= a.max; v++ {
			for range 100 {
				req := kmsg.RequestForKey(key)
				req.SetVersion(v)
				fill(rng, reflect.ValueOf(req).Elem(), 0)
				b := req.AppendTo(nil)
				again := kmsg.RequestForKey(key)
				again.SetVersion(v)
				if err := again.ReadFrom(b); err != nil {
					t.Fatal(err)
				}
				checkWalk(t, a, again, b)
				if len(b) > 0 {
					_, err := check(b[:len(b)-1], a.schema, v, req.IsFlexible())
					if key == kmsg.Produce.Int16() {
						err = checkProduce(b[:len(b)-1], v)
					}
					if err == nil {
						t.Fatalf("%s v%d: cut off by one byte and accepted", a.name, v)
					}
				}
			}
		}
	}
}

func TestSchemaErrors(t *testing.T) {
	for _, s := range []string{"[4", "4]", "<4]", "x", "4@x", "4@1-y", "?{4"} {
		if f, err := parseSchema(s); err == nil {
			t.Errorf("%q is parsed as %+v", s, f)
		}
	}
}

// A count that is possible by kmsg's measure, one byte for each element, costs
// nothing, because the elements are not there.
func TestLyingCountsAllocate(t *testing.T) {
	s := NewServer(Options{Broker: newAdminBroker(t)})
	c := &conn{s: s}
	body := make([]byte, 4<<20)
	copy(body, be(int32(-1), int32(0), int32(0), int32(0), int8(0), int32(4<<20-100)))
	for name, b := range map[string][]byte{"not there": body[:1000], "empty": body} {
		if name == "not there" {
			binary.BigEndian.PutUint32(b[17:], 900)
		} else {
			copy(b[17:], be(int32(4<<20-100)))
		}
		if n := bytesAllocated(func() { _ = c.handle(header{key: 1, version: 4, body: b}) }); n > 64<<10 {
			t.Errorf("elements that are %s cost %d bytes", name, n)
		}
	}
}

func bytesAllocated(f func()) uint64 {
	r := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			f()
		}
	})
	return uint64(r.AllocedBytesPerOp())
}

// Asking for a topic again and again tells it once.
func TestMetadataTellsOnce(t *testing.T) {
	b := newAdminBroker(t)
	topic := b.add("logs", 2)
	req := kmsg.NewPtrMetadataRequest()
	for range 1000 {
		byName, byID := kmsg.NewMetadataRequestTopic(), kmsg.NewMetadataRequestTopic()
		byName.Topic, byID.TopicID = &topic.Name, topic.ID
		req.Topics = append(req.Topics, byName, byID)
	}
	if resp := roundTrip[*kmsg.MetadataResponse](t, b, req, 12); len(resp.Topics) != 2 {
		t.Errorf("told %d times", len(resp.Topics))
	}
}

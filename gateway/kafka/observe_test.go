package kafka

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// setCodes sets the error codes in v to 0, but the n-th to 42, and returns how
// many there are from n on, n not counted.
func setCodes(v reflect.Value, n int) int {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			switch f := v.Type().Field(i); {
			case f.Name == "ErrorCode":
				v.Field(i).SetInt(0)
				if n == 0 {
					v.Field(i).SetInt(42)
				}
				n--
			case f.IsExported() && f.Name != "UnknownTags":
				n = setCodes(v.Field(i), n)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			n = setCodes(v.Index(i), n)
		}
	}
	return n
}

// Wherever a response has an error, the observer is told.
func TestResponseError(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for key := range NewServer(Options{}).apis {
		if k := kmsg.Key(key); k == kmsg.Produce || k == kmsg.Fetch {
			continue // TestObserver
		}
		found := false
		for range 20 {
			resp := kmsg.ResponseForKey(key)
			fill(rng, reflect.ValueOf(resp).Elem(), 0)
			n := len(errorCodes(reflect.ValueOf(resp).Elem()))
			for i := range n {
				setCodes(reflect.ValueOf(resp).Elem(), i)
				if got := responseError(resp); got != 42 {
					t.Fatalf("%T: error code %d of %d is told as %d", resp, i, n, got)
				}
				found = true
			}
			setCodes(reflect.ValueOf(resp).Elem(), n)
			if got := responseError(resp); got != 0 {
				t.Errorf("%T: %d without an error", resp, got)
			}
		}
		if !found {
			t.Errorf("no error codes in the response of %d", key)
		}
	}
}

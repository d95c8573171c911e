package kafka

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// captured returns the recorded frames by file name.
func captured(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(framesDir, "*.bin"))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]byte, len(paths))
	for _, path := range paths {
		if out[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// What real clients sent is answered: whole, in the form of its version, with
// no error that says we did not understand, and the connection stays open.
func TestCapturedFrames(t *testing.T) {
	frames := captured(t)
	total, clients := 0, map[string]int{}
	for name, frame := range frames {
		total += len(frame)
		for _, c := range []string{"franz-go", "java", "kcat", "sarama"} {
			if strings.HasPrefix(name, c+"-") {
				clients[c]++
			}
		}
		t.Run(strings.TrimSuffix(name, ".bin"), func(t *testing.T) {
			t.Parallel()
			replayFrame(t, frame)
		})
	}
	if len(clients) < 4 || total > 200<<10 {
		t.Errorf("%d bytes of frames, by client %v", total, clients)
	}
}

func replayFrame(t *testing.T, frame []byte) {
	h := serve(t, Limits{})
	captureTopics(h.b)
	head, err := parseHeader(frame[4:])
	if err != nil {
		t.Fatal(err)
	}
	req := kmsg.RequestForKey(head.key)
	req.SetVersion(head.version)
	body := head.body
	if req.IsFlexible() {
		if body, err = skipTags(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := req.ReadFrom(body); err != nil {
		t.Fatal(err)
	}
	checkWalk(t, h.s.apis[head.key], req, body)
	w := h.dial()
	w.send(frame)
	if p, ok := req.(*kmsg.ProduceRequest); !ok || p.Acks != 0 {
		checkReplayed(t, w, req, head.corr)
	}
	ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest()) // still open
}

// checkReplayed reads the answer to req.
func checkReplayed(t *testing.T, w *wire, req kmsg.Request, want uint32) {
	t.Helper()
	corr, b, err := w.read()
	if err != nil || uint32(corr) != want {
		t.Fatalf("answer to %d, want %d: %v", corr, want, err)
	}
	resp := req.ResponseKind()
	if resp.IsFlexible() && resp.Key() != kmsg.ApiVersions.Int16() {
		if b[0] != 0 {
			t.Fatalf("response header has tags: %x", b[0])
		}
		b = b[1:]
	}
	if err := resp.ReadFrom(b); err != nil {
		t.Fatal(err)
	}
	if again := resp.AppendTo(nil); !bytes.Equal(again, b) {
		t.Errorf("not canonical:\n%x\n%x", b, again)
	}
	for _, code := range errorCodes(reflect.ValueOf(resp).Elem()) {
		switch code {
		case 0, kerr.UnknownTopicOrPartition.Code, kerr.TopicAlreadyExists.Code, kerr.UnknownTopicID.Code:
			if _, produced := resp.(*kmsg.ProduceResponse); produced && code != 0 {
				t.Errorf("produced with %v", kerr.ErrorForCode(code))
			}
		case kerr.FetchSessionIDNotFound.Code, kerr.OffsetOutOfRange.Code, kerr.FencedLeaderEpoch.Code:
			if _, fetched := resp.(*kmsg.FetchResponse); !fetched {
				t.Errorf("%T with %v", resp, kerr.ErrorForCode(code))
			}
		default:
			t.Errorf("%T with %v", resp, kerr.ErrorForCode(code))
		}
	}
}

// errorCodes returns all error codes in a response.
func errorCodes(v reflect.Value) (codes []int16) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			switch f := v.Type().Field(i); {
			case f.Name == "ErrorCode":
				codes = append(codes, int16(v.Field(i).Int()))
			case f.IsExported() && f.Name != "UnknownTags":
				codes = append(codes, errorCodes(v.Field(i))...)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			codes = append(codes, errorCodes(v.Index(i))...)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			codes = errorCodes(v.Elem())
		}
	}
	return codes
}

// A frame names its API and version right, or the file would mislead.
func TestCapturedNames(t *testing.T) {
	for name, frame := range captured(t) {
		key := kmsg.NameForKey(int16(binary.BigEndian.Uint16(frame[4:])))
		if !strings.Contains(name, "-"+key+"-v") || int(binary.BigEndian.Uint32(frame)) != len(frame)-4 {
			t.Errorf("%s is of %s", name, key)
		}
	}
}

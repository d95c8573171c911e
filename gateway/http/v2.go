package httpgate

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Media types of Confluent's REST proxy, v2; text is Strimzi's.
const (
	mediaV2       = "application/vnd.kafka.v2+json"
	mediaV2Binary = "application/vnd.kafka.binary.v2+json"
	mediaV2JSON   = "application/vnd.kafka.json.v2+json"
	mediaV2Text   = "application/vnd.kafka.text.v2+json"
)

// v2Answers are what answers without records can be sent as, v2Records those
// with records; the best first.
func v2Answers() []string { return []string{mediaV2, mediaJSON} }
func v2Records() []string {
	return []string{mediaV2Binary, mediaV2, mediaJSON, mediaV2JSON, mediaV2Text}
}

// v2Routes are the routes of the dialect of Confluent's REST proxy, v2, with
// Redpanda's read of a partition and the health checks of Redpanda and Strimzi.
func (s *Server) v2Routes() []route {
	return []route{
		{"GET /{$}", nil, v2(s, v2Answers(), s.v2Root)},
		{"GET /brokers", s.inFlight, v2(s, v2Answers(), s.v2Brokers)},
		{"GET /topics", s.inFlight, v2(s, v2Answers(), s.v2Topics)},
		{"GET /topics/{topic}", s.inFlight, v2(s, v2Answers(), s.v2Topic)},
		{"POST /topics/{topic}", s.inFlight, v2(s, v2Answers(), s.v2Produce)},
		{"GET /topics/{topic}/partitions", s.inFlight, v2(s, v2Answers(), s.v2Partitions)},
		{"GET /topics/{topic}/partitions/{partition}", s.inFlight, v2(s, v2Answers(), s.v2Partition)},
		{"POST /topics/{topic}/partitions/{partition}", s.inFlight, v2(s, v2Answers(), s.v2Produce)},
		{"GET /topics/{topic}/partitions/{partition}/offsets", s.inFlight, v2(s, v2Answers(), s.v2Offsets)},
		{"GET /topics/{topic}/partitions/{partition}/records", s.readers, v2(s, v2Records(), s.v2Read)},
		{"GET /healthy", nil, s.healthy},
		{"GET /ready", nil, s.isReady},
		{"GET /status/ready", nil, s.isReady},
	}
}

// v2Call is a request of the dialect with the media type of its answer.
type v2Call struct {
	w     http.ResponseWriter
	r     *http.Request
	media string
}

// v2 makes a handler of call: it finds the media type of the answer among
// offers, and sends the answer or the error in it.
func v2[T any](s *Server, offers []string, call func(v2Call) (T, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		media, ok := negotiate(r.Header.Values("Accept"), offers)
		if !ok {
			return fail(406, "None of the media types of Accept can be sent; possible are %s.", strings.Join(offers, ", "))
		}
		errorMedia := mediaV2
		if media == mediaJSON {
			errorMedia = mediaJSON
		}
		w.Header().Set("Content-Type", errorMedia)
		answer, err := call(v2Call{w, r, media})
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.limits.StallTime))
		if err != nil {
			return err
		}
		b, err := json.Marshal(answer)
		if err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		w.Header().Set("Content-Type", media)
		if st, ok := any(answer).(interface{ status() int }); ok {
			w.WriteHeader(st.status())
		}
		_, _ = w.Write(append(b, '\n')) // the client is gone: nobody to tell
		return nil
	}
}

// negotiate finds the best of offers for the Accept headers of a request (RFC
// 9110, 12.5.1): the one with the highest weight, the first among equals. No
// header accepts all.
func negotiate(accept, offers []string) (string, bool) {
	if len(accept) == 0 {
		return offers[0], true
	}
	ranges := strings.Split(strings.Join(accept, ","), ",")
	best, weight := "", 0.0
	for _, o := range offers {
		if q := weightOf(o, ranges); q > weight {
			best, weight = o, q
		}
	}
	return best, weight > 0
}

// weightOf returns the weight that the most specific of ranges gives to media,
// 0 if it is not acceptable.
func weightOf(media string, ranges []string) float64 {
	found, weight := 0, 0.0
	for _, r := range ranges {
		name, params, _ := strings.Cut(r, ";")
		specific := 0
		switch strings.ToLower(strings.TrimSpace(name)) {
		case media:
			specific = 3
		case "application/*":
			specific = 2
		case "*/*", "*":
			specific = 1
		}
		if specific > found {
			found, weight = specific, quality(params)
		}
	}
	return weight
}

// quality reads q of a media range's parameters: 1 without one, 0 if it is
// damaged.
func quality(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(p, "=")
		if strings.EqualFold(strings.TrimSpace(k), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err != nil || q < 0 || q > 1 {
				return 0
			}
			return q
		}
	}
	return 1
}

package httpgate_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
)

// TestRules: brokers refuse a batch as a whole, and a batch has the records of
// many clients. One client's records that break the rules of the topic fail
// alone.
func TestRules(t *testing.T) {
	g := start(t, httpgate.Limits{})
	if _, err := g.admin.CreateTopic(t.Context(), 1, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("compact")}, "rules"); err != nil {
		t.Fatal(err)
	}
	const path = "/api/v1/topics/rules/messages"
	future := fmt.Sprint(time.Now().Add(2 * time.Hour).UnixMilli())
	stop := make(chan struct{})
	var bad, good sync.WaitGroup
	for _, c := range []struct{ path, media, body, want string }{
		{path, "text/plain", "no key", `"error_code":40002`},
		{path, ndjson, "1\n2\n", `{"done":false,"lines":1,"produced":0,"failed":1,"line":1,"error_code":40002,`},
		{path + "?format=records", ndjson, `{"key":"future","timestamp":` + future + "}\n", `{"done":false,"lines":1,"produced":0,"failed":1,"line":1,"error_code":40002,`},
		{path + "?format=records", ndjson, `{"key":"last","value":"fits"}` + "\n" + `{"key":"future","timestamp":` + future + "}\n", `{"done":false,"lines":2,"produced":1,"failed":1,"line":2,"error_code":40002,`},
	} {
		bad.Go(func() {
			for {
				if _, answer, _ := g.do("POST", c.path, strings.NewReader(c.body), "Content-Type", c.media); !strings.Contains(answer, c.want) {
					t.Errorf("%s %q: %s", c.path, c.body, answer)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 4 {
		good.Go(func() {
			for n := range 40 {
				g.want(200, `"offset"`, "POST", fmt.Sprintf("%s?key=%d.%d", path, i, n), "good")
				g.want(200, `{"done":true,"lines":2,"produced":2,`, "POST", path+"?format=records", `{"key":"a"}`+"\n"+`{"key":"b","timestamp":1}`, "Content-Type", ndjson)
			}
		})
	}
	good.Wait()
	close(stop)
	bad.Wait()
	// A request with a key has batches of its own. What the rules say is not
	// asked twice, so that its answer stays the same.
	line := `{"key":"k","timestamp":` + future + "}"
	g.want(400, `"error_code":40002`, "POST", path+"?format=records", line, "Content-Type", ndjson, keyHeader, "rules")
}

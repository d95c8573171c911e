package e2e

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/cost"
)

// TestClusterCost counts three agents under load by `cost --live`: what they put to their streams is what the formula says of
// the bytes that came in, as far as that is bounded by the linger, and no more than the agents' own counters; with one address two are missing.
func TestClusterCost(t *testing.T) {
	const linger, window = 50 * time.Millisecond, 5 * time.Second
	c := newCluster(t, 2, "--wal-linger", linger.String())
	addrs := make([]string, len(c.nodes))
	puts := func() (sum float64) {
		for i, n := range c.nodes {
			addrs[i] = n.Admin
			one, _ := value(scrape(t, n)["cirrolog_objstore_requests_total"], "op=put")
			sum += one
		}
		return sum
	}
	var r struct {
		Rows []struct {
			Cirrolog cost.Cirrolog `json:"cirrolog"`
		} `json:"rows"`
		Live struct {
			Nodes, Missing []int32
			Produced       float64 `json:"produced_bytes_per_second"`
		} `json:"live"`
	}
	c.load(1000) // which goes on
	before, began := puts(), time.Now()
	var out bytes.Buffer
	if err := c.nodes[0].CLI(&out, "cost", "--live", "--window", window.String(), "--metrics", strings.Join(addrs, ","), "-o", "json"); err != nil {
		t.Fatal(err, out.String())
	}
	counted, took := puts()-before, time.Since(began)
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	got := r.Rows[0].Cirrolog
	n := float64(len(c.nodes))
	most := n * cost.WALPuts(r.Live.Produced/n, 1, linger)
	if got.Rates.WALPuts <= 0 || got.Rates.WALPuts > 1.1*most || got.Agents != len(c.nodes) || r.Live.Produced <= 0 {
		t.Errorf("%+v of %.0f bytes/s: want %.1f puts a second at most", got.Rates, r.Live.Produced, most)
	}
	if all := (got.Rates.WALPuts + got.Rates.SegmentPuts) * window.Seconds(); all > 1.1*counted || all < 0.5*counted*window.Seconds()/took.Seconds() {
		t.Errorf("%.0f puts in %v, the agents counted %.0f in %v", all, window, counted, took)
	}
	t.Logf("%+v, produced %.0f bytes/s, at most %.1f puts a second", got, r.Live.Produced, most)
	out.Reset()
	if err := c.nodes[0].CLI(&out, "cost", "--live", "--window", "1s"); err == nil || !strings.Contains(err.Error(), "registered and not counted") {
		t.Errorf("one of three addresses: %v\n%s", err, out.String())
	}
	c.finish()
}

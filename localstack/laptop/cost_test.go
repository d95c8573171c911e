package laptop

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// TestCostEstimate: the estimate of the Terraform root is what `cirrolog cost` prints for the same load, at the prices that
// both begin with.
func TestCostEstimate(t *testing.T) {
	t.Parallel()
	root, tofu := terraform(t)
	dir := t.TempDir() // the estimate alone, without a provider
	for _, name := range []string{"cost.tf", "variables.tf"} {
		if err := os.Rename(filepath.Join(root, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	cirrolog := testenv.Binary(t)
	for _, c := range []struct {
		load          string // of the root
		flags         string // of cirrolog cost
		agents, zones int
		near          float64 // what is solved here is found in rounds there
	}{
		{`{}`, "--in 10MiB --retention 7d", 3, 3, 1e-9},
		{`{in_mib=1,retention_days=30}`, "--in 1MiB --retention 30d", 3, 3, 1e-9},
		{`{in_mib=100,retention_days=1,fan_out=0.5,cold=0.25,compression=4}`, "--in 100MiB --retention 1d --fan-out 0.5 --cold 0.25 --compression 4", 4, 2, 1e-9},
		{`{in_mib=100,partitions=1000,sweep_minutes=120}`, "--in 100MiB --retention 7d --partitions 1000 --sweep-interval 2h", 4, 3, 1e-6},
		{`{in_mib=0.5,partitions=400,linger_ms=500,batch_kib=1}`, "--in 512KiB --retention 7d --partitions 400 --wal-linger 500ms --batch 1KiB", 1, 1, 1e-6},
		{`{in_mib=3,partitions=3000,segment_mib=4}`, "--in 3MiB --retention 7d --partitions 3000 --segment-bytes 4MiB", 3, 3, 0.01},
		{`{in_mib=600,partitions=3000}`, "--in 600MiB --retention 7d --partitions 3000", 3, 3, 0.01},
	} {
		zones := []string{`"eu-central-1a"`, `"eu-central-1b"`, `"eu-central-1c"`}[:c.zones]
		out, err := tofu(dir, "console", "-no-color", "-var", "name=prod", "-var", "bucket=a-bucket", "-var", "zones=["+strings.Join(zones, ",")+"]", "-var", fmt.Sprint("agents=", c.agents),
			"-var", `ec2={program_url="s3://releases/cirrolog",program_sha256="0"}`, "-var", "load="+c.load, "jsonencode(local.cost)")
		if err != nil {
			t.Fatalf("tofu console: %v\n%s", err, out)
		}
		at := strings.Index(out, `"{`)
		text, err := strconv.Unquote(strings.TrimSpace(out[max(at, 0):]))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var here map[string]float64
		if err := json.Unmarshal([]byte(text), &here); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		args := append([]string{"cost", "-o", "json", "--agents", fmt.Sprint(c.agents), "--zones", fmt.Sprint(c.zones)}, strings.Fields(c.flags)...)
		printed, err := exec.Command(cirrolog, args...).Output()
		var there struct {
			Rows []struct{ Cirrolog map[string]any }
		}
		if err := errors.Join(err, json.Unmarshal(printed, &there)); err != nil || len(there.Rows) != 1 {
			t.Fatalf("cirrolog cost %s: %v\n%s", c.flags, err, printed)
		}
		if len(here) != 7 {
			t.Errorf("parts: %v", here)
		}
		for part, dollars := range here {
			want, ok := there.Rows[0].Cirrolog[part].(float64)
			if !ok || math.Abs(dollars-want) > c.near*want {
				t.Errorf("%s: %s %.6f, cirrolog cost has %.6f", c.load, part, dollars, want)
			}
		}
	}
}

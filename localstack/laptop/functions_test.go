package laptop

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/lambda"
)

var built = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(testenv.Root(), ".cache", "test", "lambda")
	cmd := exec.Command("go", "run", "./internal/lambdazip", "-o", dir)
	cmd.Dir = testenv.Root()
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return dir, err
})

// zips builds the Lambda functions once and returns their directory.
func zips(t *testing.T) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// created is what the AWS emulator tells of a function.
type created struct {
	Configuration struct {
		CodeSha256, Runtime, Role string
		Architectures             []string
		Environment               struct{ Variables map[string]string }
	}
}

// emulator asks the AWS emulator with a request as one service signs it; it looks at the name of the service alone.
func (l *laptop) emulator(service, path string, answer any) {
	l.t.Helper()
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", l.ports[3], path), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=emulator/20260101/us-east-1/"+service+"/aws4_request, SignedHeaders=host, Signature=0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil || resp.StatusCode != http.StatusOK {
		l.t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
}

// checkFunctions asks the AWS emulator for the functions that the hook created, and runs one with the variables that it has
// there, on the cluster: the emulator itself would need Docker for that.
func (l *laptop) checkFunctions() {
	t := l.t
	t.Helper()
	var sweep created
	for name, variable := range map[string]string{"ingest": "CIRROLOG_BROKERS", "sweep": "CIRROLOG_METADATA", "verify": "CIRROLOG_BUCKET"} {
		var f created
		l.emulator("lambda", "/2015-03-31/functions/cirrolog-"+name, &f)
		zip, err := os.ReadFile(filepath.Join(zips(t), name+".zip"))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(zip)
		if c := f.Configuration; c.CodeSha256 != base64.StdEncoding.EncodeToString(sum[:]) || c.Runtime != "provided.al2023" || strings.Join(c.Architectures, "") != "arm64" || c.Environment.Variables[variable] == "" {
			t.Errorf("%s: %+v", name, c)
		}
		if name == "sweep" {
			sweep = f
		}
	}
	env := []string{"AWS_ACCESS_KEY_ID=cirrolog", "AWS_SECRET_ACCESS_KEY=cirrolog-secret"}
	for k, v := range sweep.Configuration.Environment.Variables {
		env = append(env, k+"="+v)
	}
	event, err := os.ReadFile(filepath.Join(testenv.Root(), "localstack", "lambda", "testdata", "schedule.json"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := lambda.New(t, "sweep", env...).Invoke(event)
	if err != nil || !strings.Contains(string(answer), `"segments":`) {
		t.Errorf("sweep: %s, %v", answer, err)
	}
	t.Logf("sweep: %s", answer)
}

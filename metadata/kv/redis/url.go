package redis

import (
	"fmt"
	"net/url"
	"strings"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// defaultNamespace of Open.
const defaultNamespace = "cirrolog"

const maxNamespace = 64

const urlForm = "want redis[s]://[USER:PASSWORD@]HOST[:PORT][/DB][?namespace=NAME]"

// parseURL reads the URL of Open. Its errors do not show the URL, which may
// hold a password.
func parseURL(raw, namespace string) (opts *goredis.Options, ns string, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, "", fmt.Errorf("redis URL is malformed: %s; a password's special characters are written %%XX", urlForm)
	}
	if u.Scheme != "redis" && u.Scheme != "rediss" {
		return nil, "", fmt.Errorf("redis URL has the scheme %q: %s", u.Scheme, urlForm)
	}
	q := u.Query()
	if ns = q.Get("namespace"); ns == "" {
		ns = namespace
	}
	if ns == "" {
		ns = defaultNamespace
	}
	if err := checkNamespace(ns); err != nil {
		return nil, "", err
	}
	q.Del("namespace")
	u.RawQuery = q.Encode()
	if opts, err = goredis.ParseURL(u.String()); err != nil {
		return nil, "", fmt.Errorf("redis URL of %s: %w: %s", u.Host, err, urlForm)
	}
	// A commit is never sent twice, and a refused connection is told at once.
	opts.Protocol, opts.MaxRetries, opts.DialerRetries = 2, -1, 1
	// Round trips of each new connection that nothing here needs.
	opts.DisableIdentity = true
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return opts, ns, nil
}

// checkNamespace keeps names apart from what the keys are made of.
func checkNamespace(ns string) error {
	ok := len(ns) <= maxNamespace
	for _, c := range ns {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.", c))
	}
	if !ok {
		return fmt.Errorf("redis namespace %q: want up to %d letters, digits, '-', '_' and '.'", ns, maxNamespace)
	}
	return nil
}

// keys are the names of what a namespace has in Redis. The part in braces puts
// them all into one hash slot of a cluster.
type keys struct {
	meta, sorted, rows, log string
	leases                  string // prefix
}

func keysOf(ns string) keys {
	p := "{" + ns + "}:"
	return keys{meta: p + "meta", sorted: p + "keys", rows: p + "rows", log: p + "log", leases: p + "lease:"}
}

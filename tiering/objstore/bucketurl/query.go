package bucketurl

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// s3Keys are the parameters of s3:// URLs.
func s3Keys() []string { return []string{"ca", "driver", "endpoint", "kms", "path_style", "region"} }

// parseQuery returns the parameters of a query. Every key must be one of keys
// and stand once, with a value.
func parseQuery(raw string, keys []string) (map[string]string, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("query: %w: %w", objstore.ErrInvalid, err)
	}
	out := make(map[string]string, len(values))
	for key, v := range values {
		switch {
		case !slices.Contains(keys, key):
			return nil, fmt.Errorf("unknown parameter %q, did you mean %q? (there are %s): %w",
				key, nearest(key, keys), strings.Join(keys, ", "), objstore.ErrInvalid)
		case len(v) != 1:
			return nil, fmt.Errorf("parameter %q stands %d times: %w", key, len(v), objstore.ErrInvalid)
		case v[0] == "":
			return nil, fmt.Errorf("parameter %q is empty: %w", key, objstore.ErrInvalid)
		}
		out[key] = v[0]
	}
	return out, nil
}

// nearest returns the candidate with the fewest edits from s.
func nearest(s string, candidates []string) string {
	s = s[:min(len(s), 64)]
	return slices.MinFunc(candidates, func(a, b string) int { return distance(s, a) - distance(s, b) })
}

// distance is Levenshtein's, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

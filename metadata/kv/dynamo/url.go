package dynamo

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// location is what the URL of a store says.
type location struct {
	table, prefix    string
	region, endpoint string
	create           bool
}

const maxPrefix = 255 // bytes; it is part of every partition key

// isTableName reports whether DynamoDB takes the name. (As a regular expression it takes a quarter of a megabyte.)
func isTableName(s string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	return len(s) >= 3 && len(s) <= 255 && strings.Trim(s, chars) == ""
}

func parseURL(raw string) (location, error) {
	var loc location
	rest, ok := strings.CutPrefix(raw, "dynamodb://")
	if !ok {
		return loc, errors.New("want dynamodb://TABLE[/PREFIX]?region=NAME&endpoint=URL&create=true")
	}
	rest, query, _ := strings.Cut(rest, "?")
	loc.table, loc.prefix, _ = strings.Cut(rest, "/")
	loc.prefix = strings.Trim(loc.prefix, "/")
	if !isTableName(loc.table) {
		return loc, fmt.Errorf("dynamodb://%s: table name %q is not 3 to 255 letters, digits, '_', '-' and '.'", rest, loc.table)
	}
	if len(loc.prefix) > maxPrefix {
		return loc, fmt.Errorf("dynamodb://%s: prefix of %d bytes, at most %d", loc.table, len(loc.prefix), maxPrefix)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return loc, fmt.Errorf("dynamodb://%s: %w", rest, err)
	}
	for name, v := range values {
		switch name {
		case "region":
			loc.region = v[0]
		case "endpoint":
			loc.endpoint, err = checkEndpoint(v[0])
		case "create":
			if loc.create, err = strconv.ParseBool(v[0]); err != nil {
				err = fmt.Errorf("create=%s is neither true nor false", v[0])
			}
		default:
			err = fmt.Errorf("unknown parameter %q: there are region, endpoint and create", name)
		}
		if err == nil && len(v) > 1 {
			err = fmt.Errorf("parameter %q stands twice", name)
		}
		if err != nil {
			return loc, fmt.Errorf("dynamodb://%s: %w", rest, err)
		}
	}
	return loc, nil
}

func checkEndpoint(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return "", fmt.Errorf("endpoint %q is not http://HOST[:PORT] or https://HOST[:PORT]", raw)
	}
	return u.Scheme + "://" + u.Host, nil
}

// Package httpevent makes HTTP requests of the events that a Lambda function is invoked with, and answers of the
// responses: Function URLs and HTTP APIs (payload format 2.0), REST APIs and HTTP APIs (1.0), Application Load Balancers.
//
// Sources: the payload formats at https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html,
// https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html and
// https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html.
package httpevent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
)

// ErrNoEvent: what came is none of the events, so that there is nobody to answer in HTTP.
var ErrNoEvent = errors.New("not an event of a Function URL, an HTTP API, a REST API or an Application Load Balancer")

// errRequest: the event is one of HTTP, but not a request.
var errRequest = errors.New("the event is not a request")

// source is who sent an event. The answer is in its format.
type source int

const (
	format2 source = iota // Function URL, HTTP API
	format1               // REST API, HTTP API with payload format 1.0
	balancer
	balancerMulti // with multi-value headers
)

// kind is what tells events apart.
type kind struct {
	Version        string `json:"version"`
	HTTPMethod     string `json:"httpMethod"`
	RequestContext struct {
		HTTP *struct{} `json:"http"`
		ELB  *struct{} `json:"elb"`
	} `json:"requestContext"`
	MultiValueHeaders map[string][]string `json:"multiValueHeaders"`
}

// sourceOf fails with ErrNoEvent.
func sourceOf(payload []byte) (source, error) {
	var k kind
	if err := json.Unmarshal(payload, &k); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoEvent, err)
	}
	switch {
	case k.Version == "2.0" || k.RequestContext.HTTP != nil:
		return format2, nil
	case k.RequestContext.ELB != nil && k.MultiValueHeaders != nil:
		return balancerMulti, nil
	case k.RequestContext.ELB != nil:
		return balancer, nil
	case k.Version == "1.0" || k.HTTPMethod != "":
		return format1, nil
	}
	return 0, ErrNoEvent
}

// parts are what a request is made of.
type parts struct {
	method, path, query string // path may be escaped; query is
	host, remote        string
	header              http.Header
	body                string
	base64              bool
}

// request makes the request of an event. Its errors but those of reading the event wrap errRequest.
func request(ctx context.Context, from source, payload []byte) (*http.Request, error) {
	if !utf8.Valid(payload) { // decoding would replace bytes, and others would be stored than were sent
		return nil, fmt.Errorf("%w: it is not UTF-8; a body that is not must come in Base64", errRequest)
	}
	p, err := partsOf(from, payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRequest, err)
	}
	switch {
	case p.method == "":
		return nil, fmt.Errorf("%w: it has no method", errRequest)
	case !strings.HasPrefix(p.path, "/"):
		return nil, fmt.Errorf("%w: its path %.80q does not begin with /", errRequest, p.path)
	}
	body := []byte(p.body)
	if p.base64 {
		if body, err = base64.StdEncoding.DecodeString(p.body); err != nil {
			return nil, fmt.Errorf("%w: its body is not Base64, as isBase64Encoded says: %w", errRequest, err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, p.method, "/", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRequest, err)
	}
	if r.URL, err = url.ParseRequestURI(p.path); err != nil || r.URL.RawQuery != "" {
		r.URL = &url.URL{Path: p.path} // it was decoded on its way
	}
	r.URL.RawQuery, r.Header, r.Host, r.RemoteAddr = p.query, p.header, p.host, p.remote
	r.RequestURI = r.URL.RequestURI()
	// They are about the way to AWS; the body has its length.
	for _, h := range []string{"Content-Length", "Transfer-Encoding", "Connection", "Expect", "Host"} {
		r.Header.Del(h)
	}
	return r, nil
}

func partsOf(from source, payload []byte) (parts, error) {
	switch from {
	case format2:
		return partsOf2(payload)
	case format1:
		return partsOf1(payload)
	}
	return partsOfBalancer(payload)
}

func partsOf2(payload []byte) (parts, error) {
	var e events.APIGatewayV2HTTPRequest
	if err := json.Unmarshal(payload, &e); err != nil {
		return parts{}, err
	}
	c := &e.RequestContext
	p := parts{method: c.HTTP.Method, path: e.RawPath, query: e.RawQueryString, remote: c.HTTP.SourceIP, header: header(e.Headers, nil), body: e.Body, base64: e.IsBase64Encoded}
	// The path begins with the name of the stage, but for the default one.
	if rest, ok := strings.CutPrefix(e.RawPath, "/"+c.Stage); ok && c.Stage != "" && (rest == "" || rest[0] == '/') {
		p.path = "/" + strings.TrimPrefix(rest, "/")
	}
	if p.host = p.header.Get("Host"); p.host == "" {
		p.host = c.DomainName
	}
	if len(e.Cookies) > 0 {
		p.header.Set("Cookie", strings.Join(e.Cookies, "; "))
	}
	return p, nil
}

func partsOf1(payload []byte) (parts, error) {
	var e events.APIGatewayProxyRequest
	if err := json.Unmarshal(payload, &e); err != nil {
		return parts{}, err
	}
	q := url.Values(e.MultiValueQueryStringParameters)
	if q == nil {
		q = url.Values{}
		for k, v := range e.QueryStringParameters {
			q.Set(k, v)
		}
	}
	p := parts{method: e.HTTPMethod, path: e.Path, query: q.Encode(), remote: e.RequestContext.Identity.SourceIP,
		header: header(e.Headers, e.MultiValueHeaders), body: e.Body, base64: e.IsBase64Encoded}
	if p.host = p.header.Get("Host"); p.host == "" {
		p.host = e.RequestContext.DomainName
	}
	return p, nil
}

// partsOfBalancer differs from format 1.0 in that names and values of the query come as the client has escaped them.
func partsOfBalancer(payload []byte) (parts, error) {
	var e events.ALBTargetGroupRequest
	if err := json.Unmarshal(payload, &e); err != nil {
		return parts{}, err
	}
	var q []string
	for k, v := range e.QueryStringParameters {
		if e.MultiValueQueryStringParameters == nil {
			q = append(q, k+"="+v)
		}
	}
	for k, vs := range e.MultiValueQueryStringParameters {
		for _, v := range vs {
			q = append(q, k+"="+v)
		}
	}
	p := parts{method: e.HTTPMethod, path: e.Path, query: strings.Join(q, "&"), header: header(e.Headers, e.MultiValueHeaders), body: e.Body, base64: e.IsBase64Encoded}
	p.host = p.header.Get("Host")
	p.remote, _, _ = strings.Cut(p.header.Get("X-Forwarded-For"), ",")
	return p, nil
}

// header is the request's: multi where it is given, for it has all values.
func header(single map[string]string, multi map[string][]string) http.Header {
	h := http.Header{}
	if multi != nil {
		for k, vs := range multi {
			for _, v := range vs {
				h.Add(k, v)
			}
		}
		return h
	}
	for k, v := range single {
		h.Set(k, v)
	}
	return h
}

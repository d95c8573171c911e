// Package s3core is what the two S3 drivers have in common: options, HTTP
// transport, the meaning of S3's answers, attempts with their time limits, and
// the bucket on top of a client that does one HTTP exchange a call.
package s3core

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Style is how requests name the bucket.
type Style uint8

const (
	// StyleAuto is StylePath on a given endpoint and StyleHost on Amazon's.
	StyleAuto Style = iota
	// StylePath puts the bucket into the path: http://host/bucket/key.
	StylePath
	// StyleHost puts the bucket into the host name: https://bucket.host/key.
	StyleHost
)

const (
	// MinPart is S3's smallest part but the last of a multipart upload.
	MinPart  = 5 << 20
	maxParts = 10_000
	// slowest is the rate, in bytes a second, below which a put is given up.
	slowest    = 1 << 20
	readBuffer = 1 << 20
	dialLimit  = 10 * time.Second
	idleLimit  = 90 * time.Second
)

// Options of both drivers. Only Bucket must be set.
type Options struct {
	Bucket string
	// Endpoint is "http://host:port" or "https://host:port"; empty means
	// AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or Amazon's own.
	Endpoint string
	// Region, else that of the AWS configuration, else us-east-1 when the
	// endpoint is not Amazon's.
	Region string
	Style  Style
	// CAFile is a PEM file of authorities trusted beside the system's; empty
	// means AWS_CA_BUNDLE.
	CAFile string
	// KMSKeyID asks for SSE-KMS with this key; empty leaves the bucket's default.
	KMSKeyID string
	// AccessKey and SecretKey replace AWS's credential chain.
	AccessKey, SecretKey string
	// Timeout bounds the wait for an answer and between two pieces of a body;
	// 0 means 30 s. A put has one second more for each MiB.
	Timeout time.Duration
	// Connections bounds the connections at once; 0 means 64. Each has a read
	// buffer of 1 MiB.
	Connections int
	// SinglePut is the largest object sent in one request; 0 means 1 GiB.
	SinglePut int64
	// PartSize of larger ones, raised so that 10,000 parts are enough; 0 means
	// 256 MiB, less than 5 MiB is an error.
	PartSize int64
}

// Check returns o with its defaults, or what is wrong with it.
func (o Options) Check() (Options, error) {
	if o.Bucket == "" {
		return o, errors.New("bucket name is missing")
	}
	if o.Endpoint == "" {
		for _, name := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"} {
			if o.Endpoint = os.Getenv(name); o.Endpoint != "" {
				break
			}
		}
	}
	if o.Endpoint != "" {
		u, err := url.Parse(o.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return o, fmt.Errorf("endpoint %q is not http://HOST[:PORT] or https://HOST[:PORT]", o.Endpoint)
		}
		o.Endpoint = u.Scheme + "://" + u.Host
	}
	if o.CAFile == "" {
		o.CAFile = os.Getenv("AWS_CA_BUNDLE")
	}
	if o.Style == StyleAuto {
		o.Style = StyleHost
		if o.Custom() {
			o.Style = StylePath
		}
	}
	if (o.AccessKey == "") != (o.SecretKey == "") {
		return o, errors.New("access key and secret key go together")
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Connections <= 0 {
		o.Connections = 64
	}
	if o.SinglePut <= 0 {
		o.SinglePut = 1 << 30
	}
	if o.PartSize == 0 {
		o.PartSize = 256 << 20
	}
	if o.PartSize < MinPart {
		return o, fmt.Errorf("part size %d is below %d", o.PartSize, MinPart)
	}
	return o, nil
}

// Custom reports whether the endpoint is given and not Amazon's.
func (o Options) Custom() bool {
	u, err := url.Parse(o.Endpoint)
	return err == nil && u.Host != "" && !strings.HasSuffix(u.Hostname(), ".amazonaws.com") &&
		!strings.HasSuffix(u.Hostname(), ".amazonaws.com.cn")
}

// Transport returns the HTTP transport of the options, which Check returned.
// The owner calls CloseIdleConnections at its end.
func (o Options) Transport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialLimit, KeepAlive: idleLimit / 3}).DialContext,
		TLSHandshakeTimeout:   dialLimit,
		ResponseHeaderTimeout: o.Timeout,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       idleLimit,
		MaxConnsPerHost:       o.Connections,
		MaxIdleConns:          o.Connections,
		MaxIdleConnsPerHost:   o.Connections,
		ReadBufferSize:        readBuffer,
		DisableCompression:    true,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if o.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read authorities: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read authorities: %s holds no certificate", o.CAFile)
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

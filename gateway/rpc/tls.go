package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// TLS is an agent's certificate and the authority that all certificates of the cluster's agents come
// from, both of files that are read again when they have changed. It is safe for concurrent use.
type TLS struct {
	cert, key, ca string
	log           *slog.Logger

	mu      sync.Mutex
	stamps  [3]stamp
	checked time.Time
	config  *tls.Config // for either side; nil before the files were read
}

// stamp tells versions of a file apart.
type stamp struct {
	modified time.Time
	size     int64
}

// recheck is how often the files are looked at, at most.
const recheck = time.Second

// LoadTLS reads PEM files: a certificate with its chain, its key, and the authorities that other
// agents' certificates must come from.
func LoadTLS(cert, key, ca string, log *slog.Logger) (*TLS, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &TLS{cert: cert, key: key, ca: ca, log: log}
	stamps, err := t.look()
	if err != nil {
		return nil, err
	}
	t.stamps, t.checked = stamps, time.Now()
	t.config, err = t.load()
	return t, err
}

func (t *TLS) look() (out [3]stamp, err error) {
	for i, path := range []string{t.cert, t.key, t.ca} {
		fi, err := os.Stat(path)
		if err != nil {
			return out, err
		}
		out[i] = stamp{fi.ModTime(), fi.Size()}
	}
	return out, nil
}

func (t *TLS) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.cert, t.key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", t.cert, t.key, err)
	}
	pem, err := os.ReadFile(t.ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM", t.ca)
	}
	if now := time.Now(); now.After(cert.Leaf.NotAfter) {
		t.log.Warn("this agent's certificate has expired: the others refuse it", "file", t.cert, "not_after", cert.Leaf.NotAfter)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}, nil
}

// current reads the files again if they have changed. While they can't be used, the ones before count.
func (t *TLS) current() *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.checked) < recheck {
		return t.config
	}
	t.checked = time.Now()
	stamps, err := t.look()
	if err == nil && stamps == t.stamps {
		return t.config
	}
	var next *tls.Config
	if err == nil {
		next, err = t.load()
	}
	if err != nil {
		t.log.Warn("the changed TLS files can't be used; going on with the ones before", "err", err)
		return t.config
	}
	t.log.Info("read changed TLS files", "file", t.cert, "not_after", next.Certificates[0].Leaf.NotAfter)
	t.config, t.stamps = next, stamps
	return next
}

func (t *TLS) credentials() credentials.TransportCredentials { return reloading{t} }

// reloading makes each handshake with what the files have then.
type reloading struct{ t *TLS }

// ClientHandshake implements credentials.TransportCredentials.
func (r reloading) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(r.t.current()).ClientHandshake(ctx, authority, raw)
}

// ServerHandshake implements credentials.TransportCredentials.
func (r reloading) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(r.t.current()).ServerHandshake(raw)
}

// Info implements credentials.TransportCredentials.
func (r reloading) Info() credentials.ProtocolInfo { return credentials.NewTLS(r.t.current()).Info() }

// Clone implements credentials.TransportCredentials.
func (r reloading) Clone() credentials.TransportCredentials { return r }

// OverrideServerName implements credentials.TransportCredentials; gRPC does not use it.
func (r reloading) OverrideServerName(string) error {
	return errors.New("the server name is that of the address")
}

// loggedHandshakes logs each connection that is refused.
type loggedHandshakes struct {
	credentials.TransportCredentials
	log *slog.Logger
}

// ServerHandshake implements credentials.TransportCredentials.
func (l loggedHandshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := l.TransportCredentials.ServerHandshake(raw)
	if err != nil && !errors.Is(err, io.EOF) { // a probe that connects and goes
		l.log.Warn("refused a connection: "+refusal(err), "remote", raw.RemoteAddr().String(), "err", err)
	}
	return c, info, err
}

// Clone implements credentials.TransportCredentials.
func (l loggedHandshakes) Clone() credentials.TransportCredentials {
	return loggedHandshakes{l.TransportCredentials.Clone(), l.log}
}

// refusal says what is wrong with whoever connected, and what to do.
func refusal(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is not of an authority in --rpc-tls-ca: give all agents certificates of one authority"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "its certificate has expired, or is not valid yet: renew it, or set the clocks"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "it speaks no TLS: give all agents --rpc-tls-cert, or none"
	}
	if strings.Contains(err.Error(), "didn't provide a certificate") { // crypto/tls has no value for it
		return "it has no certificate: give all agents --rpc-tls-cert, --rpc-tls-key and --rpc-tls-ca"
	}
	return "the TLS handshake failed"
}

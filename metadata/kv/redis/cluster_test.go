package redis

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/kvtest"
)

// startCluster starts two masters, each with half of the hash slots.
func startCluster(t *testing.T) (a, b *redis.Server) {
	t.Helper()
	args := []string{"--cluster-enabled", "yes", "--cluster-node-timeout", "2000"}
	a, b = redis.Start(t, args...), redis.Start(t, args...)
	do(t, a, "CLUSTER", "ADDSLOTSRANGE", "0", "8191")
	do(t, b, "CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
	do(t, b, "CLUSTER", "SET-CONFIG-EPOCH", "2")
	host, port, err := net.SplitHostPort(b.Addr)
	if err != nil {
		t.Fatal(err)
	}
	do(t, a, "CLUSTER", "MEET", host, port)
	for end := time.Now().Add(patient); ; time.Sleep(20 * time.Millisecond) {
		if strings.Contains(do(t, a, "CLUSTER", "INFO"), "cluster_state:ok") && strings.Contains(do(t, b, "CLUSTER", "INFO"), "cluster_state:ok") {
			return a, b
		}
		if time.Now().After(end) {
			t.Fatalf("the cluster does not form:\n%s", a.Log())
		}
	}
}

func TestClusterConformance(t *testing.T) {
	a, _ := startCluster(t)
	kvtest.Run(t, func(t *testing.T) kv.Store { return openURL(t, a.URL(newNamespace()), Options{}) })
	if _, err := Open(ctxOf(t), "redis://"+a.Addr+"/1", Options{Logger: discard()}); err == nil || !strings.Contains(err.Error(), "no database 1") {
		t.Errorf("open of database 1 of a cluster: %v", err)
	}
}

// A hash slot moves to the other master under load: nothing is lost, nothing
// is done twice, and a watch misses nothing.
func TestSlotMoves(t *testing.T) {
	a, b := startCluster(t)
	const ns = "x"
	k := keysOf(ns)
	slot := do(t, a, "CLUSTER", "KEYSLOT", k.meta)
	from, to := a, b
	if atoi(t, slot) > 8191 {
		from, to = b, a
	}
	s := openURL(t, a.URL(ns), quick)
	m := newMirror(t, openURL(t, b.URL(ns), quick))
	idle := openURL(t, b.URL(ns), Options{})
	commit(t, idle, set("idle", "before"))
	stop := make(chan struct{})
	wait, acked := load(t, s, 4, stop)
	more := func(n int64) {
		for n += acked.Load(); acked.Load() < n && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	more(100)
	fromID, toID := do(t, from, "CLUSTER", "MYID"), do(t, to, "CLUSTER", "MYID")
	_, port, err := net.SplitHostPort(to.Addr)
	if err != nil {
		t.Fatal(err)
	}
	do(t, to, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
	do(t, from, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
	more(20)
	do(t, from, "MIGRATE", "127.0.0.1", port, "", "0", "5000", "KEYS", k.meta, k.sorted, k.rows, k.log)
	do(t, to, "CLUSTER", "SETSLOT", slot, "NODE", toID)
	do(t, from, "CLUSTER", "SETSLOT", slot, "NODE", toID)
	commit(t, idle, set("idle", "after")) // which does not know yet where the slot is
	more(100)
	close(stop)
	keys := wait()
	for _, key := range keys {
		if _, err := s.Get(ctxOf(t), key); err != nil {
			t.Fatalf("acknowledged key %s: %v", key, err)
		}
	}
	m.same(t, s)
	if n := atoi(t, do(t, to, "XLEN", k.log)); n != len(keys)+2 {
		t.Errorf("%d keys and 2 more were written by %d commits", len(keys), n)
	}
	if err := s.Acquire(ctxOf(t), "l", "o", time.Minute); err != nil {
		t.Error(err)
	}
	if err := s.Acquire(ctxOf(t), "l", "p", time.Minute); !errors.Is(err, kv.ErrLeaseLost) {
		t.Error(err)
	}
}

// selfSigned returns a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
}

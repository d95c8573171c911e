package redis_test

import (
	"testing"

	"github.com/cirrolog/cirrolog/localstack/redis"
)

func TestKillAndRestart(t *testing.T) {
	s := redis.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	if _, err := s.Do("SET", "k", "v"); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Do("GET", "k"); err == nil {
		t.Fatal("a killed server answers")
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Do("GET", "k"); v != "v" || err != nil {
		t.Fatalf("%q %v", v, err)
	}
	if _, err := s.Do("NONSENSE"); err == nil {
		t.Fatal("an error is no error")
	}
}

func TestShared(t *testing.T) {
	var server redis.Shared
	a, b := server.Start(t), server.Start(t)
	if a != b {
		t.Errorf("two servers, %s and %s", a.Addr, b.Addr)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Do("PING"); err == nil {
		t.Error("the server still answers")
	}
}

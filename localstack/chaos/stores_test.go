package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awsdynamodb "github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/cirrolog/cirrolog/localstack/dynamodb"
	"github.com/cirrolog/cirrolog/localstack/redis"
)

// redisStore is a Redis whose append-only file can be put back to what it was.
type redisStore struct {
	t      testing.TB
	server *redis.Server
	dir    string
}

func openRedis(dir string) func(testing.TB) store {
	return func(t testing.TB) store {
		dir := filepath.Join(dir, "redis")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return &redisStore{t: t, dir: dir, server: redis.Start(t, "--dir", dir, "--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0")}
	}
}

func (s *redisStore) addr() string           { return s.server.Addr }
func (s *redisStore) url(addr string) string { return "redis://" + addr + "?namespace=chaos" }

func (s *redisStore) faults() []fault {
	return []fault{
		{"redis-restart", ofStore, "", s.restart},
		{"redis-rollback", ofStore, "", s.rollback},
		{"redis-flush", ofStore, recoverSkip(s.t), s.flush},
	}
}

// restart is kill -9 of Redis; nothing is forgotten.
func (s *redisStore) restart(c *cluster, r *rand.Rand) error {
	if err := s.server.Kill(); err != nil {
		return err
	}
	sleep(c.ctx, between(r, 100*time.Millisecond, 4*lease))
	return s.server.Restart()
}

const aofDir = "appendonlydir"

// rollback has Redis forget its last seconds, as a failover to a replica that lags does; half of the time an
// agent died in them, and others have taken over from it.
func (s *redisStore) rollback(c *cluster, r *rand.Rand) error {
	live, kept := filepath.Join(s.dir, aofDir), filepath.Join(s.dir, "kept")
	if err := errors.Join(os.RemoveAll(kept), os.CopyFS(kept, os.DirFS(live))); err != nil { // appended to meanwhile, so that what is there is whole
		return err
	}
	if r.IntN(2) == 0 {
		if err := c.killAgent(r); err != nil {
			return err
		}
	}
	sleep(c.ctx, between(r, time.Second, 5*time.Second))
	if err := s.server.Kill(); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(live), os.Rename(kept, live)); err != nil {
		return err
	}
	sleep(c.ctx, between(r, 0, 2*lease))
	return s.server.Restart()
}

// flush empties Redis and rebuilds it from the bucket.
func (s *redisStore) flush(c *cluster, r *rand.Rand) error {
	if _, err := s.server.Do("FLUSHALL"); err != nil {
		return err
	}
	sleep(c.ctx, between(r, 0, 3*time.Second))
	return c.recoverMetadata()
}

// local is the DynamoDB of this process.
var local dynamodb.Shared

// dynamoStore is a DynamoDB behind a proxy that can refuse requests, and one that can be away.
type dynamoStore struct {
	t        testing.TB
	throttle *throttle
	way      *tcpProxy
	endpoint string
}

const dynamoTable = "chaos"

func openDynamo(t testing.TB) store {
	s := &dynamoStore{t: t, endpoint: local.Start(t)}
	var err error
	if s.throttle, err = newThrottle(freeAddr(t), s.endpoint); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.throttle.close)
	if s.way, err = newTCPProxy(freeAddr(t), s.throttle.addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.way.close)
	return s
}

func (s *dynamoStore) addr() string { return s.way.addr }
func (s *dynamoStore) url(addr string) string {
	return fmt.Sprintf("dynamodb://%s?region=us-east-1&create=true&endpoint=http://%s", dynamoTable, addr)
}

func (s *dynamoStore) faults() []fault {
	return []fault{
		{"dynamo-throttled", ofStore, "", s.throttled},
		{"dynamo-away", ofStore, "", s.away},
		{"dynamo-deleted", ofStore, recoverSkip(s.t), s.deleted},
	}
}

func (s *dynamoStore) throttled(c *cluster, r *rand.Rand) error {
	share := .3 + .7*r.Float64()
	c.rec.say("DynamoDB refuses %.0f %% of the requests", 100*share)
	s.throttle.set(share)
	sleep(c.ctx, between(r, time.Second, 5*time.Second))
	s.throttle.set(0)
	return nil
}

func (s *dynamoStore) away(c *cluster, r *rand.Rand) error {
	s.way.be([]link{refused, stalled}[r.IntN(2)])
	sleep(c.ctx, between(r, lease/2, 5*lease))
	s.way.be(linked)
	return nil
}

// deleted deletes the table and has it made and filled anew.
func (s *dynamoStore) deleted(c *cluster, r *rand.Rand) error {
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	api := awsdynamodb.New(awsdynamodb.Options{Region: "us-east-1", BaseEndpoint: &s.endpoint, Credentials: credentials.NewStaticCredentialsProvider(c.bucket.AccessKey, c.bucket.SecretKey, "")})
	if _, err := api.DeleteTable(ctx, &awsdynamodb.DeleteTableInput{TableName: aws.String(dynamoTable)}); err != nil {
		return err
	}
	sleep(c.ctx, between(r, 0, 3*time.Second))
	return c.recoverMetadata()
}

// storeOf opens the metadata store that CHAOS_STORE names.
func storeOf(name, dir string) (func(testing.TB) store, error) {
	switch strings.ToLower(name) {
	case "redis":
		return openRedis(dir), nil
	case "dynamo":
		return openDynamo, nil
	}
	return nil, fmt.Errorf("CHAOS_STORE=%s: want redis or dynamo", name)
}

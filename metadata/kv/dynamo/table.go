package dynamo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

const (
	tablePoll = 100 * time.Millisecond
	tableWait = 3 * time.Minute // for a table to become active
	wantKey   = "pk S HASH, sk B RANGE"
)

// prepare checks the table and its format, and makes what is missing and may be
// made.
func (s *Store) prepare(ctx context.Context, loc location) error {
	created, err := s.ensureTable(ctx, loc)
	if err != nil {
		return err
	}
	if err := s.ensureFormat(ctx); err != nil {
		return err
	}
	s.ensureExpiry(ctx, created)
	_, err = s.heads(ctx)
	return err
}

// ensureTable waits until the table can be used, and tells whether it made it.
func (s *Store) ensureTable(ctx context.Context, loc location) (created bool, err error) {
	deadline := time.Now().Add(tableWait)
	for {
		table, err := s.describe(ctx)
		var missing *types.ResourceNotFoundException
		switch {
		case errors.As(err, &missing) && !loc.create && !created:
			return false, fmt.Errorf("%w: there is no table %q in region %s: add create=true to the URL, or run: %s",
				ErrTable, loc.table, s.api.Options().Region, createCommand(loc.table))
		case errors.As(err, &missing) && !created:
			if err := s.createTable(ctx); err != nil {
				return false, err
			}
			created = true
		case err != nil && !errors.As(err, &missing):
			return false, err
		case err == nil:
			if err := checkTable(loc.table, table); err != nil {
				return false, err
			}
			if table.TableStatus == types.TableStatusActive || table.TableStatus == types.TableStatusUpdating {
				return created, nil
			}
		}
		if time.Now().After(deadline) {
			return false, fmt.Errorf("%w: table %q is not active after %s", ErrTable, loc.table, tableWait)
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(tablePoll):
		}
	}
}

func (s *Store) describe(ctx context.Context) (*types.TableDescription, error) {
	var table *types.TableDescription
	err := s.do(ctx, s.newTries(), func(ctx context.Context) error {
		out, err := s.api.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &s.lay.table})
		if err != nil {
			return err
		}
		s.clock.server(out.ResultMetadata)
		table = out.Table
		return nil
	})
	return table, err
}

// createTable asks for the table. That another agent did so first is no error.
func (s *Store) createTable(ctx context.Context) error {
	err := s.do(ctx, s.newTries(), func(ctx context.Context) error {
		_, err := s.api.CreateTable(ctx, &dynamodb.CreateTableInput{
			TableName: &s.lay.table, BillingMode: types.BillingModePayPerRequest,
			AttributeDefinitions: []types.AttributeDefinition{
				{AttributeName: aws.String(attrPK), AttributeType: types.ScalarAttributeTypeS},
				{AttributeName: aws.String(attrSK), AttributeType: types.ScalarAttributeTypeB},
			},
			KeySchema: []types.KeySchemaElement{
				{AttributeName: aws.String(attrPK), KeyType: types.KeyTypeHash},
				{AttributeName: aws.String(attrSK), KeyType: types.KeyTypeRange},
			},
		})
		var exists *types.ResourceInUseException
		if errors.As(err, &exists) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("create table: %w", err)
	}
	return nil
}

func createCommand(table string) string {
	return "aws dynamodb create-table --table-name " + table + " --billing-mode PAY_PER_REQUEST" +
		" --attribute-definitions AttributeName=pk,AttributeType=S AttributeName=sk,AttributeType=B" +
		" --key-schema AttributeName=pk,KeyType=HASH AttributeName=sk,KeyType=RANGE"
}

// checkTable refuses a table with another primary key than ours.
func checkTable(name string, t *types.TableDescription) error {
	kinds := map[string]string{}
	for _, a := range t.AttributeDefinitions {
		kinds[aws.ToString(a.AttributeName)] = string(a.AttributeType)
	}
	var parts []string
	for _, k := range t.KeySchema {
		n := aws.ToString(k.AttributeName)
		parts = append(parts, n+" "+kinds[n]+" "+string(k.KeyType))
	}
	if have := strings.Join(parts, ", "); have != wantKey {
		return fmt.Errorf("%w: table %q has the primary key (%s), not (%s): use another table, created by: %s",
			ErrTable, name, have, wantKey, createCommand(name))
	}
	return nil
}

// ensureFormat writes the format version and a generation into a new table, or reads those of an
// old one.
func (s *Store) ensureFormat(ctx context.Context) error {
	put := s.lay.formatKey()
	put[attrVersion], put[attrGen] = number(FormatVersion), text(rand.Text())
	err := s.do(ctx, s.newTries(), func(ctx context.Context) error {
		_, err := s.api.PutItem(ctx, &dynamodb.PutItemInput{
			TableName: &s.lay.table, Item: put, ConditionExpression: aws.String("attribute_not_exists(pk)"),
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		})
		return err
	})
	var exists *types.ConditionalCheckFailedException
	if err != nil && !errors.As(err, &exists) {
		return err
	}
	if err != nil {
		if v, ok := numberOf(exists.Item, attrVersion); !ok || v != FormatVersion {
			return fmt.Errorf("%w: version %d under prefix %q, this program knows %d: run the program that wrote it, or use another prefix",
				ErrVersion, v, s.lay.prefix, FormatVersion)
		}
	}
	_, gen, err := s.generation(ctx)
	if err == nil {
		s.gen.Store(&gen)
	}
	return err
}

// generation reads what the table has; false: nothing. Tables that were made before there were generations have
// an empty one.
func (s *Store) generation(ctx context.Context) (ok bool, gen string, err error) {
	err = s.do(ctx, s.newTries(), func(ctx context.Context) error {
		out, err := s.api.GetItem(ctx, &dynamodb.GetItemInput{TableName: &s.lay.table, Key: s.lay.formatKey(), ConsistentRead: aws.Bool(true)})
		if err != nil {
			return err
		}
		s.clock.server(out.ResultMetadata)
		g, _ := out.Item[attrGen].(*types.AttributeValueMemberS)
		if ok = out.Item != nil; g != nil {
			gen = g.Value
		}
		return nil
	})
	return ok, gen, err
}

// verify makes sure that the table still has what was there when it was opened.
func (s *Store) verify(ctx context.Context) error {
	ok, gen, err := s.generation(ctx)
	if err == nil && (!ok || gen != *s.gen.Load()) {
		s.lost.Store(true)
		err = ErrDataLost
	}
	return err
}

// Reopen implements kv.Reopener.
func (s *Store) Reopen(ctx context.Context, check func(kv.Store) error) error {
	ok, gen, err := s.generation(ctx)
	if err != nil || !ok {
		return err
	}
	if gen != *s.gen.Load() {
		now := &Store{api: s.api, transport: s.transport, lay: s.lay, opts: s.opts, clock: s.clock, shards: s.shards, watch: s.watch, leases: s.leases}
		now.gen.Store(&gen)
		if err := check(now); err != nil {
			return fmt.Errorf("reopen table %q: %w", s.lay.table, err)
		}
		s.gen.Store(&gen)
	}
	s.lost.Store(false)
	return nil
}

// ensureExpiry turns on the expiry of garbage in a table we made. Without it
// everything works, but tombstones and the change log stay.
func (s *Store) ensureExpiry(ctx context.Context, created bool) {
	err := s.do(ctx, s.newTries(), func(ctx context.Context) error {
		if created {
			_, err := s.api.UpdateTimeToLive(ctx, &dynamodb.UpdateTimeToLiveInput{
				TableName:               &s.lay.table,
				TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: aws.String(attrExpires), Enabled: aws.Bool(true)},
			})
			return err
		}
		out, err := s.api.DescribeTimeToLive(ctx, &dynamodb.DescribeTimeToLiveInput{TableName: &s.lay.table})
		if err != nil {
			return err
		}
		d := out.TimeToLiveDescription
		if d == nil || aws.ToString(d.AttributeName) != attrExpires {
			s.opts.Logger.Warn("the table keeps its garbage: turn on its time to live", "run",
				"aws dynamodb update-time-to-live --table-name "+s.lay.table+" --time-to-live-specification Enabled=true,AttributeName="+attrExpires)
		}
		return nil
	})
	if err != nil {
		s.opts.Logger.Warn("can't tell whether the table expires its garbage", "table", s.lay.table, "err", err)
	}
}

// Time implements kv.Clock: the Date of an answer.
func (s *Store) Time(ctx context.Context) (time.Time, error) {
	var t time.Time
	err := s.do(ctx, s.newTries(), func(ctx context.Context) error {
		out, err := s.api.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &s.lay.table})
		if err == nil {
			t, _ = awsmiddleware.GetServerTime(out.ResultMetadata)
		}
		return err
	})
	if err != nil {
		return t, fmt.Errorf("ask DynamoDB for the time: %w", err)
	}
	return t, nil
}

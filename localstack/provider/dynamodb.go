package main

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

const tableWait = time.Minute

func dynamoTable() *resource {
	return &resource{
		does: []string{"name", "billing_mode", "hash_key", "range_key", "deletion_protection_enabled", "tags", "attribute", "attribute.name", "attribute.type",
			"ttl", "ttl.attribute_name", "ttl.enabled", "point_in_time_recovery", "point_in_time_recovery.enabled",
			"server_side_encryption", "server_side_encryption.enabled", "server_side_encryption.kms_key_arn"},
		fills:   []string{"id", "arn", "region", "tags_all"},
		replace: []string{"name", "hash_key", "range_key", "attribute", "billing_mode"},
		create:  createTable, update: updateTable, read: readTable,
		remove: func(ctx context.Context, c *clients, v object) error {
			if c.dynamo == nil {
				return errNoEndpoint
			}
			if _, err := c.dynamo.DeleteTable(ctx, &dynamodb.DeleteTableInput{TableName: aws.String(text(v, "id"))}); err != nil {
				return err
			}
			return dynamodb.NewTableNotExistsWaiter(c.dynamo, func(o *dynamodb.TableNotExistsWaiterOptions) { o.MinDelay = time.Second }).
				Wait(ctx, &dynamodb.DescribeTableInput{TableName: aws.String(text(v, "id"))}, tableWait)
		},
	}
}

func createTable(ctx context.Context, c *clients, v object) error {
	if c.dynamo == nil {
		return errNoEndpoint
	}
	in := &dynamodb.CreateTableInput{
		TableName: aws.String(text(v, "name")), BillingMode: types.BillingMode(text(v, "billing_mode")),
		KeySchema:                 []types.KeySchemaElement{{AttributeName: aws.String(text(v, "hash_key")), KeyType: types.KeyTypeHash}},
		DeletionProtectionEnabled: aws.Bool(flag(v, "deletion_protection_enabled")),
		Tags:                      tableTags(v),
	}
	if key := text(v, "range_key"); key != "" {
		in.KeySchema = append(in.KeySchema, types.KeySchemaElement{AttributeName: &key, KeyType: types.KeyTypeRange})
	}
	for _, a := range items(v, "attribute") {
		in.AttributeDefinitions = append(in.AttributeDefinitions, types.AttributeDefinition{
			AttributeName: aws.String(text(a, "name")), AttributeType: types.ScalarAttributeType(text(a, "type"))})
	}
	if s := first(v, "server_side_encryption"); s != nil {
		in.SSESpecification = &types.SSESpecification{Enabled: aws.Bool(flag(s, "enabled"))}
		if key := text(s, "kms_key_arn"); key != "" {
			in.SSESpecification.SSEType, in.SSESpecification.KMSMasterKeyId = types.SSETypeKms, &key
		}
	}
	out, err := c.dynamo.CreateTable(ctx, in)
	if err != nil {
		return err
	}
	v["id"], v["arn"], v["region"], v["tags_all"] = v["name"], aws.ToString(out.TableDescription.TableArn), c.region, v["tags"]
	err = dynamodb.NewTableExistsWaiter(c.dynamo, func(o *dynamodb.TableExistsWaiterOptions) { o.MinDelay = time.Second }).
		Wait(ctx, &dynamodb.DescribeTableInput{TableName: in.TableName}, tableWait)
	if err != nil {
		return err
	}
	if ttl := first(v, "ttl"); flag(ttl, "enabled") {
		if err := setExpiry(ctx, c, in.TableName, text(ttl, "attribute_name"), true); err != nil {
			return err
		}
	}
	// Like the provider, it does not ask for what is off from the start: DynamoDB Local has no such call.
	if flag(first(v, "point_in_time_recovery"), "enabled") {
		return setRecovery(ctx, c, in.TableName, true)
	}
	return nil
}

func updateTable(ctx context.Context, c *clients, v object) error {
	if c.dynamo == nil {
		return errNoEndpoint
	}
	now := object{"id": v["id"], "tags": v["tags"]}
	if found, err := readTable(ctx, c, now); err != nil || !found {
		return fmt.Errorf("the table %s is gone: %w", text(v, "id"), err)
	}
	name := aws.String(text(v, "id"))
	if want := flag(v, "deletion_protection_enabled"); want != flag(now, "deletion_protection_enabled") {
		if _, err := c.dynamo.UpdateTable(ctx, &dynamodb.UpdateTableInput{TableName: name, DeletionProtectionEnabled: &want}); err != nil {
			return err
		}
	}
	if ttl := first(v, "ttl"); fmt.Sprint(ttl) != fmt.Sprint(first(now, "ttl")) {
		if err := setExpiry(ctx, c, name, text(ttl, "attribute_name"), flag(ttl, "enabled")); err != nil {
			return err
		}
	}
	if want := flag(first(v, "point_in_time_recovery"), "enabled"); want != flag(first(now, "point_in_time_recovery"), "enabled") {
		if err := setRecovery(ctx, c, name, want); err != nil {
			return err
		}
	}
	if fmt.Sprint(v["server_side_encryption"]) != fmt.Sprint(now["server_side_encryption"]) {
		return fmt.Errorf("the stand-in can't change the encryption of table %s", *name)
	}
	return changeTags(ctx, c, v, now)
}

func changeTags(ctx context.Context, c *clients, v, now object) error {
	want, _ := v["tags"].(object)
	have, _ := now["tags"].(object)
	arn := aws.String(text(v, "arn"))
	v["tags_all"] = v["tags"]
	for k := range have {
		if _, ok := want[k]; !ok {
			if _, err := c.dynamo.UntagResource(ctx, &dynamodb.UntagResourceInput{ResourceArn: arn, TagKeys: []string{k}}); err != nil {
				return err
			}
		}
	}
	if len(want) == 0 || fmt.Sprint(want) == fmt.Sprint(have) {
		return nil
	}
	_, err := c.dynamo.TagResource(ctx, &dynamodb.TagResourceInput{ResourceArn: arn, Tags: tableTags(v)})
	return err
}

func readTable(ctx context.Context, c *clients, v object) (bool, error) {
	if c.dynamo == nil {
		return false, errNoEndpoint
	}
	name := aws.String(text(v, "id"))
	out, err := c.dynamo.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: name})
	if absent(err, "ResourceNotFoundException") {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	t := out.Table
	v["name"], v["arn"], v["deletion_protection_enabled"] = *name, aws.ToString(t.TableArn), aws.ToBool(t.DeletionProtectionEnabled)
	if t.BillingModeSummary != nil {
		v["billing_mode"] = string(t.BillingModeSummary.BillingMode)
	}
	v["hash_key"], v["range_key"] = nil, nil
	for _, k := range t.KeySchema {
		v[map[types.KeyType]string{types.KeyTypeHash: "hash_key", types.KeyTypeRange: "range_key"}[k.KeyType]] = aws.ToString(k.AttributeName)
	}
	attributes := []any{}
	for _, a := range t.AttributeDefinitions {
		attributes = append(attributes, object{"name": aws.ToString(a.AttributeName), "type": string(a.AttributeType)})
	}
	v["attribute"] = attributes
	if s := t.SSEDescription; s != nil && s.Status == types.SSEStatusEnabled && s.KMSMasterKeyArn != nil {
		v["server_side_encryption"] = []any{object{"enabled": true, "kms_key_arn": aws.ToString(s.KMSMasterKeyArn)}}
	}
	return true, readTableSettings(ctx, c, name, v)
}

func readTableSettings(ctx context.Context, c *clients, name *string, v object) error {
	ttl, err := c.dynamo.DescribeTimeToLive(ctx, &dynamodb.DescribeTimeToLiveInput{TableName: name})
	if err != nil {
		return err
	}
	if d := ttl.TimeToLiveDescription; d != nil && (d.TimeToLiveStatus == types.TimeToLiveStatusEnabled || d.TimeToLiveStatus == types.TimeToLiveStatusEnabling) {
		v["ttl"] = []any{object{"attribute_name": aws.ToString(d.AttributeName), "enabled": true}}
	} else {
		v["ttl"] = []any{object{"attribute_name": "", "enabled": false}}
	}
	on := false
	backups, err := c.dynamo.DescribeContinuousBackups(ctx, &dynamodb.DescribeContinuousBackupsInput{TableName: name})
	switch {
	case absent(err, "UnknownOperationException"): // DynamoDB Local
	case err != nil:
		return err
	default:
		p := backups.ContinuousBackupsDescription.PointInTimeRecoveryDescription
		on = p != nil && p.PointInTimeRecoveryStatus == types.PointInTimeRecoveryStatusEnabled
	}
	v["point_in_time_recovery"] = []any{object{"enabled": on}}
	tags, err := c.dynamo.ListTagsOfResource(ctx, &dynamodb.ListTagsOfResourceInput{ResourceArn: aws.String(text(v, "arn"))})
	if absent(err, "UnknownOperationException") { // DynamoDB Local has no tags
		return nil
	}
	if err != nil {
		return err
	}
	have := object{}
	for _, t := range tags.Tags {
		have[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	setTags(v, have)
	return nil
}

func setExpiry(ctx context.Context, c *clients, name *string, attribute string, on bool) error {
	_, err := c.dynamo.UpdateTimeToLive(ctx, &dynamodb.UpdateTimeToLiveInput{TableName: name,
		TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: &attribute, Enabled: &on}})
	return err
}

func setRecovery(ctx context.Context, c *clients, name *string, on bool) error {
	_, err := c.dynamo.UpdateContinuousBackups(ctx, &dynamodb.UpdateContinuousBackupsInput{TableName: name,
		PointInTimeRecoverySpecification: &types.PointInTimeRecoverySpecification{PointInTimeRecoveryEnabled: &on}})
	return err
}

func tableTags(v object) []types.Tag {
	var out []types.Tag
	all, _ := v["tags"].(object)
	for k, t := range all {
		out = append(out, types.Tag{Key: aws.String(k), Value: aws.String(fmt.Sprint(t))})
	}
	return out
}

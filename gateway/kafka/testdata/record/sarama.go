// Command sarama uses each API that sarama has, in the versions of several
// releases of Kafka. record.sh builds it in a module of its own.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/IBM/sarama"
)

func main() {
	failed := false
	for _, v := range []sarama.KafkaVersion{sarama.V0_11_0_0, sarama.V1_0_0_0, sarama.V1_1_0_0, sarama.V2_0_0_0, sarama.V2_1_0_0,
		sarama.V2_3_0_0, sarama.V2_4_0_0, sarama.V2_6_0_0, sarama.V2_8_0_0, sarama.V3_1_0_0, sarama.V3_6_0_0, sarama.V4_0_0_0} {
		for _, err := range []error{produce(v), consume(v), admin(v)} {
			if err != nil {
				fmt.Fprintln(os.Stderr, v, err)
				failed = true
			}
		}
	}
	if failed {
		os.Exit(1)
	}
}

func addr() []string { return []string{os.Getenv("BOOTSTRAP")} }

func config(v sarama.KafkaVersion) *sarama.Config {
	c := sarama.NewConfig()
	c.Version = v
	c.ClientID = "sarama"
	c.Producer.Return.Successes = true
	c.Metadata.AllowAutoTopicCreation = false
	c.Consumer.MaxWaitTime = 50 * time.Millisecond
	return c
}

func produce(v sarama.KafkaVersion) error {
	for codec, acks := range map[sarama.CompressionCodec]sarama.RequiredAcks{sarama.CompressionNone: sarama.WaitForAll, sarama.CompressionGZIP: sarama.WaitForLocal,
		sarama.CompressionSnappy: sarama.NoResponse, sarama.CompressionLZ4: sarama.WaitForAll, sarama.CompressionZSTD: sarama.WaitForAll} {
		if codec == sarama.CompressionZSTD && !v.IsAtLeast(sarama.V2_1_0_0) {
			continue
		}
		c := config(v)
		c.Producer.Compression, c.Producer.RequiredAcks = codec, acks
		if codec == sarama.CompressionLZ4 {
			c.Producer.Idempotent, c.Net.MaxOpenRequests = true, 1
		}
		p, err := sarama.NewSyncProducer(addr(), c)
		if err != nil {
			return fmt.Errorf("producer: %w", err)
		}
		for i := range int(codec) + 1 {
			if _, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: "logs", Key: sarama.StringEncoder("k"),
				Value: sarama.StringEncoder(fmt.Sprint("value ", i)), Headers: []sarama.RecordHeader{{Key: []byte("h"), Value: []byte{1}}}[:i%2]}); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
		if err := p.Close(); err != nil {
			return err
		}
	}
	return nil
}

func consume(v sarama.KafkaVersion) error {
	cl, err := sarama.NewClient(addr(), config(v))
	if err != nil {
		return err
	}
	defer cl.Close()
	for _, ts := range []int64{sarama.OffsetNewest, sarama.OffsetOldest, time.Now().UnixMilli()} {
		if _, err := cl.GetOffset("logs", 0, ts); err != nil {
			return fmt.Errorf("get offset: %w", err)
		}
	}
	con, err := sarama.NewConsumerFromClient(cl)
	if err != nil {
		return err
	}
	defer con.Close()
	for _, p := range []int32{0, 1, 2} {
		pc, err := con.ConsumePartition("logs", p, sarama.OffsetOldest)
		if err != nil {
			return fmt.Errorf("consume: %w", err)
		}
		defer pc.Close()
		select {
		case <-pc.Messages():
		case <-time.After(300 * time.Millisecond):
		}
	}
	return nil
}

func admin(v sarama.KafkaVersion) error {
	a, err := sarama.NewClusterAdmin(addr(), config(v))
	if err != nil {
		return err
	}
	defer a.Close()
	name, value := "admin-"+v.String(), "3600000"
	if err := a.CreateTopic(name, &sarama.TopicDetail{NumPartitions: 2, ReplicationFactor: 1, ConfigEntries: map[string]*string{"retention.ms": &value}}, false); err != nil {
		return fmt.Errorf("create topic: %w", err)
	}
	if v.IsAtLeast(sarama.V1_0_0_0) {
		if err := a.CreatePartitions(name, 3, nil, false); err != nil {
			return fmt.Errorf("create partitions: %w", err)
		}
	}
	if err := a.AlterConfig(sarama.TopicResource, name, map[string]*string{"retention.ms": &value}, false); err != nil {
		return fmt.Errorf("alter config: %w", err)
	}
	if v.IsAtLeast(sarama.V2_3_0_0) {
		if err := a.IncrementalAlterConfig(sarama.TopicResource, name, map[string]sarama.IncrementalAlterConfigsEntry{
			"retention.ms": {Operation: sarama.IncrementalAlterConfigsOperationDelete}}, true); err != nil {
			return fmt.Errorf("incremental alter config: %w", err)
		}
	}
	if v.IsAtLeast(sarama.V1_1_0_0) { // before: version 0, which is gone
		if _, err := a.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: name, ConfigNames: []string{"retention.ms"}}); err != nil {
			return fmt.Errorf("describe config: %w", err)
		}
	}
	if _, err := a.DescribeTopics([]string{name, "logs"}); err != nil {
		return fmt.Errorf("describe topics: %w", err)
	}
	if v.IsAtLeast(sarama.V2_0_0_0) { // before: version 0, which is gone
		if _, err := a.DescribeLogDirs([]int32{1}); err != nil {
			return fmt.Errorf("describe log dirs: %w", err)
		}
	}
	if err := a.DeleteRecords("logs", map[int32]int64{0: 0}); err != nil {
		return fmt.Errorf("delete records: %w", err)
	}
	return a.DeleteTopic(name)
}

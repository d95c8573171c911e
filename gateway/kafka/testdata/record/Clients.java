import java.time.Duration;
import java.util.*;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.*;

/** Uses the calls of Kafka's Java clients that its command-line tools do not. */
public class Clients {
    static final String SERVER = System.getenv("BOOTSTRAP");

    public static void main(String[] args) throws Exception {
        produce();
        consume();
        admin();
    }

    static void produce() throws Exception {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd"))
            for (String acks : List.of("all", "1", "0")) {
                Map<String, Object> p = Map.of("bootstrap.servers", SERVER, "compression.type", codec, "acks", acks,
                    "enable.idempotence", acks.equals("all") && !codec.equals("gzip"), "linger.ms", 20);
                try (var producer = new KafkaProducer<>(p, new StringSerializer(), new StringSerializer())) {
                    for (int i = 0; i < codec.length(); i++) {
                        var r = new ProducerRecord<>("logs", i % 3, i % 2 == 0 ? "key" : null, "value " + i);
                        r.headers().add("h", new byte[] {1});
                        producer.send(r);
                    }
                    producer.send(new ProducerRecord<>("other", 0, null, null)).get();
                }
            }
    }

    static void consume() {
        for (String isolation : List.of("read_uncommitted", "read_committed")) {
            Map<String, Object> c = Map.of("bootstrap.servers", SERVER, "isolation.level", isolation, "fetch.max.wait.ms", 100,
                "auto.offset.reset", "earliest", "client.rack", isolation.equals("read_committed") ? "r1" : "");
            try (var consumer = new KafkaConsumer<>(c, new StringDeserializer(), new StringDeserializer())) {
                var logs = List.of(new TopicPartition("logs", 0), new TopicPartition("logs", 1), new TopicPartition("other", 0));
                consumer.assign(logs);
                consumer.seekToBeginning(logs);
                for (int i = 0; i < 5; i++) consumer.poll(Duration.ofMillis(200));
                consumer.assign(logs.subList(0, 1)); // the session forgets the others
                for (int i = 0; i < 2; i++) consumer.poll(Duration.ofMillis(200));
                consumer.beginningOffsets(logs);
                consumer.endOffsets(logs);
                consumer.offsetsForTimes(Map.of(logs.get(0), 1000L, logs.get(1), System.currentTimeMillis()));
                consumer.partitionsFor("logs");
                consumer.listTopics();
            }
        }
    }

    static void admin() throws Exception {
        try (var admin = Admin.create(Map.<String, Object>of("bootstrap.servers", SERVER))) {
            var spread = new NewTopic("java-assigned", Map.of(0, List.of(1), 1, List.of(1)));
            var plain = new NewTopic("java", Optional.empty(), Optional.empty()).configs(Map.of("retention.ms", "3600000", "cleanup.policy", "delete"));
            admin.createTopics(List.of(spread, plain)).all().get();
            admin.createTopics(List.of(new NewTopic("java-never", 2, (short) 1)), new CreateTopicsOptions().validateOnly(true)).all().get();
            admin.createPartitions(Map.of("java", NewPartitions.increaseTo(5))).all().get();
            admin.describeTopics(TopicCollection.ofTopicNames(List.of("logs", "java"))).allTopicNames().get();
            Uuid id = admin.describeTopics(List.of("java")).allTopicNames().get().get("java").topicId();
            admin.describeTopics(TopicCollection.ofTopicIds(List.of(id))).allTopicIds().get();
            admin.listTopics(new ListTopicsOptions().listInternal(true)).names().get();
            var topic = new ConfigResource(ConfigResource.Type.TOPIC, "java");
            var node = new ConfigResource(ConfigResource.Type.BROKER, "1");
            admin.describeConfigs(List.of(topic, node), new DescribeConfigsOptions().includeSynonyms(true).includeDocumentation(true)).all().get();
            admin.incrementalAlterConfigs(Map.of(topic, List.of(
                new AlterConfigOp(new ConfigEntry("retention.ms", "1000"), AlterConfigOp.OpType.SET),
                new AlterConfigOp(new ConfigEntry("segment.bytes", null), AlterConfigOp.OpType.DELETE),
                new AlterConfigOp(new ConfigEntry("cleanup.policy", "compact"), AlterConfigOp.OpType.APPEND)))).all().get();
            admin.describeCluster(new DescribeClusterOptions().includeAuthorizedOperations(true)).nodes().get();
            admin.describeLogDirs(List.of(1)).allDescriptions().get();
            var logs = new TopicPartition("logs", 0);
            for (OffsetSpec spec : List.of(OffsetSpec.latest(), OffsetSpec.earliest(), OffsetSpec.maxTimestamp(), OffsetSpec.earliestLocal(),
                    OffsetSpec.latestTiered(), OffsetSpec.forTimestamp(1L)))
                admin.listOffsets(Map.of(logs, spec, new TopicPartition("other", 0), spec)).all().get(10, TimeUnit.SECONDS);
            admin.deleteRecords(Map.of(logs, RecordsToDelete.beforeOffset(0))).all().get();
            admin.deleteTopics(TopicCollection.ofTopicIds(List.of(id))).all().get();
            admin.deleteTopics(List.of("java-assigned")).all().get();
        }
    }
}

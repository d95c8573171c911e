"""Driver of the Python client libraries for the client matrix: kafka-python,
aiokafka and confluent-kafka. Its command line is described in ../README.md."""

import argparse
import asyncio
import hashlib
import importlib.metadata
import json
import signal
import struct
import sys
import threading
import time

BIG = 900 << 10
HEARTBEAT_MS = 1000
COMMIT_EVERY = 0.1  # seconds


class NoCodec(Exception):
    """The library does not have the codec; exit code 3."""


def filler(i, size):
    """size characters that shrink to about half: SHA-256 sums in hex."""
    parts = [hashlib.sha256(b"%d:%d" % (i, j)).hexdigest() for j in range((size + 63) // 64)]
    return "".join(parts)[:size]


def make_record(i):
    """The key, value and headers of the record with an index; None is null."""
    key = b"k%d" % i if i % 4 else None
    value = None
    if i % 50 != 7:
        size = BIG if i % 10000 == 5000 else i * 7919 % 200
        value = ("%d é " % i + filler(i, size)).encode()
    headers = []
    if i % 3 == 0:
        headers = [("n", b"%d" % i), ("n", b"again"), ("empty", b""), ("null", None)]
    return key, value, headers


def sized(b):
    return struct.pack(">i", -1) if b is None else struct.pack(">i", len(b)) + b


def line(partition, offset, key, value, headers):
    """The line that is printed for a record that was consumed."""
    parts = [struct.pack(">iq", partition, offset), sized(key), sized(value), struct.pack(">i", len(headers))]
    for k, v in headers:
        parts += [sized(k.encode()), sized(v)]
    return '[%d,%d,"%s"]\n' % (partition, offset, hashlib.sha256(b"".join(parts)).hexdigest()[:16])


def show(lines):
    """Prints and flushes, so that what is committed afterwards was printed."""
    sys.stdout.write("".join(lines))
    sys.stdout.flush()


def stopped():
    """An event that SIGTERM sets."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


def kafka_python_produce(o):
    import kafka

    try:
        producer = kafka.KafkaProducer(
            bootstrap_servers=o.brokers, acks="all", enable_idempotence=o.idempotent, linger_ms=20, batch_size=64 << 10,
            compression_type=None if o.codec == "none" else o.codec, max_request_size=2 << 20)
    except AssertionError as e:  # what it says when the package of the codec is missing
        raise NoCodec(e)
    futures = []
    for i in range(o.first, o.first + o.count):
        key, value, headers = make_record(i)
        headers = [h for h in headers if h[1] is not None]  # it refuses null
        futures.append(producer.send(o.topic, key=key, value=value, headers=headers))
    producer.flush()
    for f in futures:
        f.get(timeout=60)
    producer.close()


class Stopped(Exception):
    """SIGTERM came while a poll was waiting."""


def kafka_python_consume(o):
    import kafka

    stop, polling = threading.Event(), False

    def on_sigterm(*_):
        stop.set()
        if polling:
            raise Stopped

    signal.signal(signal.SIGTERM, on_sigterm)
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=o.brokers, group_id=o.group, auto_offset_reset="earliest", enable_auto_commit=False,
        session_timeout_ms=o.session_ms, heartbeat_interval_ms=HEARTBEAT_MS)

    # It rebalances inside of poll alone, where a listener can't commit; so all is
    # committed before the next poll. A poll that times out while the group is joined
    # loses the assignment when that comes before the next poll (3.0.12: the member
    # waits for ever), so none is to time out.
    consumer.subscribe([o.topic])
    while not stop.is_set():
        try:
            polling = True
            polled = consumer.poll(timeout_ms=60_000, max_records=1000)
        except Stopped:
            break
        finally:
            polling = False
        for tp, records in polled.items():
            show([line(r.partition, r.offset, r.key, r.value, r.headers) for r in records])
        try:
            if polled:
                consumer.commit()
        except kafka.errors.CommitFailedError as e:  # of a generation that is over
            print(e, file=sys.stderr)
    consumer.close()


def aiokafka_produce(o):
    import aiokafka

    async def run():
        try:
            producer = aiokafka.AIOKafkaProducer(
                bootstrap_servers=o.brokers, acks="all", enable_idempotence=o.idempotent, linger_ms=20, max_batch_size=64 << 10,
                compression_type=None if o.codec == "none" else o.codec, max_request_size=2 << 20)
        except RuntimeError as e:
            raise NoCodec(e)
        await producer.start()
        futures = []
        for i in range(o.first, o.first + o.count):
            key, value, headers = make_record(i)
            futures.append(await producer.send(o.topic, key=key, value=value, headers=headers))
        await producer.flush()
        await asyncio.gather(*futures)
        await producer.stop()

    asyncio.run(run())


def aiokafka_consume(o):
    import aiokafka

    async def run():
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=o.brokers, group_id=o.group, auto_offset_reset="earliest", enable_auto_commit=False,
            session_timeout_ms=o.session_ms, heartbeat_interval_ms=HEARTBEAT_MS)

        class Listener(aiokafka.ConsumerRebalanceListener):
            async def on_partitions_revoked(self, revoked):
                if revoked:
                    await consumer.commit()

            async def on_partitions_assigned(self, assigned):
                pass

        consumer.subscribe([o.topic], listener=Listener())
        await consumer.start()
        last = time.monotonic()
        while not stop.is_set():
            for tp, records in (await consumer.getmany(timeout_ms=100, max_records=1000)).items():
                show([line(r.partition, r.offset, r.key, r.value, r.headers) for r in records])
            if time.monotonic() - last > COMMIT_EVERY and consumer.assignment():
                try:
                    await consumer.commit()
                except aiokafka.errors.CommitFailedError as e:  # of a generation that is over
                    print(e, file=sys.stderr)
                last = time.monotonic()
        await consumer.commit()
        await consumer.stop()

    asyncio.run(run())


def confluent_produce(o):
    import confluent_kafka

    try:
        producer = confluent_kafka.Producer({
            "bootstrap.servers": o.brokers, "acks": "all", "enable.idempotence": o.idempotent, "compression.type": o.codec,
            "linger.ms": 20, "message.max.bytes": 2 << 20})
    except confluent_kafka.KafkaException as e:
        raise NoCodec(e)
    failed = []

    def done(err, _):
        if err is not None:
            failed.append(err)

    for i in range(o.first, o.first + o.count):
        key, value, headers = make_record(i)
        while True:
            try:
                producer.produce(o.topic, key=key, value=value, headers=headers, on_delivery=done)
                break
            except BufferError:
                producer.poll(0.1)
    left = producer.flush(60)
    if failed or left:
        raise Exception("%d failed, %d are left: %s" % (len(failed), left, failed[:3]))


def confluent_consume(o):
    import confluent_kafka

    stop = stopped()
    consumer = confluent_kafka.Consumer({
        "bootstrap.servers": o.brokers, "group.id": o.group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
        "session.timeout.ms": o.session_ms, "heartbeat.interval.ms": HEARTBEAT_MS,
        "partition.assignment.strategy": "cooperative-sticky" if o.cooperative else "range"})

    def commit():
        try:
            consumer.commit(asynchronous=False)
        except confluent_kafka.KafkaException as e:
            if e.args[0].code() != confluent_kafka.KafkaError._NO_OFFSET:
                print(e, file=sys.stderr)

    consumer.subscribe([o.topic], on_revoke=lambda *_: commit())
    last = time.monotonic()
    while not stop.is_set():
        lines = []
        for r in consumer.consume(1000, 0.1):
            if r.error():
                raise confluent_kafka.KafkaException(r.error())
            lines.append(line(r.partition(), r.offset(), r.key(), r.value(), r.headers() or []))
        show(lines)
        if time.monotonic() - last > COMMIT_EVERY:
            commit()
            last = time.monotonic()
    commit()
    consumer.close()


LIBRARIES = {
    "kafka-python": ("kafka-python", kafka_python_produce, kafka_python_consume),
    "aiokafka": ("aiokafka", aiokafka_produce, aiokafka_consume),
    "confluent-kafka": ("confluent-kafka", confluent_produce, confluent_consume),
}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("library", choices=LIBRARIES)
    p.add_argument("command", choices=["version", "produce", "consume"])
    p.add_argument("--brokers")
    p.add_argument("--topic")
    p.add_argument("--codec", default="none")
    p.add_argument("--idempotent", action="store_true")
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--count", type=int, default=0)
    p.add_argument("--group")
    p.add_argument("--session-ms", type=int, default=6000)
    p.add_argument("--cooperative", action="store_true")
    o = p.parse_args()
    package, produce, consume = LIBRARIES[o.library]
    if o.command == "version":
        print(json.dumps({"version": importlib.metadata.version(package)}))
    elif o.command == "consume":
        consume(o)
    else:
        try:
            produce(o)
        except NoCodec as e:
            print(e, file=sys.stderr)
            sys.exit(3)


main()

"""The librdkafka clients of chaos, by way of confluent-kafka: a producer or a consumer of a group that
prints what it sees, a line for each event, until a line on stdin says what else to do.

  driver.py produce BROKERS TOPIC PARTITIONS RATE CLIENT
    stdin:  recycle CLIENT   give up what is outstanding, go on as another client
            stop             send no more, wait for what is outstanding, end
    stdout: A CLIENT PARTITION SEQ OFFSET SUM    acknowledged
            U CLIENT PARTITION SEQ ERROR         given up: it may be in the log or not
            E TEXT                               an error that nobody should see
            S RECORDS                            ended; so many were never answered

  driver.py consume BROKERS TOPIC GROUP
    stdin:  stop             commit, leave the group, end
    stdout: N PARTITION                          assigned, about to ask where to begin
            R PARTITION OFFSET CLIENT SEQ SUM    read
            G PARTITION OFFSET                   read, and sent by nobody
            C PARTITION OFFSET                   a commit was acknowledged
            P 0                                  it goes on; each second
            I TEXT                               something went wrong that may
            E TEXT                               an error that nobody should see
            S 0                                  ended

SUM is the CRC-32 of key and value. A record is described in event.go.
"""

import functools
import os
import queue
import struct
import sys
import threading
import time
import zlib

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

HEAD = struct.Struct(">III")
COMMIT_EVERY = 0.5  # seconds
COMMON = {
    "socket.timeout.ms": 10000, "reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 500, "retry.backoff.ms": 50,
    "retry.backoff.max.ms": 500, "topic.metadata.refresh.interval.ms": 2000, "allow.auto.create.topics": False,
}

out = sys.stdout
commands = queue.Queue()


def listen():
    """Puts the lines of stdin where the main loop looks; the end of stdin is the parent's end."""
    for line in sys.stdin:
        commands.put(line.split())
    os._exit(1)


def say(*words):
    out.write(" ".join(map(str, words)) + "\n")


def command():
    try:
        return commands.get_nowait()
    except queue.Empty:
        return None


def text(error):
    return str(error).replace("\n", " ").replace(" ", "_") or "unknown"


class Load:
    """One producing client after the other."""

    def __init__(self, brokers, topic, partitions):
        self.brokers, self.topic, self.partitions = brokers, topic, partitions
        self.filler = os.urandom(1 << 16)
        self.sent = 0

    def begin(self, client):
        self.client, self.seqs = client, [0] * self.partitions
        self.keys = [b"c%d-p%d" % (client, p) for p in range(self.partitions)]
        self.producer = Producer({
            **COMMON, "bootstrap.servers": self.brokers, "enable.idempotence": True, "acks": "all", "linger.ms": 5, "compression.type": "lz4",
            "request.timeout.ms": 8000, "message.timeout.ms": 240000, "queue.buffering.max.messages": 100000, "error_cb": self.error})

    def error(self, e):
        if e.fatal():
            say("E", "fatal", text(e.str()))

    def answered(self, client, partition, seq, total, error, message):
        if error is None:
            say("A", client, partition, seq, message.offset(), total)
        else:
            say("U", client, partition, seq, text(error.name()))

    def send(self):
        p = self.sent % self.partitions
        size = 40 + self.filler[self.sent & 0xFFFF] * 2
        at = (self.sent * 31) & 0x7FFF
        value = HEAD.pack(self.client, p, self.seqs[p]) + self.filler[at:at + size]
        total = zlib.crc32(value, zlib.crc32(self.keys[p]))
        try:
            self.producer.produce(self.topic, value=value, key=self.keys[p], partition=p,
                                  on_delivery=functools.partial(self.answered, self.client, p, self.seqs[p], total))
        except BufferError:
            return False
        self.seqs[p] += 1
        self.sent += 1
        return True

    def abandon(self):
        self.producer.purge(blocking=False)
        self.producer.poll(0)
        self.producer.flush(5)


def produce(brokers, topic, partitions, rate, client):
    load = Load(brokers, topic, int(partitions))
    load.begin(int(client))
    began, due, rate = time.monotonic(), 0, float(rate)
    while True:
        cmd = command()
        if cmd and cmd[0] == "recycle":
            load.abandon()
            load.begin(int(cmd[1]))
        elif cmd and cmd[0] == "stop":
            left = load.producer.flush(120)
            say("S", left)
            return
        now = time.monotonic()
        due = max(due, int((now - began) * rate) - int(rate))  # what could not be sent in time is not sent at once
        while due < (now - began) * rate and load.send():
            due += 1
        load.producer.poll(0.01)
        out.flush()


class Member:
    """A member of a group that commits what it has printed."""

    def __init__(self, brokers, topic, group):
        self.consumer = Consumer({
            **COMMON, "bootstrap.servers": brokers, "group.id": group, "auto.offset.reset": "error", "enable.auto.commit": False,
            "enable.auto.offset.store": False, "session.timeout.ms": 6000, "heartbeat.interval.ms": 1000, "fetch.wait.max.ms": 200,
            "partition.assignment.strategy": "cooperative-sticky", "error_cb": self.error})
        self.done = {}  # partition: offset to be committed
        self.owned = set()
        self.topic = topic
        self.consumer.subscribe([topic], on_assign=self.assigned, on_revoke=self.revoked, on_lost=self.lost)

    def error(self, e):
        say("E" if e.fatal() else "I", text(e.str()))

    def assigned(self, consumer, partitions):
        for tp in partitions:
            self.owned.add(tp.partition)
            say("N", tp.partition)
        out.flush()

    def revoked(self, consumer, partitions):
        self.commit()
        self.lost(consumer, partitions)

    def lost(self, consumer, partitions):
        for tp in partitions:
            self.owned.discard(tp.partition)
            self.done.pop(tp.partition, None)

    def commit(self):
        if not self.done:
            return
        out.flush()
        try:
            answer = self.consumer.commit(offsets=[TopicPartition(self.topic, p, o) for p, o in self.done.items()], asynchronous=False)
        except KafkaException as e:
            say("I", "commit:", text(e))
            return
        for tp in answer:
            if tp.error is None:
                say("C", tp.partition, tp.offset)
                if self.done.get(tp.partition) == tp.offset:
                    del self.done[tp.partition]
            else:
                say("I", "commit:", text(tp.error))

    def take(self, message):
        e = message.error()
        if e is not None:
            wrong = e.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) or e.fatal()
            say("E" if wrong else "I", "poll:", text(e))
            return
        key, value, p, offset = message.key() or b"", message.value() or b"", message.partition(), message.offset()
        if p not in self.owned:  # it came before the partition went, and is another member's now
            return
        self.done[p] = offset + 1
        if len(value) >= HEAD.size:
            client, to, seq = HEAD.unpack_from(value)
            if to == p and key == b"c%d-p%d" % (client, p):
                say("R", p, offset, client, seq, zlib.crc32(value, zlib.crc32(key)))
                return
        say("G", p, offset)


def consume(brokers, topic, group):
    member = Member(brokers, topic, group)
    last = pulse = time.monotonic()
    while True:
        cmd = command()
        if cmd and cmd[0] == "stop":
            member.commit()
            member.consumer.close()
            say("S", 0)
            return
        for message in member.consumer.consume(1000, 0.05):
            member.take(message)
        if time.monotonic() - last > COMMIT_EVERY:
            member.commit()
            last = time.monotonic()
        if time.monotonic() - pulse > 1:
            say("P", 0)
            pulse = time.monotonic()
        out.flush()


threading.Thread(target=listen, daemon=True).start()
{"produce": produce, "consume": consume}[sys.argv[1]](*sys.argv[2:])
out.flush()

// Driver of kafkajs for the client matrix. Its command line is described in
// ../README.md. kafkajs leaves snappy, lz4 and zstd to packages.
'use strict'

const { createHash } = require('node:crypto')
const { parseArgs } = require('node:util')
const { createRequire } = require('node:module')

const packages = createRequire(process.env.CLIENTS_NODE + '/') // the directory with node_modules
const kafkajs = packages('kafkajs')

const { CompressionTypes, CompressionCodecs } = kafkajs
CompressionCodecs[CompressionTypes.Snappy] = packages('kafkajs-snappy')
CompressionCodecs[CompressionTypes.LZ4] = () => {
  const lz4 = packages('lz4-napi')
  return { compress: e => lz4.compressFrame(e.buffer), decompress: b => lz4.decompressFrame(b) }
}
CompressionCodecs[CompressionTypes.ZSTD] = () => {
  const zstd = packages('@mongodb-js/zstd')
  return { compress: e => zstd.compress(e.buffer), decompress: b => zstd.decompress(b) }
}

const BIG = 900 << 10

// filler is size characters that shrink to about half: SHA-256 sums in hex.
function filler (i, size) {
  let s = ''
  for (let j = 0; s.length < size; j++) s += createHash('sha256').update(`${i}:${j}`).digest('hex')
  return s.slice(0, size)
}

// makeRecord makes the record with an index.
function makeRecord (i) {
  const r = { key: i % 4 ? `k${i}` : null, value: null }
  if (i % 50 !== 7) r.value = `${i} é ${filler(i, i % 10000 === 5000 ? BIG : i * 7919 % 200)}`
  if (i % 3 === 0) r.headers = { n: [`${i}`, 'again'], empty: '' } // it refuses null
  return r
}

function sized (b) {
  const size = Buffer.alloc(4)
  size.writeInt32BE(b == null ? -1 : b.length)
  return b == null ? [size] : [size, b]
}

// line is what is printed for a record that was consumed.
function line (partition, m) {
  const head = Buffer.alloc(12)
  head.writeInt32BE(partition)
  head.writeBigInt64BE(BigInt(m.offset), 4)
  const headers = []
  for (const [k, v] of Object.entries(m.headers || {})) {
    for (const one of Array.isArray(v) ? v : [v]) headers.push(...sized(Buffer.from(k)), ...sized(one))
  }
  const count = Buffer.alloc(4)
  count.writeInt32BE(headers.length && Object.values(m.headers).reduce((n, v) => n + (Array.isArray(v) ? v.length : 1), 0))
  const sum = createHash('sha256').update(Buffer.concat([head, ...sized(m.key), ...sized(m.value), count, ...headers])).digest('hex')
  return `[${partition},${m.offset},"${sum.slice(0, 16)}"]\n`
}

const toStderr = () => ({ log }) => console.error(log.message, JSON.stringify(log))

async function produce (o) {
  const compression = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy, lz4: CompressionTypes.LZ4, zstd: CompressionTypes.ZSTD }[o.codec]
  if (compression === undefined) process.exit(3)
  const kafka = new kafkajs.Kafka({ brokers: [o.brokers], logCreator: toStderr })
  const producer = kafka.producer({ idempotent: o.idempotent, createPartitioner: kafkajs.Partitioners.DefaultPartitioner })
  await producer.connect()
  const first = Number(o.first)
  const end = first + Number(o.count)
  for (let at = first; at < end;) {
    const messages = []
    for (; at < end && messages.length < 1000; at++) messages.push(makeRecord(at))
    await producer.send({ topic: o.topic, acks: -1, compression, messages })
  }
  await producer.disconnect()
}

async function consume (o) {
  const kafka = new kafkajs.Kafka({ brokers: [o.brokers], logCreator: toStderr })
  const sessionTimeout = Number(o['session-ms'])
  const consumer = kafka.consumer({ groupId: o.group, sessionTimeout, rebalanceTimeout: sessionTimeout, heartbeatInterval: 1000, maxWaitTimeInMs: 200 })
  const stopped = new Promise(resolve => process.on('SIGTERM', resolve))
  await consumer.connect()
  await consumer.subscribe({ topics: [o.topic], fromBeginning: true })
  await consumer.run({
    eachBatch: async ({ batch, heartbeat }) => { // commits the batch when it returns
      process.stdout.write(batch.messages.map(m => line(batch.partition, m)).join(''))
      await heartbeat()
    }
  })
  await stopped
  await consumer.disconnect()
}

async function main () {
  const text = { type: 'string' }
  const { values: o, positionals: [, command] } = parseArgs({
    allowPositionals: true,
    options: {
      brokers: text, topic: text, codec: { type: 'string', default: 'none' }, idempotent: { type: 'boolean' }, first: { type: 'string', default: '0' },
      count: { type: 'string', default: '0' }, group: text, 'session-ms': { type: 'string', default: '6000' }, cooperative: { type: 'boolean' }
    }
  })
  if (command === 'version') console.log(JSON.stringify({ version: packages('kafkajs/package.json').version }))
  else if (command === 'produce') await produce(o)
  else if (command === 'consume') await consume(o)
  else throw new Error(`no command ${command}`)
}

main().then(() => process.exit(0), e => { console.error(e); process.exit(1) })

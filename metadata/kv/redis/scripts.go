package redis

import (
	"crypto/sha1"
	"encoding/hex"
)

// script is a Lua script. Redis runs one script at a time, whole, so each is a
// transaction. None may fail halfway, because Redis takes nothing back: the first
// write of a script is one that Redis refuses when it is out of memory, a
// replica, or unable to save, and after a first write it refuses none.
type script struct {
	source string
	sha    string
}

func newScript(source string) script {
	sum := sha1.Sum([]byte(source)) // what EVALSHA names a script by; no secret
	return script{source: source, sha: hex.EncodeToString(sum[:])}
}

// Every script but open gets the generation as ARGV[1] and changes and tells
// nothing when the namespace is no longer the one that was opened.
const sameGeneration = `
if redis.call('HGET', KEYS[1], 'gen') ~= ARGV[1] then return {'lost'} end
`

// grow sets n to the greater of last+1 and the server's time in µs. So a number
// is not given twice even when a failover or a restart lost the last writes, as
// long as the servers' clocks differ by less than such a thing takes. A double
// holds it exactly until the year 2255.
const grow = `
local t = redis.call('TIME')
local n = tonumber(t[1]) * 1000000 + tonumber(t[2])
if n <= last then n = last + 1 end
`

// open: KEYS meta, keys, rows, log. ARGV version, a new generation. Creates the
// namespace when there is none. Answers ok, version, generation; or damaged.
var openScript = newScript(`
local m = redis.call('HMGET', KEYS[1], 'version', 'gen')
if m[1] and m[2] then return {'ok', m[1], m[2]} end
if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4]) > 0 then return {'damaged'} end
local last = 0
` + grow + `
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'gen', ARGV[2],
  'rev', string.format('%016.0f', n), 'lease', '0', 'bytes', '0')
return {'ok', ARGV[1], ARGV[2]}
`)

// generation: KEYS meta. Answers ok, version, generation; or absent.
var generationScript = newScript(`
local m = redis.call('HMGET', KEYS[1], 'version', 'gen')
if not m[1] or not m[2] then return {'absent'} end
return {'ok', m[1], m[2]}
`)

// get: KEYS meta, rows. ARGV gen, key. Answers ok, row; or absent.
var getScript = newScript(sameGeneration + `
local v = redis.call('HGET', KEYS[2], ARGV[2])
if not v then return {'absent'} end
return {'ok', v}
`)

// range: KEYS meta, keys, rows. ARGV gen, command, its two bounds, limit.
// Answers ok, key, row, key, row, …
var rangeScript = newScript(sameGeneration + `
local out = {'ok'}
local keys = redis.call(ARGV[2], KEYS[2], ARGV[3], ARGV[4], 'LIMIT', 0, ARGV[5])
if #keys == 0 then return out end
local rows = redis.call('HMGET', KEYS[3], unpack(keys))
for i, k in ipairs(keys) do
  out[2 * i] = k
  out[2 * i + 1] = rows[i]
end
return out
`)

// commit: KEYS meta, keys, rows, log. ARGV gen, bytes that the log may hold,
// number of preconditions, for each its key and 16 digits of revision (none:
// absent); then for each op '+', key, value, or '-', key, ”. Answers ok,
// revision; or conflict, key, its revision.
//
// An entry of the log has the fields p, the revision before it, by which a
// reader finds a gap; s, its size; and +KEY or -KEY for each op.
var commitScript = newScript(sameGeneration + `
local at = 4
for i = 1, tonumber(ARGV[3]) do
  local v = redis.call('HGET', KEYS[3], ARGV[at])
  local rev = v and string.sub(v, 1, 16) or ''
  if rev ~= ARGV[at + 1] then return {'conflict', ARGV[at], rev} end
  at = at + 2
end
if at > #ARGV then return {'ok', ''} end
local m = redis.call('HMGET', KEYS[1], 'rev', 'bytes')
local last = tonumber(m[1])
` + grow + `
local rev = string.format('%016.0f', n)
redis.call('HSET', KEYS[1], 'rev', rev)
local size = 64
local entry = {'p', m[1], 's', 0}
for i = at, #ARGV, 3 do
  local key, value = ARGV[i + 1], ARGV[i + 2]
  if ARGV[i] == '+' then
    redis.call('HSET', KEYS[3], key, rev .. value)
    redis.call('ZADD', KEYS[2], 0, key)
  else
    redis.call('HDEL', KEYS[3], key)
    redis.call('ZREM', KEYS[2], key)
  end
  entry[#entry + 1] = ARGV[i] .. key
  entry[#entry + 1] = value
  size = size + 16 + #key + #value
end
entry[4] = size
redis.call('XADD', KEYS[4], string.format('%.0f-0', n), unpack(entry))
local bytes = tonumber(m[2]) + size
while bytes > tonumber(ARGV[2]) do
  local old = redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', 10)
  local cut
  for _, e in ipairs(old) do
    if bytes <= tonumber(ARGV[2]) then break end
    cut = e[1]
    bytes = bytes - tonumber(e[2][4])
  end
  if not cut then bytes = 0 break end
  redis.call('XTRIM', KEYS[4], 'MINID', string.gsub(cut, '-.*', '') .. '-1')
end
redis.call('HSET', KEYS[1], 'bytes', string.format('%.0f', bytes))
return {'ok', rev}
`)

// position: KEYS meta. ARGV gen. Answers ok, the last revision given.
var positionScript = newScript(sameGeneration + `
return {'ok', redis.call('HGET', KEYS[1], 'rev')}
`)

// acquire: KEYS meta, lease. ARGV gen, owner, ttl in ms. Answers ok; or held,
// owner. A lease is 16 digits of counter, a space, and its owner.
var acquireScript = newScript(sameGeneration + `
local v = redis.call('GET', KEYS[2])
if v and string.sub(v, 18) ~= ARGV[2] then return {'held', string.sub(v, 18)} end
local last = tonumber(redis.call('HGET', KEYS[1], 'lease'))
` + grow + `
local c = string.format('%016.0f', n)
redis.call('HSET', KEYS[1], 'lease', c)
redis.call('SET', KEYS[2], c .. ' ' .. ARGV[2], 'PX', ARGV[3])
return {'ok'}
`)

// release: KEYS meta, lease. ARGV gen, owner. Answers ok; or free.
var releaseScript = newScript(sameGeneration + `
local v = redis.call('GET', KEYS[2])
if not v or string.sub(v, 18) ~= ARGV[2] then return {'free'} end
redis.call('DEL', KEYS[2])
return {'ok'}
`)

// holder: KEYS meta, lease. ARGV gen. Answers ok, lease; or free.
var holderScript = newScript(sameGeneration + `
local v = redis.call('GET', KEYS[2])
if not v then return {'free'} end
return {'ok', v}
`)

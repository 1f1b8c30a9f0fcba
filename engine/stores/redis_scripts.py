"""The atomic steps of the Redis store, in Lua. All keys are declared and share one hash tag, as Cluster demands.

A head is a hash: `fence` (version:generation, and :revision when that is not 0), `recent` (ids, separated by spaces)
and `head` (JSON, opaque here).
A time-to-live of 0 milliseconds means none. Every script checks first and writes afterwards, SETRANGE and HSET before
all others: Redis refuses them for lack of memory or a string that is too long, and only while nothing is written.
"""

_SET_EXPIRY = """
local function set_expiry(key, milliseconds)
  if milliseconds > 0 then redis.call('PEXPIRE', key, milliseconds) else redis.call('PERSIST', key) end
end
"""

_NOW = """
local function now_milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.ceil(time[2] / 1000)
end
"""

# What is entered when, and why, says redis_generations.py.
_ENTER_DROPPED = """
local function enter_dropped(key, members, milliseconds)
  local gone = now_milliseconds() + milliseconds
  for member in string.gmatch(members, '%S+') do redis.call('ZADD', key, gone, member) end
end
"""

# KEYS: head, generations, the new generation's keys (the token log last, if there is one), the kept ones', the dropped
# ones'.
# ARGV: the base's fence or '', the new one, its generation, recent, head, ttl, grace, numbers of new and of kept keys,
# the new members and the dropped ones of the generations, and how long these are remembered at least, the token log's
# length before (-1: there is none) and what is appended to it.
FLIP = (
    _SET_EXPIRY
    + _NOW
    + _ENTER_DROPPED
    + """
local current = redis.call('HMGET', KEYS[1], 'fence', 'recent', 'head')
if current[2] and string.find(' ' .. current[2] .. ' ', ' ' .. ARGV[3] .. ' ', 1, true) then
  return {'mine', current[3]}
end
if (current[1] or '') ~= ARGV[1] then return {'conflict', ''} end
local last_new = 2 + tonumber(ARGV[8])
local last_kept = last_new + tonumber(ARGV[9])
local log_length = tonumber(ARGV[13])
if log_length >= 0 then
  local log = KEYS[last_new]
  if redis.call('EXISTS', log) == 0 or redis.call('STRLEN', log) < log_length then return {'log lost', ''} end
end
for i = 3, last_new do
  if redis.call('EXISTS', KEYS[i]) == 0 then return {'missing', ''} end
end
if ARGV[14] ~= '' then redis.call('SETRANGE', KEYS[last_new], log_length, ARGV[14]) end
redis.call('HSET', KEYS[1], 'fence', ARGV[2], 'recent', ARGV[4], 'head', ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now_milliseconds())
for member in string.gmatch(ARGV[10], '%S+') do redis.call('ZADD', KEYS[2], '+inf', member) end
enter_dropped(KEYS[2], ARGV[11], tonumber(ARGV[7]))
local ttl = tonumber(ARGV[6])
set_expiry(KEYS[1], ttl)
set_expiry(KEYS[2], ttl > 0 and math.max(ttl, tonumber(ARGV[12])) or 0)
for i = 3, last_kept do set_expiry(KEYS[i], ttl) end
for i = last_kept + 1, #KEYS do redis.call('PEXPIRE', KEYS[i], tonumber(ARGV[7])) end
return {'flipped', ''}
"""
)

# KEYS: head, generations, the dropped ones' keys.   ARGV: the base's fence, the new one, head, grace, dropped members.
REPLACE_HEAD = (
    _NOW
    + _ENTER_DROPPED
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[2], 'head', ARGV[3])
enter_dropped(KEYS[2], ARGV[5], tonumber(ARGV[4]))
for i = 3, #KEYS do redis.call('PEXPIRE', KEYS[i], tonumber(ARGV[4])) end
return 1
"""
)

# KEYS: head, generations, all keys of its generations, the token log.   ARGV: fence, ttl, the least for generations.
RENEW = (
    _SET_EXPIRY
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
local ttl = tonumber(ARGV[2])
set_expiry(KEYS[2], ttl > 0 and math.max(ttl, tonumber(ARGV[3])) or 0)
for i = 1, #KEYS do
  if i ~= 2 then set_expiry(KEYS[i], ttl) end
end
return 1
"""
)

# KEYS: generations.   ARGV: member, milliseconds. An entry is never shortened.
REGISTER = (
    _NOW
    + """
local is_first = redis.call('EXISTS', KEYS[1]) == 0
redis.call('ZADD', KEYS[1], 'GT', now_milliseconds() + ARGV[2], ARGV[1])
if is_first then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""
)

# KEYS: head, keys of its generations.   ARGV: milliseconds.
RETIRE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
for i = 2, #KEYS do
  if redis.call('PTTL', KEYS[i]) == -1 then redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
end
return 1
"""

# KEYS: head, all keys of its generations, the token log.   ARGV: fence.
DELETE = """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
for i = 1, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""

# A write that even a full Redis takes, for WAIT to count, if the head knows the generation.
# KEYS: head.   ARGV: generation.
CONFIRM = """
local recent = redis.call('HGET', KEYS[1], 'recent')
if not recent or not string.find(' ' .. recent .. ' ', ' ' .. ARGV[1] .. ' ', 1, true) then return 0 end
local ttl = redis.call('PTTL', KEYS[1])
redis.call('PEXPIRE', KEYS[1], math.max(ttl, 1000))
if ttl < 0 then redis.call('PERSIST', KEYS[1]) end
return 1
"""

# A write for WAIT to count where there is no head.   KEYS: a name of its own.
CONFIRM_ABSENCE = """
redis.call('SET', KEYS[1], '', 'PX', 1000)
return 1
"""

# KEYS: lease.   ARGV: owner, milliseconds.
ACQUIRE_LEASE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: lease.   ARGV: owner.
RELEASE_LEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('UNLINK', KEYS[1]) end
return 1
"""

# No session id is called so: the sum of all others.
TOTAL_FIELD = "*"

# KEYS: index, usage.   ARGV: session id, bytes.
ENLIST = f"""
redis.call('ZADD', KEYS[1], 0, ARGV[1])
local before = redis.call('HGET', KEYS[2], ARGV[1]) or 0
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[2], '{TOTAL_FIELD}', string.format('%.0f', ARGV[2] - before))
return 1
"""

# KEYS: index, usage.   ARGV: session id.
UNLIST = f"""
redis.call('ZREM', KEYS[1], ARGV[1])
local before = redis.call('HGET', KEYS[2], ARGV[1])
if before then
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('HINCRBY', KEYS[2], '{TOTAL_FIELD}', string.format('%.0f', 0 - before))
end
return 1
"""

# KEYS: usage.
SUM_UP = f"""
local total = 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if fields[i] ~= '{TOTAL_FIELD}' then total = total + fields[i + 1] end
end
redis.call('HSET', KEYS[1], '{TOTAL_FIELD}', string.format('%.0f', total))
return 1
"""

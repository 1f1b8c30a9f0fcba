"""The atomic steps of the Redis store, in Lua. All keys are declared and share one hash tag, as Cluster demands.

A head is a hash: `fence` (version:generation, and :revision when that is not 0), `recent` (ids, separated by spaces)
and `head` (JSON, opaque here).
A time-to-live of 0 milliseconds means none. Every script checks first and writes afterwards, SETRANGE and HSET before
all others: they are the only writes that Redis refuses for lack of memory, and it lets a script end that has written.
"""

_SET_EXPIRY = """
local function set_expiry(key, milliseconds)
  if milliseconds > 0 then redis.call('PEXPIRE', key, milliseconds) else redis.call('PERSIST', key) end
end
"""

# KEYS: head, the new generation's keys (the token log last, if there is one), the kept ones', the dropped ones'.
# ARGV: the base's fence or '', the new one, its generation, recent, head, ttl, grace, numbers of new and of kept keys,
# the token log's length before (-1: there is none) and what is appended to it.
FLIP = (
    _SET_EXPIRY
    + """
local current = redis.call('HMGET', KEYS[1], 'fence', 'recent', 'head')
if current[2] and string.find(' ' .. current[2] .. ' ', ' ' .. ARGV[3] .. ' ', 1, true) then
  return {'mine', current[3]}
end
if (current[1] or '') ~= ARGV[1] then return {'conflict', ''} end
local last_new = 1 + tonumber(ARGV[8])
local last_kept = last_new + tonumber(ARGV[9])
local log_length = tonumber(ARGV[10])
if log_length >= 0 and redis.call('STRLEN', KEYS[last_new]) < log_length then return {'log lost', ''} end
for i = 2, last_new do
  if redis.call('EXISTS', KEYS[i]) == 0 then return {'missing', ''} end
end
if ARGV[11] ~= '' then redis.call('SETRANGE', KEYS[last_new], log_length, ARGV[11]) end
redis.call('HSET', KEYS[1], 'fence', ARGV[2], 'recent', ARGV[4], 'head', ARGV[5])
local ttl = tonumber(ARGV[6])
for i = 1, last_kept do set_expiry(KEYS[i], ttl) end
for i = last_kept + 1, #KEYS do redis.call('PEXPIRE', KEYS[i], tonumber(ARGV[7])) end
return {'flipped', ''}
"""
)

# KEYS: head, the dropped generations' keys.   ARGV: the base's fence, the new one, head, grace.
REPLACE_HEAD = """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[2], 'head', ARGV[3])
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], tonumber(ARGV[4])) end
return 1
"""

# KEYS: head, all keys of its generations, the token log.   ARGV: fence, ttl.
RENEW = (
    _SET_EXPIRY
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
for i = 1, #KEYS do set_expiry(KEYS[i], tonumber(ARGV[2])) end
return 1
"""
)

# KEYS: head, all keys of its generations, the token log.   ARGV: fence.
DELETE = """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
redis.call('UNLINK', unpack(KEYS))
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

#!lua flags=allow-oom
-- Puts a batch out of the way whose record lensd did not write, or cannot work with: it fails, and is forgotten in its
-- time; what is no record, or nobody's, is kept aside. Its jobs go on by themselves, and expire as single ones do.
-- ARGV: policy, batch
-- Returns nothing

local batch = ARGV[2]
local record = 'lensd:batch:' .. batch

local function drop(...)
  for _, part in ipairs({...}) do redis.call('UNLINK', 'lensd:batch-' .. part .. ':' .. batch) end
end

-- Whose it is, by its record or by one of its jobs.
local function owner_of()
  local owner = batch_fields(batch, 'owner')
  if owner then return owner end
  for _, id in ipairs(redis.pcall('SMEMBERS', 'lensd:batch-living:' .. batch)) do
    local known = redis.pcall('HGET', 'lensd:job:' .. id, 'owner')
    if type(known) == 'string' then return known end
  end
end

local function put_aside(owner)
  if owner then
    redis.call('SREM', 'lensd:batches-open:' .. owner, batch)
    redis.call('ZREM', 'lensd:batches:' .. owner, batch)
    keep(owner, 0)
  end
  redis.call('ZREM', 'lensd:batches-due', batch)
  drop('lines', 'wrong', 'names', 'living', 'deleted')
  if redis.call('EXISTS', record) == 0 then return end
  redis.call('RENAME', record, 'lensd:quarantined:' .. batch)
  redis.call('PEXPIRE', 'lensd:quarantined:' .. batch, digits(policy.retention / 1000))
end

-- Gives numbers to what has to be a number, so that the record can be read again if nothing else is wrong with it.
local function mend()
  local function number(name) return (batch_fields(batch, name) or ''):match('^%d+$') end
  for _, name in ipairs({'lines', 'fence', 'offset', 'number', 'checked', 'invalid', 'cost', 'fed', 'succeeded', 'failed'}) do
    if not number(name) then batch_set(batch, name, 0) end
  end
  if not number('created_at') then batch_set(batch, 'created_at', digits(now)) end
  for _, name in ipairs({'started_at', 'finished_at', 'expires_at', 'bytes'}) do
    if not number(name) then redis.call('HDEL', record, name) end
  end
  local lines, invalid, succeeded, failed = batch_fields(batch, 'lines', 'invalid', 'succeeded', 'failed')
  batch_set(batch, 'cancelled', math.max(0, lines - invalid - succeeded - failed), 'error', policy.damaged_batch)
end

local owner = owner_of()
if not owner or redis.call('TYPE', record).ok ~= 'hash' then return put_aside(owner) end
batch_set(batch, 'owner', owner)
drop('wrong', 'names', 'living')
mend()
local status, expires = batch_fields(batch, 'status', 'expires_at')
if not (status == 'ended' or status == 'failed') or not expires then
  end_batch(batch, 'failed')
elseif passed(expires) then
  forget_batch(batch)
else
  redis.call('ZADD', 'lensd:batches-due', expires, batch)
end

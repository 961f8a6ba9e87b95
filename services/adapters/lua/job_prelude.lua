-- What the scripts of the life of a job share; put before each of them by services/adapters/lua_scripts.py.
--
-- All times are microseconds of the server's clock. The scripts take no KEYS: every key follows from ids (there is one
-- primary, never a cluster). ARGV[1] is always the policy as JSON.
--
--   lensd:job:<id>                           hash: the record
--   lensd:events:<id>                        list: the job's latest events, each [field, value, …] as JSON
--   lensd:tokens:<id>                        list: what the running attempt has written, one batch a beat, as JSON
--   lensd:events                             stream: the latest events of all jobs
--   lensd:owner:<owner>                      sorted set: the owner's jobs by creation
--   lensd:kept-bytes:<owner>                 string: bytes that the owner's jobs and batches take of the store's memory
--   lensd:blob-bytes:<owner>                 string: the same of its blobs, where they lie in the store (redis_blobs.py)
--   lensd:idempotency:<owner>:<key digest>   string: "<job> <request digest>"
--   lensd:cached:<question>:<fingerprint>    string: the job whose result answers the question (services/jobs/cache.py)
--   lensd:arriving:<id>                      string: "<job> <owner>", the job whose result is copied for an owner's job
--                                            that has no record yet
--   lensd:answers:<owner>                    string: how many of the owner's jobs were answered so and are kept
--   lensd:living:<owner>                     set: the owner's jobs that have not ended
--   lensd:running:<owner>                    set: those of them that run
--   lensd:work:<owner>:<day since 1970>      string: token-layers charged to the owner for jobs made that day (UTC)
--   lensd:pools                              set: pools that ever had a job
--   lensd:queued:<pool>                      sorted set: queued jobs by the time since when they wait
--   lensd:turns:<group>                      list: owners with queued jobs, in turn
--   lensd:line:<group>:<owner>               sorted set: the owner's queued jobs by creation
--   lensd:leases, :deadlines, :expiries      sorted sets: jobs by the time of each
--   lensd:quarantined:<id>                   anything: what lay in a job's or batch's record's place, until it expires
--   lensd:executing:<worker>                 string: " <job>:<attempt> <job>:<attempt> " of the chunk it runs
--   lensd:reaper                             hash: last round, last sweep, end of the reprieve after an outage
--   lensd:webhook:<id>, :deliveries, …        see delivery_prelude.lua
--   lensd:batch:<batch>                      hash: the record of a batch; a job's field 'batch' names its own
--   lensd:batch-lines:<batch>                list: its validated lines, as JSON
--   lensd:batch-wrong:<batch>                list: the first wrong ones
--   lensd:batch-names:<batch>                hash: custom id → number of its line, while it is validated
--   lensd:batch-living:<batch>               set: its jobs that have not ended
--   lensd:batch-deleted:<batch>              hash: its jobs that were deleted one by one → how they had ended
--   lensd:batches:<owner>                    sorted set: the owner's batches by creation
--   lensd:batches-open:<owner>               set: those of them that have not ended, and unfinished uploads
--   lensd:batches-due                        sorted set: batches by the time from which a keeper may take them
--
-- A group is <pool>:<priority>:<size>, with a size of 'small' or 'large'.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local policy = cjson.decode(ARGV[1])
local DAY = 86400 * 1000000
local today = math.floor(now / DAY)

local EVENT_FIELDS = {
  'status', 'attempt', 'done', 'planned', 'started_at', 'finished_at', 'expires_at', 'error', 'cached', 'batches',
}

-- Lua's own conversion would round a number as long as a time.
local function digits(number) return string.format('%.0f', number) end

local function fields(id, ...) return unpack(redis.call('HMGET', 'lensd:job:' .. id, ...)) end

local function set(id, ...) redis.call('HSET', 'lensd:job:' .. id, ...) end

local function passed(time) return time and tonumber(time) <= now end

-- What an attempt has written so far is for who watches it; the result has it all.
local function drop_tokens(id)
  redis.call('DEL', 'lensd:tokens:' .. id)
  redis.call('HDEL', 'lensd:job:' .. id, 'batches')
end

local function announce(id)
  local version = redis.call('HINCRBY', 'lensd:job:' .. id, 'version', 1)
  local values = redis.call('HMGET', 'lensd:job:' .. id, unpack(EVENT_FIELDS))
  local event = {'version', version}
  for i, field in ipairs(EVENT_FIELDS) do
    if values[i] then
      event[#event + 1] = field
      event[#event + 1] = values[i]
    end
  end
  redis.call('RPUSH', 'lensd:events:' .. id, cjson.encode(event))
  redis.call('LTRIM', 'lensd:events:' .. id, -policy.kept_events, -1)
  redis.call('XADD', 'lensd:events', 'MAXLEN', '~', policy.kept_shared_events, '*', 'job', id, unpack(event))
end

local info

-- Bytes of the server's memory that are used, and its bound, 0 for none.
local function memory()
  info = info or redis.call('INFO', 'memory')
  return tonumber(info:match('used_memory:(%d+)')), tonumber(info:match('\nmaxmemory:(%d+)'))
end

local function memory_is_short()
  local used, bound = memory()
  return bound > 0 and used > bound * policy.max_memory
end

local function kept_bytes(owner)
  local records, blobs = unpack(redis.call('MGET', 'lensd:kept-bytes:' .. owner, 'lensd:blob-bytes:' .. owner))
  return (tonumber(records) or 0) + (tonumber(blobs) or 0)
end

-- Why nothing more is kept for the owner until something of its own is forgotten, or nil; `part` of its bounds counts.
local function keeps_too_much(owner, part)
  local jobs = redis.call('ZCARD', 'lensd:owner:' .. owner)
  if jobs >= policy.max_kept * (part or 1) then return {'limited', 'kept', jobs} end
  local _, bound = memory()
  local share = math.floor(bound * policy.max_memory * policy.max_kept_share * (part or 1))
  local bytes = kept_bytes(owner)
  if bound > 0 and bytes >= share then return {'limited', 'bytes', bytes, share} end
end

-- What an owner's jobs and batches take changed by so many bytes. Once it has none the count begins anew, whatever a
-- damaged record did to it.
local function keep(owner, bytes)
  local kept = 'lensd:kept-bytes:' .. owner
  local none = redis.call('EXISTS', 'lensd:owner:' .. owner, 'lensd:batches:' .. owner, 'lensd:batches-open:' .. owner) == 0
  -- Less of nothing is -0 in Lua, which is no integer to the server.
  if redis.call('INCRBY', kept, digits(bytes + 0)) <= 0 or none then redis.call('DEL', kept) end
end

local function usage(key) return redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0) or 0 end

-- A job's places in sorted sets and its reservation.
local INDEX_BYTES = 700

-- Notes what the job takes of the store's memory as its owner's.
local function weigh(id)
  local owner, before = fields(id, 'owner', 'bytes')
  if not owner then return end
  local bytes = usage('lensd:job:' .. id) + usage('lensd:events:' .. id) + INDEX_BYTES
  set(id, 'bytes', bytes)
  keep(owner, bytes - (tonumber(before) or 0))
end

-- Whether an idempotency key is taken, and how: 'replayed' and the job (or batch) of the same request, or 'conflict'.
-- One whose record is gone, or is none, holds nothing: what put it out of the way could not know its key.
local function earlier_request(reservation, digest, kind)
  local reserved = reservation ~= '' and redis.call('GET', reservation)
  if not reserved then return nil end
  local earlier, request = reserved:match('^(%S+) (%S+)$')
  if not earlier or redis.call('TYPE', 'lensd:' .. (kind or 'job') .. ':' .. earlier).ok ~= 'hash' then return nil end
  if request == digest then return 'replayed', earlier end
  return 'conflict'
end

-- What every new record has.
local function put_record(id, owner, pool, priority, size, head, ties, reservation, digest)
  set(id, 'owner', owner, 'pool', pool, 'priority', priority, 'size', size, 'head', head, 'created_at', digits(now),
    'attempt', 0)
  for tie, other in pairs(cjson.decode(ties)) do set(id, tie, other) end
  if reservation ~= '' then
    set(id, 'idempotency', reservation)
    redis.call('SET', reservation, id .. ' ' .. digest)
  end
  redis.call('ZADD', 'lensd:owner:' .. owner, digits(now), id)
end

local function group_of(pool, priority, size) return pool .. ':' .. priority .. ':' .. size end

local function work_of(owner, day) return 'lensd:work:' .. owner .. ':' .. digits(day) end

local function charge(id, owner, cost)
  local work = work_of(owner, today)
  redis.call('INCRBY', work, cost)
  redis.call('EXPIRE', work, 2 * 86400)
  set(id, 'charged', cost, 'charged_on', digits(today))
end

-- Corrects what the job was charged to what it cost; a second correction changes nothing.
local function settle(id, bill)
  local owner, charged, day = fields(id, 'owner', 'charged', 'charged_on')
  if not charged then return end
  redis.call('HDEL', 'lensd:job:' .. id, 'charged', 'charged_on')
  if not (owner and tonumber(charged) and tonumber(day)) then return end
  local work = work_of(owner, day)
  if redis.call('EXISTS', work) == 1 then redis.call('INCRBY', work, digits(bill - charged)) end
end

local function enqueue(id, since)
  local owner, pool, priority, size, created = fields(id, 'owner', 'pool', 'priority', 'size', 'created_at')
  local group = group_of(pool, priority, size)
  local line = 'lensd:line:' .. group .. ':' .. owner
  if redis.call('EXISTS', line) == 0 then redis.call('RPUSH', 'lensd:turns:' .. group, owner) end
  redis.call('ZADD', line, created, id)
  redis.call('ZADD', 'lensd:queued:' .. pool, digits(since), id)
  redis.call('SREM', 'lensd:running:' .. owner, id)
  set(id, 'status', 'queued')
end

local function dequeue(id)
  local owner, pool, priority, size = fields(id, 'owner', 'pool', 'priority', 'size')
  local group = group_of(pool, priority, size)
  local line = 'lensd:line:' .. group .. ':' .. owner
  redis.call('ZREM', 'lensd:queued:' .. pool, id)
  if redis.call('ZREM', line, id) == 1 and redis.call('EXISTS', line) == 0 then
    redis.call('LREM', 'lensd:turns:' .. group, 0, owner)
  end
end

-- The job's result answers the same question again, if it was computed as the entry says.
local function remember(id, status)
  local entry, fingerprint = fields(id, 'cache_entry', 'fingerprint')
  if status == 'succeeded' and entry and entry:match('[^:]*$') == fingerprint then
    redis.call('SET', 'lensd:cached:' .. entry, id)
  end
end

-- Puts the message about the end of a job or a batch in its owner's queue, if the endpoint is still there. The message
-- has its name from what it is about, so it is the same one however often this is done.
local function queue_message(id, owner, webhook)
  if not webhook or redis.call('EXISTS', 'lensd:webhook:' .. webhook) == 0 then return end
  local message = 'msg_' .. id:gsub('^job_', '')
  redis.call('HSET', 'lensd:delivery:' .. message, 'webhook', webhook, 'job', id)
  redis.call('ZADD', 'lensd:deliveries:' .. owner, digits(now), message)
  redis.call('ZADD', 'lensd:deliveries', 'LT', digits(now), owner)
end

local function queue_delivery(id) queue_message(id, fields(id, 'owner', 'webhook')) end

-- Nothing of what is no record, which a keeper puts out of the way.
local function batch_fields(batch, ...) return unpack(redis.pcall('HMGET', 'lensd:batch:' .. batch, ...)) end

local function end_batch(batch, status, ...)
  local expires = digits(now + policy.retention)
  redis.call('HSET', 'lensd:batch:' .. batch, 'status', status, 'finished_at', digits(now), 'expires_at', expires, ...)
  redis.call('DEL', 'lensd:batch-names:' .. batch)
  local owner, head = batch_fields(batch, 'owner', 'head')
  redis.call('SREM', 'lensd:batches-open:' .. owner, batch)
  redis.call('ZADD', 'lensd:batches-due', digits(now), batch)
  local read, noted = pcall(cjson.decode, head)
  local webhook = read and type(noted) == 'table' and noted.webhook
  -- What is null in JSON is no string, and true.
  if type(webhook) == 'string' then queue_message(batch, owner, webhook) end
end

-- Ends a batch none of whose lines can change any more; lines that never ran count as cancelled.
local function end_batch_if_done(batch)
  local status, lines, invalid, succeeded, failed, cancelled =
    batch_fields(batch, 'status', 'lines', 'invalid', 'succeeded', 'failed', 'cancelled')
  local over = status == 'running' and invalid + succeeded + failed + cancelled >= tonumber(lines)
  if over or (status == 'cancelling' and redis.call('SCARD', 'lensd:batch-living:' .. batch) == 0) then
    end_batch(batch, 'ended', 'cancelled', lines - invalid - succeeded - failed)
  end
end

local function count_in_batch(batch, id, status)
  local phase = batch_fields(batch, 'status')
  if phase ~= 'running' and phase ~= 'cancelling' then return end
  redis.call('SREM', 'lensd:batch-living:' .. batch, id)
  redis.call('HINCRBY', 'lensd:batch:' .. batch, status, 1)
  end_batch_if_done(batch)
end

-- Counts the end of a job in its batch.
local function tell_batch(id, status)
  local batch = fields(id, 'batch')
  if batch then count_in_batch(batch, id, status) end
end

-- The same for a job whose record says nothing of its batch: one that waits for it would never end. Without a record it
-- counts as deleted, so that it is not made again.
local function tell_waiting_batch(id, status, recorded)
  for _, batch in ipairs(redis.call('ZRANGE', 'lensd:batches-due', 0, -1)) do
    if redis.call('SISMEMBER', 'lensd:batch-living:' .. batch, id) == 1 then
      if not recorded then redis.call('HSET', 'lensd:batch-deleted:' .. batch, id, status) end
      count_in_batch(batch, id, status)
    end
  end
end

-- Whether a batch takes the job: 'deleted' if it had it before, 'closed' if it does not run.
local function shut_by_batch(id, batch)
  if not batch then return nil end
  if redis.call('HEXISTS', 'lensd:batch-deleted:' .. batch, id) == 1 then return 'deleted' end
  if batch_fields(batch, 'status') ~= 'running' then return 'closed' end
end

-- A job is kept for as long as its batch. Returns whether it is to be kept longer: not if the batch has not ended and its
-- owner nears its bounds, for a batch that waits for room among its own results would wait for ever.
local function kept_by_batch(id)
  local batch = fields(id, 'batch')
  local owner, expires = batch_fields(batch or '', 'owner', 'expires_at')
  expires = tonumber(expires or '') and expires
  if not owner or (not expires and keeps_too_much(owner, policy.max_renewed)) then return false end
  if not expires then expires = digits(now + policy.retention) end
  -- A batch past its own time goes with all its jobs as soon as a keeper comes round.
  if passed(expires) then expires = digits(now + policy.lease) end
  set(id, 'expires_at', expires)
  redis.call('ZADD', 'lensd:expiries', expires, id)
  return true
end

-- Ended jobs are many: what one computed on, often the largest part of its record, goes, and most of its events.
-- A job that never ran costs nothing; one that ends without a bill costs what was estimated.
local function finish(id, status, ...)
  local expires = digits(now + policy.retention)
  local owner, attempt = fields(id, 'owner', 'attempt')
  dequeue(id)
  if attempt == '0' then settle(id, 0) end
  redis.call('SREM', 'lensd:living:' .. owner, id)
  redis.call('SREM', 'lensd:running:' .. owner, id)
  set(id, 'status', status, 'finished_at', digits(now), 'expires_at', expires, ...)
  redis.call('HDEL', 'lensd:job:' .. id, 'spec', 'inputs', 'suspected', 'charged', 'charged_on')
  drop_tokens(id)
  redis.call('ZREM', 'lensd:leases', id)
  redis.call('ZREM', 'lensd:deadlines', id)
  redis.call('ZADD', 'lensd:expiries', expires, id)
  announce(id)
  redis.call('LTRIM', 'lensd:events:' .. id, -policy.kept_events_of_ended, -1)
  weigh(id)
  remember(id, status)
  queue_delivery(id)
  -- A damaged batch costs its jobs nothing: a keeper finds it.
  pcall(tell_batch, id, status)
end

-- A claim holds until the job ends, is released, or is claimed by another: a job that was handed back in the worker's
-- absence and that nobody has claimed yet becomes the worker's again.
local function holds(id, worker, attempt)
  local status, holder, latest = fields(id, 'status', 'worker', 'attempt')
  if holder ~= worker or latest ~= attempt or (status ~= 'running' and status ~= 'queued') then return false end
  redis.call('ZADD', 'lensd:leases', digits(now + policy.lease), id)
  if status == 'queued' then
    dequeue(id)
    redis.call('HDEL', 'lensd:job:' .. id, 'suspected')
    redis.call('SADD', 'lensd:running:' .. fields(id, 'owner'), id)
    set(id, 'status', 'running')
    announce(id)
  end
  return true
end

-- Puts a running job back in line, unless it is to go no further. Returns whether it is queued.
local function hand_back(id)
  local cancel, deadline = fields(id, 'cancel_requested', 'deadline_at')
  if cancel then
    finish(id, 'cancelled')
  elseif passed(deadline) then
    finish(id, 'failed', 'error', policy.deadline_exceeded)
  else
    redis.call('ZREM', 'lensd:leases', id)
    enqueue(id, 0)
    announce(id)
    return true
  end
  return false
end

local function forget(id)
  redis.call('ZREM', 'lensd:expiries', id)
  local owner, idempotency, entry, cached = fields(id, 'owner', 'idempotency', 'cache_entry', 'cached')
  local batch, status, bytes = fields(id, 'batch', 'status', 'bytes')
  if batch and batch_fields(batch, 'owner') then redis.call('HSET', 'lensd:batch-deleted:' .. batch, id, status) end
  if owner then
    redis.call('ZREM', 'lensd:owner:' .. owner, id)
    keep(owner, -(tonumber(bytes) or 0))
  end
  if idempotency then redis.call('DEL', idempotency) end
  if entry and redis.call('GET', 'lensd:cached:' .. entry) == id then redis.call('DEL', 'lensd:cached:' .. entry) end
  local answers = owner and cached and 'lensd:answers:' .. owner
  if answers and redis.call('DECR', answers) <= 0 then redis.call('DEL', answers) end
  redis.call('DEL', 'lensd:job:' .. id, 'lensd:events:' .. id, 'lensd:tokens:' .. id)
end

-- Puts a job out of the way whose record lensd did not write, or cannot work with: a record fails, and is forgotten in
-- its time; anything else is kept aside. `owner` is whose line it was found in, which the record need not say.
local function quarantine(id, owner)
  local record = 'lensd:job:' .. id
  for _, queue in ipairs({'leases', 'deadlines', 'expiries'}) do redis.call('ZREM', 'lensd:' .. queue, id) end
  for _, pool in ipairs(redis.call('SMEMBERS', 'lensd:pools')) do redis.call('ZREM', 'lensd:queued:' .. pool, id) end
  local kind = redis.call('TYPE', record).ok
  local named = kind == 'hash' and fields(id, 'owner')
  for _, who in ipairs({owner or named, named}) do
    if who then
      redis.call('SREM', 'lensd:living:' .. who, id)
      redis.call('SREM', 'lensd:running:' .. who, id)
      if who ~= named then redis.call('ZREM', 'lensd:owner:' .. who, id) end
    end
  end
  if kind == 'hash' then
    local before = fields(id, 'status')
    pcall(dequeue, id)
    drop_tokens(id)
    local expires = digits(now + policy.retention)
    set(id, 'status', 'failed', 'finished_at', digits(now), 'expires_at', expires, 'error', policy.damaged)
    redis.call('HDEL', record, 'spec', 'inputs', 'suspected', 'charged', 'charged_on')
    redis.call('ZADD', 'lensd:expiries', expires, id)
    pcall(announce, id)
    pcall(weigh, id)
    if before == 'queued' or before == 'running' then
      pcall(tell_batch, id, 'failed')
      pcall(queue_delivery, id)
    end
  elseif kind ~= 'none' then
    redis.call('RENAME', record, 'lensd:quarantined:' .. id)
    redis.call('PEXPIRE', 'lensd:quarantined:' .. id, digits(policy.retention / 1000))
  end
  tell_waiting_batch(id, 'failed', kind == 'hash')
end

#!lua flags=allow-oom
-- One round of the reaper, if one is due.
-- ARGV: policy
-- Returns {handed back, ended, forgotten, {pool, unclaimed, …}, whether to sweep blobs, damaged}, or false if it is not due

local AT_ONCE = 500

local function due(queue)
  return redis.call('ZRANGE', 'lensd:' .. queue, '-inf', digits(now), 'BYSCORE', 'LIMIT', 0, AT_ONCE)
end

-- The worker is dead. Blame the job if it was in the chunk being run; if no chunk was, it may have been any of its jobs.
local function suspect(id)
  local worker, attempt = fields(id, 'worker', 'attempt')
  local chunk = redis.call('GET', 'lensd:executing:' .. worker)
  if not chunk then return 'unexplained' end
  return chunk:find(' ' .. id .. ':' .. attempt .. ' ', 1, true) and 'blamed' or nil
end

local function lose(id)
  local suspected = not fields(id, 'cancel_requested') and suspect(id)
  if suspected and (tonumber(fields(id, suspected)) or 0) + 1 >= policy['max_' .. suspected] then
    finish(id, 'failed', 'error', policy.worker_lost)
    return false
  end
  if suspected then set(id, 'suspected', suspected) end
  return hand_back(id)
end

local damaged = {}

-- What `step` says of the job; one whose record makes it impossible is put out of the way.
local function soundly(step, id)
  local sound, answer = pcall(step, id)
  if sound then return answer end
  quarantine(id)
  damaged[#damaged + 1] = id
end

local function expire(id)
  if fields(id, 'status') ~= 'queued' then return false end
  finish(id, 'failed', 'error', policy.deadline_exceeded)
  return true
end

-- Where to a job goes whose lease has expired: 'queued', 'ended', or nowhere.
local function recover(id)
  if fields(id, 'status') ~= 'running' then return false end
  return lose(id) and 'queued' or 'ended'
end

-- Whether a job past its retention is gone; one of a batch stays for as long as that.
local function let_go(id)
  if kept_by_batch(id) then return false end
  forget(id)
  return true
end

local last, reprieve, swept = unpack(redis.call('HMGET', 'lensd:reaper', 'last', 'reprieve', 'swept'))
if last and now - last < policy.reap_every then return false end
if last and now - last > policy.outage then
  reprieve = digits(now + policy.lease)
  redis.call('HSET', 'lensd:reaper', 'reprieve', reprieve)
end
local sweep = not swept or now - swept >= policy.sweep_every
if sweep then redis.call('HSET', 'lensd:reaper', 'swept', digits(now)) end
redis.call('HSET', 'lensd:reaper', 'last', digits(now))

local handed_back, ended, unclaimed = {}, {}, {}
for _, id in ipairs(due('deadlines')) do
  redis.call('ZREM', 'lensd:deadlines', id)
  if soundly(expire, id) then ended[#ended + 1] = id end
end
if not reprieve or passed(reprieve) then
  for _, id in ipairs(due('leases')) do
    redis.call('ZREM', 'lensd:leases', id)
    local where = soundly(recover, id)
    if where == 'queued' then handed_back[#handed_back + 1] = id end
    if where == 'ended' then ended[#ended + 1] = id end
  end
end
local forgotten = {}
for _, id in ipairs(due('expiries')) do
  if soundly(let_go, id) ~= false then forgotten[#forgotten + 1] = id end
end
for _, pool in ipairs(redis.call('SMEMBERS', 'lensd:pools')) do
  local count = redis.call('ZCOUNT', 'lensd:queued:' .. pool, '-inf', digits(now - policy.ring_after))
  if count > 0 then
    unclaimed[#unclaimed + 1] = pool
    unclaimed[#unclaimed + 1] = count
  end
end
return {handed_back, ended, forgotten, unclaimed, sweep and 1 or 0, damaged}

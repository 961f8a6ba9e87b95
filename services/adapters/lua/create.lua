#!lua
-- Stores a queued job, reserves its idempotency key and puts it in line.
-- ARGV: policy, job, owner, pool, priority, size, head (JSON), spec (JSON), inputs (JSON), deadline from now or '',
--       idempotency key's name or '', request digest
-- Returns {'created', created_at} | {'replayed', job} | {'conflict'} | {'full', 'queue' or 'memory'}

local _, id, owner, pool, priority, size, head, spec, inputs, deadline, reservation, digest = unpack(ARGV)

local function memory_is_short()
  local info = redis.call('INFO', 'memory')
  local bound = tonumber(info:match('\nmaxmemory:(%d+)'))
  return bound > 0 and tonumber(info:match('used_memory:(%d+)')) > bound * policy.max_memory
end

local created = fields(id, 'created_at')
if created then return {'created', created} end
if reservation ~= '' then
  local reserved = redis.call('GET', reservation)
  if reserved then
    local job, request = reserved:match('^(%S+) (%S+)$')
    return request == digest and {'replayed', job} or {'conflict'}
  end
end
if redis.call('ZCARD', 'lensd:queued:' .. pool) >= policy.max_queued then return {'full', 'queue'} end
if memory_is_short() then return {'full', 'memory'} end

set(id, 'owner', owner, 'pool', pool, 'priority', priority, 'size', size, 'head', head, 'spec', spec, 'inputs', inputs,
  'created_at', digits(now), 'attempt', 0)
if deadline ~= '' then
  local deadline_at = digits(now + tonumber(deadline))
  set(id, 'deadline_at', deadline_at)
  redis.call('ZADD', 'lensd:deadlines', deadline_at, id)
end
if reservation ~= '' then
  set(id, 'idempotency', reservation)
  redis.call('SET', reservation, id .. ' ' .. digest)
end
redis.call('ZADD', 'lensd:owner:' .. owner, digits(now), id)
redis.call('SADD', 'lensd:pools', pool)
enqueue(id, now)
announce(id)
return {'created', digits(now)}

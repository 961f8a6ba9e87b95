#!lua
-- Stores a queued job, reserves its idempotency key and puts it in line.
-- ARGV: policy, job, owner, pool, priority, size, head (JSON), spec (JSON), inputs (JSON), deadline from now or '',
--       idempotency key's name or '', request digest, estimated cost, limits of the owner (JSON), ties (JSON)
-- Returns {'created', created_at} | {'replayed', job} | {'conflict'} | {'full', 'queue', 'batch' or 'memory'} |
--         {'limited', 'jobs', how many there are} | {'limited', 'queue', how many may wait} |
--         {'limited', 'kept', how many are kept} | {'limited', 'bytes', how many are kept, how many may be} |
--         {'closed'}, if its batch does not run | {'limited', 'work', charged today, microseconds until midnight}

local _, id, owner, pool, priority, size, head, spec, inputs, deadline, reservation, digest, cost = unpack(ARGV)
local limits = cjson.decode(ARGV[14])
local ties = cjson.decode(ARGV[15])

local function queued()
  local count = 0
  for _, line in ipairs({'interactive:small', 'interactive:large', 'batch:small', 'batch:large'}) do
    count = count + redis.call('ZCARD', 'lensd:line:' .. pool .. ':' .. line .. ':' .. owner)
  end
  return count
end

-- Why the job is not admitted, or nil: what the owner has of its own comes first, so that it learns of that.
local function refusal()
  local living = redis.call('SCARD', 'lensd:living:' .. owner)
  if limits.jobs and living >= limits.jobs then return {'limited', 'jobs', living} end
  local kept = keeps_too_much(owner)
  if kept then return kept end
  local share = math.floor(limits.queue_share * policy.max_queued)
  if limits.queue_share < 1 and queued() >= share then return {'limited', 'queue', share} end
  local charged = tonumber(redis.call('GET', work_of(owner, today)) or 0)
  if limits.daily_token_layers and charged + cost > limits.daily_token_layers then
    return {'limited', 'work', charged, digits((today + 1) * DAY - now)}
  end
  local depth = redis.call('ZCARD', 'lensd:queued:' .. pool)
  if depth >= policy.max_queued then return {'full', 'queue'} end
  if priority == 'batch' and depth >= policy.max_queued * policy.batch_share then return {'full', 'batch'} end
  if memory_is_short() then return {'full', 'memory'} end
end

local created = fields(id, 'created_at')
if created then return {'created', created} end
-- A job of a batch that was deleted has been, and is not made again.
local shut = shut_by_batch(id, ties.batch)
if shut == 'deleted' then return {'created', digits(now)} end
if shut then return {shut} end
local answer, earlier = earlier_request(reservation, digest)
if answer then return {answer, earlier} end
local refused = refusal()
if refused then return refused end

put_record(id, owner, pool, priority, size, head, ARGV[15], reservation, digest)
set(id, 'spec', spec, 'inputs', inputs)
if limits.running then set(id, 'max_running', limits.running) end
if ties.batch then redis.call('SADD', 'lensd:batch-living:' .. ties.batch, id) end
if deadline ~= '' then
  local deadline_at = digits(now + tonumber(deadline))
  set(id, 'deadline_at', deadline_at)
  redis.call('ZADD', 'lensd:deadlines', deadline_at, id)
end
redis.call('SADD', 'lensd:living:' .. owner, id)
redis.call('SADD', 'lensd:pools', pool)
charge(id, owner, cost)
enqueue(id, now)
announce(id)
weigh(id)
return {'created', digits(now)}

#!lua flags=allow-oom
-- Gives the pool's next job of some sizes to a worker: interactive before batch, then by size, one per owner in turn.
-- ARGV: policy, pool, worker, owners to pass over ({size: {owner: true}}, JSON), then the sizes, most wanted first
-- Returns {job, {field, value, …}} or false

local _, pool, worker = unpack(ARGV)
local without = cjson.decode(ARGV[4])

local function may_start(size, owner, id)
  if without[size][owner] then return false end
  local bound = fields(id, 'max_running')
  return not bound or redis.call('SCARD', 'lensd:running:' .. owner) < tonumber(bound)
end

-- Takes the next job of the owner whose turn it is; those that run as many as they may are passed over.
local function next_in_line(priority, size)
  local group = group_of(pool, priority, size)
  local turns = 'lensd:turns:' .. group
  for _ = 1, redis.call('LLEN', turns) do
    local owner = redis.call('LPOP', turns)
    local line = 'lensd:line:' .. group .. ':' .. owner
    local id = redis.call('ZRANGE', line, 0, 0)[1]
    local starts = id and may_start(size, owner, id)
    if starts then redis.call('ZREM', line, id) end
    if redis.call('EXISTS', line) == 1 then redis.call('RPUSH', turns, owner) end
    if starts then
      redis.call('ZREM', 'lensd:queued:' .. pool, id)
      return id
    end
  end
end

local function start(id, suspected)
  if suspected then
    redis.call('HINCRBY', 'lensd:job:' .. id, suspected, 1)
    redis.call('HDEL', 'lensd:job:' .. id, 'suspected')
  end
  redis.call('HINCRBY', 'lensd:job:' .. id, 'attempt', 1)
  set(id, 'status', 'running', 'worker', worker, 'started_at', digits(now), 'done', 0, 'planned', 0)
  redis.call('SADD', 'lensd:running:' .. fields(id, 'owner'), id)
  redis.call('ZADD', 'lensd:leases', digits(now + policy.lease), id)
  announce(id)
  return {id, redis.call('HGETALL', 'lensd:job:' .. id)}
end

for _, priority in ipairs({'interactive', 'batch'}) do
  for i = 5, #ARGV do
    local id = next_in_line(priority, ARGV[i])
    while id do
      local status, deadline, suspected = fields(id, 'status', 'deadline_at', 'suspected')
      if status == 'queued' and passed(deadline) then
        finish(id, 'failed', 'error', policy.deadline_exceeded)
      elseif status == 'queued' then
        return start(id, suspected)
      end
      id = next_in_line(priority, ARGV[i])
    end
  end
end
return false

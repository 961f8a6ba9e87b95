#!lua flags=allow-oom
-- Gives the pool's next job of some sizes to a worker: interactive before batch, then by size, one per owner in turn.
-- ARGV: policy, pool, worker, then the sizes, most wanted first
-- Returns {job, {field, value, …}} or false

local _, pool, worker = unpack(ARGV)

local function next_in_line(group)
  local owner = redis.call('LPOP', 'lensd:turns:' .. group)
  if not owner then return nil end
  local line = 'lensd:line:' .. group .. ':' .. owner
  local id = redis.call('ZPOPMIN', line)[1]
  if redis.call('EXISTS', line) == 1 then redis.call('RPUSH', 'lensd:turns:' .. group, owner) end
  if id then redis.call('ZREM', 'lensd:queued:' .. pool, id) end
  return id or ''
end

local function start(id, suspected)
  if suspected then
    redis.call('HINCRBY', 'lensd:job:' .. id, suspected, 1)
    redis.call('HDEL', 'lensd:job:' .. id, 'suspected')
  end
  redis.call('HINCRBY', 'lensd:job:' .. id, 'attempt', 1)
  set(id, 'status', 'running', 'worker', worker, 'started_at', digits(now), 'done', 0, 'planned', 0)
  redis.call('ZADD', 'lensd:leases', digits(now + policy.lease), id)
  announce(id)
  return {id, redis.call('HGETALL', 'lensd:job:' .. id)}
end

for _, priority in ipairs({'interactive', 'batch'}) do
  for i = 4, #ARGV do
    local group = group_of(pool, priority, ARGV[i])
    local id = next_in_line(group)
    while id do
      local status, deadline, suspected = fields(id, 'status', 'deadline_at', 'suspected')
      if status == 'queued' and passed(deadline) then
        finish(id, 'failed', 'error', policy.deadline_exceeded)
      elseif status == 'queued' then
        return start(id, suspected)
      end
      id = next_in_line(group)
    end
  end
end
return false

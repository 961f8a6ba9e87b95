#!lua flags=allow-oom
-- Gives the pool's next job of some sizes to a worker: interactive before batch, then by size, one per owner in turn.
-- ARGV: policy, pool, worker, owners to pass over ({size: {owner: true}}, JSON), then the sizes, most wanted first
-- Returns {job, {field, value, …}}, {job} of a record that is damaged and out of the way now, or false

local _, pool, worker = unpack(ARGV)
local without = cjson.decode(ARGV[4])

local function may_start(size, owner, id)
  if without[size][owner] then return false end
  local bound = fields(id, 'max_running')
  return not bound or redis.call('SCARD', 'lensd:running:' .. owner) < tonumber(bound)
end

-- Takes the next job of the owner whose turn it is; those that run as many as they may are passed over.
-- Returns it, the owner, and whether its record is sound as far as was seen.
local function next_in_line(priority, size)
  local group = group_of(pool, priority, size)
  local turns = 'lensd:turns:' .. group
  for _ = 1, redis.call('LLEN', turns) do
    local owner = redis.call('LPOP', turns)
    local line = 'lensd:line:' .. group .. ':' .. owner
    local id = redis.call('ZRANGE', line, 0, 0)[1]
    local sound, starts = true, false
    if id then sound, starts = pcall(may_start, size, owner, id) end
    if starts then redis.call('ZREM', line, id) end
    if redis.call('EXISTS', line) == 1 then redis.call('RPUSH', turns, owner) end
    if starts then
      redis.call('ZREM', 'lensd:queued:' .. pool, id)
      return id, owner, sound
    end
  end
end

local function start(id, suspected)
  if suspected then
    redis.call('HINCRBY', 'lensd:job:' .. id, suspected, 1)
    redis.call('HDEL', 'lensd:job:' .. id, 'suspected')
  end
  redis.call('HINCRBY', 'lensd:job:' .. id, 'attempt', 1)
  drop_tokens(id)
  set(id, 'status', 'running', 'worker', worker, 'started_at', digits(now), 'done', 0, 'planned', 0)
  redis.call('SADD', 'lensd:running:' .. fields(id, 'owner'), id)
  redis.call('ZADD', 'lensd:leases', digits(now + policy.lease), id)
  announce(id)
  return {id, redis.call('HGETALL', 'lensd:job:' .. id)}
end

-- The answer if the job starts; nothing if it ended instead, or is not to be found.
local function start_or_end(id, owner)
  local status, deadline, suspected, owned_by = fields(id, 'status', 'deadline_at', 'suspected', 'owner')
  if status and owned_by ~= owner then error('a job in the line of another owner') end
  if status == 'queued' and passed(deadline) then
    finish(id, 'failed', 'error', policy.deadline_exceeded)
  elseif status == 'queued' then
    return start(id, suspected)
  elseif status then
    error('a job in line that is ' .. status)
  end
end

for _, priority in ipairs({'interactive', 'batch'}) do
  for i = 5, #ARGV do
    local id, owner, sound = next_in_line(priority, ARGV[i])
    while id do
      local started
      if sound then sound, started = pcall(start_or_end, id, owner) end
      if sound and started then return started end
      if not sound or redis.call('EXISTS', 'lensd:job:' .. id) == 0 then
        quarantine(id, owner)
        return {id}
      end
      id, owner, sound = next_in_line(priority, ARGV[i])
    end
  end
end
return false

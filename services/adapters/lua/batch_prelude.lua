-- What the scripts of the life of a batch share; put after job_prelude.lua.

local function batch_set(batch, ...) redis.call('HSET', 'lensd:batch:' .. batch, ...) end

-- Whether the turn of a keeper is still its own; with a status, whether the batch is still in it too.
local function has_turn(batch, fence, ...)
  local latest, status = batch_fields(batch, 'fence', 'status')
  if latest ~= fence then return false end
  for _, expected in ipairs({...}) do
    if status == expected then return true end
  end
  return select('#', ...) == 0
end

-- As a keeper or a client reads it: {field, value, …}, living jobs, running jobs, the first wrong lines.
local function batch_state(batch)
  local owner = batch_fields(batch, 'owner')
  if not owner then return false end
  local living = 'lensd:batch-living:' .. batch
  return {
    redis.call('HGETALL', 'lensd:batch:' .. batch),
    redis.call('SCARD', living),
    redis.call('SINTERCARD', 2, living, 'lensd:running:' .. owner),
    redis.call('LRANGE', 'lensd:batch-wrong:' .. batch, 0, -1),
  }
end

-- Notes a wrong line among the first ones, which a batch shows by itself.
local function show_wrong(batch, line)
  local wrong = 'lensd:batch-wrong:' .. batch
  if redis.call('LLEN', wrong) < policy.shown_wrong_lines then redis.call('RPUSH', wrong, line) end
end

local function forget_batch(batch)
  local owner, idempotency, bytes = batch_fields(batch, 'owner', 'idempotency', 'bytes')
  redis.call('ZREM', 'lensd:batches-due', batch)
  if not owner then return end
  redis.call('ZREM', 'lensd:batches:' .. owner, batch)
  redis.call('SREM', 'lensd:batches-open:' .. owner, batch)
  keep(owner, -(tonumber(bytes) or 0))
  if idempotency then redis.call('DEL', idempotency) end
  for _, part in ipairs({'', '-lines', '-wrong', '-names', '-living', '-deleted'}) do
    redis.call('UNLINK', 'lensd:batch' .. part .. ':' .. batch)
  end
end
